"""The memory server: accounting (regions.py) joined to the memory itself (buffers.py).

It keeps no table of its own. What a region is stands in the note on its buffer, who holds it in how the kernel has shared
that: so what the next process finds, after a swap or a crash, is what is so.

Steps that move a region's memory (sealing it, giving it back) hold `_moving`, and look at the region again
once they have it. What one client opens, maps and releases of one region is done one after the other (`_shares`):
each finds what the one before has left. Everything else takes its place in the accounting before it awaits
anything, and gives it back if that fails.
"""

import hashlib
import hmac
import os
from collections import defaultdict, deque
from contextlib import suppress

import msgspec
import trio
from msgspec import Struct

from atoll.ipc.buffer import BufferMode
from atoll.ipc.context import current
from atoll.ipc.errors import BadRequest, NotFound, QuotaExceeded
from atoll.ipc.keyed_lock import KeyedLock
from atoll.ipc.serve import Config, Serves

from . import regions
from .buffers import Buffers, Held, KernelBuffers
from .interface import HasReaders, Holding, Memory, NotShared, Region, Share, Statistics
from .regions import Limits, Regions


class Settings(Config, frozen=True, kw_only=True):
    pool: int = 256 * 1024 * 1024
    """Bytes of all regions together."""
    per_client: int = 64 * 1024 * 1024
    """Bytes that one client may hold, its own regions and those it opened."""
    regions_per_client: int = 1024


class Note(Struct, frozen=True, array_like=True):
    """On the buffer of a region."""

    region: int
    owner: int
    """Client."""
    secret: bytes
    """What the keys of its shares are made of."""

    def key(self, writable: bool) -> bytes:
        return hashlib.blake2b(b"write" if writable else b"read", key=self.secret, digest_size=16).digest()


_note = msgspec.msgpack.Decoder(Note)


class Server(Serves[Memory]):
    config: Settings

    def __init__(self) -> None:
        self._handles: dict[int, int] = {}
        """Per region, its buffer."""
        self._notes: dict[int, Note] = {}
        self._moving = trio.Lock()
        self._ended: deque[int] = deque()
        """Regions whose memory is to be given back by `run`."""
        self._lost: deque[tuple[int, int]] = deque()
        """Regions, and clients that do not hold them and may have been given them; `run` takes them away."""
        self._shares = KeyedLock[tuple[int, int]]()
        self._work = trio.Event()
        self._reclaimed = self._refused = 0

    def buffers(self) -> Buffers:
        """What makes the memory: a test of this server without a kernel gives another."""
        return KernelBuffers()

    async def start(self) -> None:
        config = self.config
        # A number that a client kept from before a crash must not name another region now.
        first = int.from_bytes(os.urandom(6), "big") + 1
        self._regions = Regions(Limits(config.pool, config.per_client, config.regions_per_client), first)
        self._buffers = self.buffers()
        found: defaultdict[int, list[Held]] = defaultdict(list)
        for held in await self._buffers.held():
            found[_note.decode(held.note).region].append(held)
        for buffers in found.values():
            await self._adopt(buffers)

    async def _adopt(self, found: list[Held]) -> None:
        """Go on with a region that a process before this one has left, with what of it is whole."""
        note = _note.decode(found[0].note)
        # Of a seal that did not come to its end both buffers are there. Until the open one was taken back it counts, and
        # its owner asks again; afterwards the other has all that it held.
        found.sort(key=lambda held: (held.sealed is (note.owner in _open(found)), held.handle))
        kept, *others = found
        if not kept.clients or (not kept.sealed and note.owner not in kept.clients):
            others = found
        else:
            writers = {client for client, mode in kept.clients.items() if mode == "writable"}
            region = regions.Region(
                note.region, kept.size, note.owner, kept.sealed, set(kept.clients), writers
            )
            self._regions.adopt(region)
            self._handles[note.region], self._notes[note.region] = kept.handle, note
        for other in others:
            await self._buffers.release(other.handle)

    def clients_present(self, present: frozenset[int]) -> None:
        """Whoever else held regions has gone while no process served it."""
        for client in set(self._regions.accounts) - present:
            self.client_gone(client)

    async def run(self) -> None:
        """Give back what dead clients held, and take away what was opened in vain: who tells of it cannot wait."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._lost:
                await self._take_away(*self._lost.popleft())
            while self._ended:
                await self._give_back(self._ended.popleft())

    def client_gone(self, client: int) -> None:
        """A client's channel closed: let go of all that it held."""
        ended = self._regions.client_gone(client)
        self._reclaimed += len(ended)
        self._give_back_soon(ended)

    def _give_back_soon(self, ended: list[regions.Region]) -> None:
        self._ended.extend(region.number for region in ended)
        self._work.set()

    async def _give_back(self, number: int) -> None:
        async with self._moving:
            self._notes.pop(number, None)
            handle = self._handles.pop(number, None)
            if handle is not None:
                await self._buffers.release(handle)
            self._regions.freed(number)

    async def _take_away(self, number: int, client: int) -> None:
        async with self._shares.holding((number, client)), self._moving:
            region, handle = self._regions.regions.get(number), self._handles.get(number)
            if region is not None and handle is not None and client not in region.holders:
                await self._buffers.unshare(handle, client)

    @Memory.allocate.serve
    async def allocate(self, size: int) -> Region:
        if size <= 0:
            raise BadRequest("Memory.allocate, $.size", "a number of bytes above 0", str(size))
        client = current().client
        try:
            region = self._regions.reserve(client, size)
        except QuotaExceeded:
            self._refused += 1
            raise
        note = Note(region.number, client, current().new_id())
        try:
            handle = await self._buffers.make(region.size, msgspec.msgpack.encode(note))
            if region.number not in self._regions.regions:  # its owner died meanwhile
                await self._buffers.release(handle)
                raise _not_yours(region.number)
            self._handles[region.number], self._notes[region.number] = handle, note
            return await self._told(region, client)
        except BaseException:
            if region.number in self._regions.regions:
                self._let_go(region.number, client)
            raise

    @Memory.map.serve
    async def map(self, region: int) -> Region:
        client = current().client
        async with self._shares.holding((region, client)):
            return await self._told(self._regions.find(region, client), client)

    @Memory.seal.serve
    async def seal(self, region: int) -> Region:
        client = current().client
        async with self._moving:
            found = self._owned(region)
            if not found.sealed:
                old = self._handle(region)
                new = await self._buffers.seal(old)
                with trio.CancelScope(shield=True):
                    await self._seal(found, old, new)
        return await self._told(self._regions.find(region, client), client)

    async def _seal(self, found: regions.Region, old: int, new: int) -> None:
        """Put a region's immutable buffer in the place of the other one: all who hold it have it before that is taken, and
        who let go meanwhile does not."""
        given = set[int]()
        try:
            while left := found.holders - given:  # some open it meanwhile
                for holder in left:
                    given.add(holder)
                    with suppress(NotFound):  # it is gone, and that will be told
                        await self._buffers.share(new, holder, "immutable")
        except BaseException:
            await self._buffers.release(new)
            raise
        self._handles[found.number] = new
        if found.number in self._regions.regions:  # else its last holder died meanwhile
            self._regions.seal(found.number)
        self._lost.extend((found.number, holder) for holder in given - found.holders)
        self._work.set()
        await self._buffers.release(old)

    @Memory.share.serve
    def share(self, region: int, writable: bool = False) -> Share:
        self._owned(region)
        self._handle(region)
        return Share(region, self._notes[region].key(writable))

    @Memory.open.serve
    async def open(self, share: Share) -> Region:
        client = current().client
        async with self._shares.holding((share.region, client)):
            return await self._open(share, client)

    async def _open(self, share: Share, client: int) -> Region:
        note, shared = self._notes.get(share.region), self._regions.regions.get(share.region)
        if note is None or shared is None:
            raise NotShared(region=share.region)
        writable = hmac.compare_digest(note.key(True), share.key)
        if not writable and not hmac.compare_digest(note.key(False), share.key):
            raise NotShared(region=share.region)
        before = client in shared.holders, client in shared.writers
        try:
            found = self._regions.join(share.region, client, writable and not shared.sealed)
        except QuotaExceeded:
            self._refused += 1
            raise
        try:
            return await self._told(found, client)
        except BaseException as error:
            self._take_back(found, client, *before)
            if isinstance(error, BadRequest):
                raise HasReaders(region=share.region) from error
            if isinstance(error, NotFound):
                raise NotShared(region=share.region) from error
            raise

    def _take_back(self, found: regions.Region, client: int, held: bool, wrote: bool) -> None:
        """As it was before `client` opened the region in vain."""
        if found.number not in self._regions.regions or client not in found.holders:
            return
        if not wrote:
            found.writers.discard(client)
        if not held:
            self._lost.append((found.number, client))
            self._let_go(found.number, client)

    def _let_go(self, number: int, client: int) -> None:
        ended = self._regions.leave(number, client)
        self._give_back_soon([] if ended is None else [ended])

    @Memory.release.serve
    async def release(self, region: int) -> bool:
        client = current().client
        async with self._shares.holding((region, client)):
            ended = self._regions.leave(region, client)
            if ended is not None:
                with trio.CancelScope(shield=True):
                    await self._give_back(region)
            elif region in self._handles:
                await self._buffers.unshare(self._handles[region], client)
            return ended is not None

    @Memory.mine.serve
    def mine(self) -> list[Holding]:
        client = current().client
        return [
            Holding(each.number, each.size, each.owner == client, each.sealed, len(each.holders))
            for each in self._regions.regions.values()
            if client in each.holders
        ]

    @Memory.statistics.serve
    def statistics(self) -> Statistics:
        return Statistics(
            pool=self.config.pool,
            used=self._regions.used,
            regions=len(self._regions.regions),
            clients=len(self._regions.accounts),
            reclaimed=self._reclaimed,
            refused=self._refused,
        )

    def _owned(self, number: int) -> regions.Region:
        """Raises NotFound, BadRequest."""
        client = current().client
        found = self._regions.find(number, client)
        if found.owner != client:
            raise BadRequest("a region", "one that the caller owns", f"region {number}, which it only opened")
        return found

    async def _told(self, found: regions.Region, client: int) -> Region:
        """A region as a client may have it, once it has it. Raises NotFound for one that ended meanwhile, BadRequest for
        one that takes no further writer."""
        while True:
            if client not in found.holders:
                raise _not_yours(found.number)
            mode: BufferMode = (
                "immutable" if found.sealed else "writable" if client in found.writers else "readonly"
            )
            handle = self._handle(found.number)
            try:
                await self._buffers.share(handle, client, mode)
            except (NotFound, BadRequest):
                if self._handle(found.number) == handle:
                    raise
                continue  # it was sealed meanwhile
            if self._handles.get(found.number) == handle:
                return Region(found.number, found.size, self._buffers.view(handle, mode))

    def _handle(self, number: int) -> int:
        """Raises NotFound for a region whose memory is still being made: its number was guessed."""
        handle = self._handles.get(number)
        if handle is None:
            raise _not_yours(number)
        return handle


def _open(found: list[Held]) -> set[int]:
    """Clients that have the buffer that is not sealed, if there is one."""
    return {client for held in found if not held.sealed for client in held.clients}


def _not_yours(number: int) -> NotFound:
    return NotFound("region of yours", str(number))
