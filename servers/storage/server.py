"""The storage server: uploads, downloads, references and collection over a folder of blobs."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import trio
from msgspec import Meta

from atoll.ipc.context import Log, current
from atoll.ipc.errors import BadRequest, PeerFault
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.published import Published
from atoll.ipc.serve import Config, Serves

from .blobfile import CHUNK, Writer, read_footer
from .blobs import Blobs, no_space, prove_file, read_slice, refused_for_space
from .collector import Rewrite, Sweep
from .groups import Groups
from .interface import (
    HASH_BYTES,
    BlobRef,
    Collected,
    Corrupt,
    Damage,
    NoSuchBlob,
    Piece,
    Scrubbed,
    Stat,
    Statistics,
    Storage,
    WrongContent,
    WrongSize,
)
from .leases import Leases
from .openings import Openings
from .pack import LARGEST
from .priority import Priorities
from .quotas import Change, Quotas
from .references import Reference, References

_SPILL = 1024 * 1024
"""Bytes of an upload that are gathered before a thread writes them: the memory that one upload takes."""
_READ = 8 * CHUNK
"""Bytes that one thread hop reads for a download."""
MOST_READ = 8 * 1024 * 1024
"""Bytes that one `get_many` gives: the memory that one request may take."""
_MOST_LISTED = 1000
_MOST_STRANGERS = 100
_STEPS = 64
"""Steps of a sweep or a scrub between two looks at what else is to be done."""


class Settings(Config, frozen=True, kw_only=True):
    grace: Annotated[float, Meta(gt=0)] = 3600.0
    """Seconds for which an unreferenced blob is kept after its last put, reference or release."""
    collect_every: Annotated[float, Meta(ge=0)] = 600.0
    """Seconds between collections; 0: only when `collect` is called."""
    quota: Annotated[int, Meta(ge=0)] = 0
    """Bytes that each badge may keep, a server's of the image included; 0: without bound. The unbadged
    capability has none.
    """


class Server(Serves[Storage]):
    folder: Path
    references: Keyspace[Reference]
    config: Settings
    publishes: ClassVar = {"reference": Published("references", Reference)}

    def __init__(self) -> None:
        self._inherited: dict[bytes, float] = {}
        self._collecting = trio.Lock()
        self._may_collect = True
        """Off from a hand-over until a call shows that this version serves after all: the next one may be
        serving.
        """
        self._puts = self._duplicates = self._written = self._read = self._syncs = 0

    async def start(self) -> None:
        self._io = Priorities()
        self._blobs = Blobs(self.folder)
        self._blobs.open()
        self._leases = Leases(trio.current_time, self.config.grace)
        self._leases.take_over(self._inherited)
        self._groups = Groups(self._write_pack)
        self._openings = Openings()
        self._rows = References(self.references)
        self._quotas = Quotas(self.config.quota, self.config.grace, trio.current_time, self._rows.size)

    async def run(self) -> None:
        """Collect every now and then."""
        if not self.config.collect_every:
            return
        while True:
            await trio.sleep(self.config.collect_every)
            if self._may_collect:
                try:
                    await self._collect("bulk")
                except PeerFault as fault:
                    Log().warning(
                        "a collection was left: the references could not be read", reason=str(fault)
                    )

    async def stop(self) -> None:
        self._blobs.close()

    def hand_over(self) -> bytes:
        self._may_collect = False
        return msgspec.msgpack.encode(self._leases.hand_over())

    def take_over(self, state: bytes) -> None:
        self._inherited = msgspec.msgpack.decode(state, type=dict[bytes, float])

    # putting ----------------------------------------------------------------------------------------------

    @Storage.put.serve
    async def put(self, items: AsyncIterator[bytes], expected: bytes = b"") -> BlobRef:
        service = current().service
        self._may_collect = True
        if len(expected) not in (0, HASH_BYTES):
            told = f"an address of {HASH_BYTES} bytes or nothing"
            raise BadRequest("Storage.put, $.expected", told, f"{len(expected)} bytes")
        badge = current().badge
        await self._quotas.load(badge)
        held, growing, opened = bytearray(), object(), ExitStack()
        writer: Writer | None = None
        try:
            async for item in items:
                held += item
                if len(held) > (LARGEST if writer is None else _SPILL):
                    if writer is None:
                        opened.enter_context(self._openings.one(current().client))
                        writer = self._blobs.writer()
                    self._quotas.check(badge, len(held))
                    self._quotas.hold(badge, growing, writer.size + len(held))
                    await self._io.run(service, writer.write, held)
                    held = bytearray()
            self._quotas.check(badge, len(held))
            self._quotas.hold(badge, growing, len(held) + (writer.size if writer else 0))
            if writer is None:
                return await self._put_small(bytes(held), expected)
            return await self._put_large(service, writer, held, expected)
        except OSError as error:
            raise refused_for_space(error, writer.size if writer else len(held)) from error
        finally:
            self._quotas.drop(badge, growing)
            if writer is not None:
                writer.discard()
            opened.close()

    async def _put_small(self, content: bytes, expected: bytes) -> BlobRef:
        found = BlobRef.of(content)
        _check_expected(expected, found.hash)
        await self._put_group({found.hash: content})
        self._quotas.hold(current().badge, found.hash, found.size)
        return found

    async def _put_large(self, service: str, writer: Writer, rest: bytearray, expected: bytes) -> BlobRef:
        """What was written replaces a file that was there: that one may have rotted unseen."""
        await self._io.run(service, writer.write, rest)
        footer = await self._io.run(service, writer.seal)
        _check_expected(expected, footer.hash)
        with self._leases.pinned([footer.hash]):
            new = not self._blobs.sound(footer.hash)
            final = self._blobs.path(footer.hash)
            await self._io.run(service, self._blobs.install, writer.temporary, final)
            self._blobs.damaged.discard(footer.hash)
            self._puts += new
            self._duplicates += not new
            self._syncs += 1
            self._written += footer.size
        self._quotas.hold(current().badge, footer.hash, footer.size)
        return BlobRef(footer.hash, footer.size)

    @Storage.put_many.serve
    async def put_many(self, blobs: list[bytes]) -> list[BlobRef]:
        self._may_collect = True
        for index, content in enumerate(blobs):
            if len(content) > LARGEST:
                expected = f"a blob of {LARGEST} bytes at most (upload a larger one with `put`)"
                raise BadRequest(f"Storage.put_many, $.blobs[{index}]", expected, f"{len(content)} bytes")
        badge = current().badge
        await self._quotas.load(badge)
        self._quotas.check(badge, sum(map(len, blobs)))
        refs = [BlobRef.of(content) for content in blobs]
        growing = object()
        self._quotas.hold(badge, growing, sum(map(len, blobs)))
        try:
            await self._put_group({ref.hash: content for ref, content in zip(refs, blobs, strict=True)})
        finally:
            self._quotas.drop(badge, growing)
        for ref in refs:
            self._quotas.hold(badge, ref.hash, ref.size)
        return refs

    async def _put_group(self, blobs: dict[bytes, bytes]) -> None:
        with self._leases.pinned(blobs):
            new = {address: content for address, content in blobs.items() if not self._blobs.proved(address)}
            self._duplicates += len(blobs) - len(new)
            if new:
                try:
                    await self._groups.put(new)
                except OSError as error:
                    raise refused_for_space(error, sum(map(len, new.values()))) from error
                self._puts += len(new)
                self._written += sum(map(len, new.values()))

    async def _write_pack(self, blobs: dict[bytes, bytes]) -> None:
        temporary, number = self._blobs.temporary(), self._blobs.next_pack()
        new = await self._io.run("normal", self._blobs.write_pack, temporary, number, list(blobs.items()))
        self._blobs.admit(new)
        self._syncs += 1

    # reading ----------------------------------------------------------------------------------------------

    @Storage.get.serve
    async def get(self, hash: bytes, after: int = 0, until: int = -1) -> AsyncIterator[Piece]:
        service = current().service
        _check_addresses("Storage.get, $.hash", [hash])
        if after < 0:
            raise BadRequest("Storage.get, $.after", "0 or more", str(after))
        if until < -1:
            raise BadRequest("Storage.get, $.until", "0 or more, or -1 for the end", str(until))
        small = self._blobs.small(hash)
        if small is not None:
            end = len(small) if until < 0 else min(until, len(small))
            if after < end:
                self._read += end - after
                yield Piece(end, small[after:end])
            return
        with self._openings.one(current().client):
            descriptor = self._blobs.open_file(hash)
            try:
                footer = await self._io.run(service, read_footer, descriptor, hash)
                end = footer.size if until < 0 else min(until, footer.size)
                while after < end:
                    to = min(end, (after // CHUNK) * CHUNK + _READ)
                    for chunk in await self._io.run(service, read_slice, descriptor, footer, after, to):
                        after += len(chunk)
                        self._read += len(chunk)
                        yield Piece(after, chunk)
            except Corrupt as damage:
                self._blobs.damaged.add(damage.hash)
                raise
            finally:
                os.close(descriptor)

    @Storage.get_many.serve
    def get_many(self, hashes: list[bytes]) -> list[bytes]:
        _check_addresses("Storage.get_many, $.hashes", hashes, many=True)
        size = 0
        for index, hash in enumerate(hashes):
            place = self._blobs.places.get(hash)
            if place is None:
                if not self._blobs.has(hash):
                    raise NoSuchBlob(hash=hash, index=index)
                expected = f"a blob of {LARGEST} bytes at most (read a larger one with `get`)"
                where = f"Storage.get_many, $.hashes[{index}]"
                raise BadRequest(where, expected, f"{self._blobs.size(hash)} bytes")
            size += place.length
            if size > MOST_READ:
                expected = f"blobs of {MOST_READ} bytes in all at most"
                got = f"more with number {index} of {len(hashes)}: ask for the others in a call of their own"
                raise BadRequest("Storage.get_many, $.hashes", expected, got)
        contents = [small for hash in hashes if (small := self._blobs.small(hash)) is not None]
        self._read += size
        return contents

    @Storage.stat.serve
    def stat(self, hash: bytes) -> Stat:
        _check_addresses("Storage.stat, $.hash", [hash])
        spared = min(self._leases.left(hash), self.config.grace)
        return Stat(size=self._blobs.size(hash), packed=hash in self._blobs.places, spared=spared)

    # references -------------------------------------------------------------------------------------------

    @Storage.refer.serve
    async def refer(self, hashes: list[bytes], owner: str, name: str, sizes: list[int] | None = None) -> int:
        self._may_collect = True
        _check_by_itself("Storage.refer")
        if not owner or "/" in owner or not name:
            raise BadRequest("Storage.refer", "an owner without `/`, and a name", repr((owner, name)))
        _check_addresses("Storage.refer, $.hashes", hashes, many=True)
        if sizes and len(sizes) != len(hashes):
            raise BadRequest(
                "Storage.refer, $.sizes", f"one for each of {len(hashes)} hashes", str(len(sizes))
            )
        badge = current().badge
        await self._quotas.load(badge)
        async with self._rows.alone(badge, owner, name):
            found = self._found(hashes, sizes or [])
            with self._leases.pinned(found):  # from here on collection spares what was found
                dropped = await self._rows.find(badge, owner, name)
                before, size = set(dropped.split()), sum(found.values())
                kept = sum(found[hash] for hash in before & found.keys())
                change = Change(dropped.size, size, found, dropped.size - kept)
                try:
                    with self._quotas.writing(badge, (owner, name), change):
                        return await self._rows.put(badge, owner, name, list(found), size)
                finally:  # also where nobody hears what the row names now
                    self._leases.renew(before - found.keys())

    def _found(self, hashes: list[bytes], sizes: list[int]) -> dict[bytes, int]:
        """Each address, once, with its blob's size. Raises NoSuchBlob, WrongSize, Corrupt."""
        found: dict[bytes, int] = {}
        for index, hash in enumerate(hashes):
            if hash not in found:
                if not self._blobs.has(hash):
                    raise NoSuchBlob(hash=hash, index=index)
                found[hash] = self._blobs.size(hash)
            if sizes and sizes[index] != found[hash]:
                raise WrongSize(hash=hash, index=index, expected=sizes[index], got=found[hash])
        return found

    @Storage.release.serve
    async def release(self, owner: str, name: str) -> bool:
        self._may_collect = True
        _check_by_itself("Storage.release")
        badge = current().badge
        await self._quotas.load(badge)
        async with self._rows.alone(badge, owner, name):
            dropped = await self._rows.find(badge, owner, name)
            held = dropped.split()
            self._leases.renew(held)
            with self._quotas.writing(badge, (owner, name), Change(dropped.size, 0, (), dropped.size)):
                await self._rows.remove(badge, owner, name)
            self._leases.renew(held)
            return bool(held)

    @Storage.references.serve
    async def names(self, owner: str, after: str = "", limit: int = _MOST_LISTED) -> list[str]:
        if not 1 <= limit <= _MOST_LISTED:
            raise BadRequest("Storage.references, $.limit", f"1 to {_MOST_LISTED}", str(limit))
        return await self._rows.names(current().badge, owner, after, limit)

    # maintenance ------------------------------------------------------------------------------------------

    @Storage.collect.serve
    async def collect(self) -> Collected:
        self._may_collect = True
        return await self._collect(current().service)

    async def _collect(self, service: str) -> Collected:
        async with self._collecting:
            began = trio.current_time()
            referenced = await self._rows.all_hashes()
            sweep = Sweep(self._blobs, self._leases, trio.current_time, referenced.__contains__, began)
            for count, rewrite in enumerate(sweep.steps()):
                if not self._may_collect:
                    break
                if rewrite is not None:
                    await self._rewrite(service, sweep, rewrite)
                elif count % _STEPS == 0:
                    await trio.lowlevel.checkpoint()
            self._leases.forget_expired()
            return sweep.result()

    async def _rewrite(self, service: str, sweep: Sweep, rewrite: Rewrite) -> None:
        """Durable in its new pack, then gone from the old ones; whatever became wanted meanwhile stops it.

        The new pack stays even so: a next version may have read it by now and count on it. On a full disk
        the old packs stay, and what can be removed without writing is removed.
        """
        temporary, number = self._blobs.temporary(), self._blobs.next_pack()
        try:
            new = await self._io.run(service, self._blobs.write_pack, temporary, number, rewrite.keep)
        except OSError as error:
            if not no_space(error):
                raise
            Log().warning("packs were not put together: the disk is full", packs=len(rewrite.numbers))
            return
        self._blobs.admit(new)
        if self._may_collect and sweep.still_good(rewrite):
            sweep.switch(rewrite)

    @Storage.verify.serve
    async def verify(self) -> Scrubbed:
        service = current().service
        blobs = size = 0
        damaged: list[Damage] = []
        for hash in list(self._blobs.files()):
            try:
                size += await self._io.run(service, prove_file, self._blobs.path(hash), hash)
            except Corrupt as damage:
                damaged.append(Damage(hash, damage.offset))
            except NoSuchBlob:
                continue  # collected since it was listed
            blobs += 1
        for number in list(self._blobs.packs):
            await trio.lowlevel.checkpoint()
            if number in self._blobs.packs:
                self._blobs.prove_table(number)
        for count, hash in enumerate(list(self._blobs.places)):
            if count % _STEPS == 0:
                await trio.lowlevel.checkpoint()
            try:
                small = self._blobs.small(hash)
            except Corrupt as damage:
                damaged.append(Damage(hash, damage.offset))
                small = b""
            if small is not None:
                blobs += 1
                size += len(small)
        self._blobs.damaged.update(each.hash for each in damaged)
        missing = sorted(hash for hash in await self._rows.all_hashes() if not self._blobs.has(hash))
        return Scrubbed(
            blobs=blobs,
            bytes=size,
            damaged=damaged[:_MOST_LISTED],
            missing=missing[:_MOST_LISTED],
            strangers=list(islice(self._blobs.strangers(), _MOST_STRANGERS)),
            further=len(damaged[_MOST_LISTED:]) + len(missing[_MOST_LISTED:]),
        )

    @Storage.statistics.serve
    def statistics(self) -> Statistics:
        return Statistics(
            puts=self._puts,
            duplicates=self._duplicates,
            written=self._written,
            read=self._read,
            syncs=self._syncs,
            packs=len(self._blobs.packs),
            packed=len(self._blobs.places),
            damaged=len(self._blobs.damaged),
            priorities=self._io.applied,
        )


def _check_by_itself(where: str) -> None:
    """When a row is committed with a transaction, and whether at all, is not known here: what is charged, and how long a
    blob is spared, would go by what may not be so."""
    if current().transaction is not None:
        raise BadRequest(f"{where} under a transaction", "a call of its own", "a part of a transaction")


def _check_addresses(where: str, hashes: Sequence[bytes], *, many: bool = False) -> None:
    for index, hash in enumerate(hashes):
        if len(hash) != HASH_BYTES:
            place = f"{where}[{index}]" if many else where
            raise BadRequest(place, f"an address of {HASH_BYTES} bytes", f"{len(hash)} bytes")


def _check_expected(expected: bytes, found: bytes) -> None:
    if expected and expected != found:
        raise WrongContent(expected=expected, got=found)
