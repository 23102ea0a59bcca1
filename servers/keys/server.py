"""The server that keeps the keyring: gives data keys to whom the policy lets have them, and destroys them.

It is the one process that reads the keyring and the root key. A purge is on the disk before anything else is: then
the row, then each holder of keys is told and waited for, then the reply. What a crash leaves out is made up for: the
row by the next start, the telling by the streams, which go on from the last purge that each knows of.
"""

import hmac
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import msgspec
import trio
from msgspec import Meta, Struct, field, structs

from atoll.ipc.context import Log, current
from atoll.ipc.errors import AtollError, BadRequest, NotFound
from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.local_view import after_prefix
from atoll.ipc.naming import badge_number
from atoll.ipc.runtime import resident
from atoll.ipc.serve import Config, Serves
from atoll.ipc.system.keys import (
    AT_ONCE,
    LABEL,
    SUBJECT_MOST,
    KeyringRow,
    KeyringUnwritable,
    Keys,
    KeysLocked,
    NotReleased,
    Purge,
    PurgesSpent,
    RootKind,
    Told,
    tag_of,
)  # fmt: skip
from atoll.ipc.system.measurement import Measurement

from .attestation import Attestation, KernelsWord, Policy
from .holders import Holder, Holders
from .keyring import GENERATIONS, Keyring, Made, Unreadable
from .root import FileRoot, PassphraseRoot, Root

PATIENCE: Final = 5.0
"""Seconds for which a purge waits for servers to let go, at most."""
ROWS_AT_ONCE: Final = 500
"""Purges whose rows are written in one transaction."""
RING: Final = "ring"
PURGES: Final = "purge/"


class Settings(Config, frozen=True, kw_only=True):
    root: RootKind = "file"
    """Where the root key is."""
    policy: dict[str, Policy] = field(default_factory=dict)
    """By keyspace, who is given its keys."""
    purges_by_servers: Annotated[int, Meta(ge=0)] = 10_000
    """How many purges the servers of each private keyspace may make in it, which bounds the keyring: one is 2 KiB
    of it. Those of people are not counted."""


class RingRow(Struct, frozen=True, kw_only=True, tag="ring"):
    """Which keyring the rows of this store are sealed with."""

    id: bytes


class PurgeRow(Struct, frozen=True, kw_only=True, tag="purge"):
    """A purge in one keyspace, as the store has it. Nobody is named: the tag is a keyed hash."""

    number: int
    keyspace: int
    tag: bytes
    time: int
    call: str = ""
    """Whose call it was, as channel:request of this server; empty where a start made up for the row."""
    by_server: bool = False
    """Whether the keyspace's own server asked for it."""
    mark: bytes = b""
    """By which a keyring that does not know of the purge knows that it was one."""


class Server(Serves[Keys]):
    rows: Keyspace[RingRow | PurgeRow]
    keyring: Path
    root: Path
    config: Settings

    def attestation(self) -> Attestation:
        return KernelsWord()

    async def start(self) -> None:
        self.rows.keep_remote()
        self._attestation = self.attestation()
        self._policies = {badge_number(name): policy for name, policy in self.config.policy.items()}
        self._holders = Holders()
        self._changing = trio.Lock()
        kind = self.config.root
        self._root: Root = FileRoot(self.root) if kind == "file" else PassphraseRoot(self.root, kind)
        self._ring = Keyring(self.keyring, self._root)
        self._unreadable = ""
        if not self._root.locked():
            await self._open()

    async def _open(self) -> None:
        """The keyring, and the rows that are to be there with it. What cannot be opened is said to each caller: to
        end for it would help nobody. Until it has caught up with the rows nobody is given a key: where that comes to
        nothing it is as before."""
        self._unreadable = ""
        try:
            await self._caught_up()
        except BaseException:
            self._unreadable = "whoever opened it last did not come to the end"
            self._ring.close()
            raise

    async def _caught_up(self) -> None:
        row = await self.rows.get(RING)
        try:
            self._ring.open(row.id if isinstance(row, RingRow) else None, _now())
        except (Unreadable, OSError, msgspec.DecodeError) as fault:
            self._unreadable = str(fault)
            Log().error("the keyring cannot be opened", reason=str(fault))
            return
        if row is None:
            await settled(self.rows.put(RING, RingRow(id=self._ring.contents.id)))
        have = {row.key: row.value async for row in self.rows.range(PURGES, after_prefix(PURGES.encode()))}
        if row is not None and not self._catch_up(
            [each for each in have.values() if isinstance(each, PurgeRow)]
        ):
            return
        await self._record([each for each in self._ring.contents.purges if _key(each) not in have], "")

    def _catch_up(self, rows: list[PurgeRow]) -> bool:
        """Purge again whom the store says to be purged and the keyring does not: it is a copy from before. False: the
        disk does not take it, and the keyring is not to be used."""
        told = {Made(row.number, row.keyspace, row.tag, row.time, row.by_server): row.mark for row in rows}
        own = [made for made, mark in told.items() if hmac.compare_digest(mark, self._ring.mark(made))]
        try:
            again = self._ring.purge_again(own, max((made.number for made in told), default=0))
        except OSError as fault:
            self._unreadable = f"it is from before a purge, and cannot be replaced: {fault}"
            self._ring.close()
            return False
        if again:
            numbers = ", ".join(str(number) for number in sorted({made.number for made in again}))
            Log().warning("the keyring was a copy from before purges, which are made again", purges=numbers)
        known = {(made.badge, made.tag) for made in self._ring.contents.purges}
        unknown = sum((made.badge, made.tag) not in known for made in told)
        if unknown:
            Log().error(
                "the store has purges without the keyring's mark, which are not made again", purges=unknown
            )
        return True

    def _opened(self) -> Keyring:
        if not self._ring.opened:
            raise KeysLocked(self._root.locked() or self._unreadable)
        return self._ring

    # for servers ----------------------------------------------------------------------------------------------

    @Keys.hold.serve
    async def hold(self, after: int = 0) -> AsyncIterator[Told]:
        call = current()
        badge = self._keyspace()
        self._holders.asks(call.client)
        try:
            who = await self._measured(call.client)
            self._policies.get(badge, Policy()).hold(who)
            async with self._changing:
                ring = self._opened()
                with written():
                    ring.know(badge)
            # It may know of purges that a keyring which was put back does not: others will have their numbers.
            position = min(after or ring.contents.number, ring.contents.number)
            holder = Holder(badge, who.server, position)
            self._holders.add(call.client, holder)
        finally:
            self._holders.heard(call.client)  # whoever is refused has no keys any more
        try:
            while True:
                more = holder.more
                if holder.generation != ring.generation:
                    holder.generation = ring.generation
                    yield Told(holder.told, badge, ring.index(badge), generation=ring.generation)
                for made in ring.made(badge, holder.told):
                    holder.told = made.number
                    yield Told(made.number, purged=made.tag)
                await more.wait()
        finally:
            self._holders.remove(call.client, holder)

    @Keys.release.serve
    def release(self, labels: list[bytes]) -> list[bytes | None]:
        badge, ring = self._keyspace(), self._opened()
        if self._holders.of(current().client, badge) is None:
            raise NotReleased(
                "a process", "a stream `hold` by which it hears of purges", "one that holds none"
            )
        if len(labels) > AT_ONCE or any(len(label) != LABEL for label in labels):
            raise BadRequest(
                "Keys.release, $.labels", f"{AT_ONCE} of {LABEL} bytes each at most", f"{len(labels)} others"
            )
        return [ring.key(badge, label) for label in labels]

    @Keys.let_go.serve
    def let_go(self, position: int) -> None:
        self._holders.answered(current().client, self._keyspace(), position)

    def clients_present(self, channels: frozenset[int]) -> None:
        self._holders.before(channels)

    def client_gone(self, channel: int) -> None:
        self._holders.gone(channel)

    async def _name_unheard(self) -> None:
        """A crash of ours, or a swap, lets nobody's keys go: until it holds them here it is to be named."""
        for channel in self._holders.unheard():
            try:
                self._holders.named(channel, (await self._attestation.measured(channel)).server)
            except NotFound:
                self._holders.gone(channel)  # a program, which has none

    async def _measured(self, channel: int) -> Measurement:
        try:
            return await self._attestation.measured(channel)
        except NotFound:
            raise NotReleased("a program that is attached", "a server of the node", "none") from None

    def _keyspace(self) -> int:
        badge = current().badge
        if not badge:
            raise NotReleased("an unbadged capability", "one for a keyspace", "a person's")
        return badge

    # for purges -----------------------------------------------------------------------------------------------

    @Keys.purge.serve
    async def purge(self, subject: str, keyspace: str = "") -> Purge:
        if not 0 < len(subject.encode()) <= SUBJECT_MOST:
            raise BadRequest(
                "Keys.purge, $.subject", f"1 to {SUBJECT_MOST} bytes", f"{len(subject.encode())}"
            )
        call = current()
        async with self._changing:
            # Asked for here: while it is opened it may be a copy that does not know of all keyspaces.
            ring = self._opened()
            badges = {call.badge} if call.badge else set(ring.contents.badges)
            if keyspace:
                badges &= {badge_number(keyspace)}
                if not badges:
                    raise NotFound("private keyspace that was ever opened", keyspace)
            who = {(badge, tag_of(ring.index(badge), subject)) for badge in badges}
            fresh = [each for each in sorted(who) if not ring.is_purged(*each)]
            if call.badge and fresh and ring.asked_by_server(call.badge) >= self.config.purges_by_servers:
                raise PurgesSpent(self.config.purges_by_servers)
            before, unwritable = ring.contents.number, None
            try:
                made = ring.purge(fresh, _now(), by_server=bool(call.badge))
            except OSError as fault:
                unwritable = KeyringUnwritable(str(fault))
                made = ring.made_since(
                    before
                )  # what the disk did not take to the end it may have all the same
            self._holders.stir()  # whatever comes of this call
            await self._record(made, f"{call.client}:{call.request}")
            if unwritable is not None:
                raise unwritable
        done = [each for each in ring.contents.purges if (each.badge, each.tag) in who]
        last = max(done, key=lambda each: each.number) if done else Made(ring.contents.number, 0, b"", _now())
        left = call.remaining()
        numbers = {each.badge: each.number for each in done}
        patience = PATIENCE if left is None else min(PATIENCE, left / 2)
        await self._name_unheard()
        holding = await self._holders.without(numbers, patience)
        if holding:
            call.log.warning("servers have not let go of a purged key", servers=", ".join(holding))
        return Purge(
            number=last.number, time=last.time, keyspaces=len(badges), repeated=not made, holding=holding
        )  # fmt: skip

    async def _record(self, purges: list[Made], call: str) -> None:
        """Rows of purges that are made. One that the store does not take now is written by the next start."""
        rows: dict[str, RingRow | PurgeRow] = {
            _key(each): PurgeRow(
                number=each.number,
                keyspace=each.badge,
                tag=each.tag,
                time=each.time,
                call=call,
                by_server=each.by_server,
                mark=self._ring.mark(each),
            )
            for each in purges
        }
        told = iter(rows.items())
        try:
            # After a restore from an old backup there may be more than fit one message.
            while some := dict(islice(told, ROWS_AT_ONCE)):
                await settled(self.rows.put_all(some))
        except AtollError as fault:
            Log().warning("a purge was made, and has no row yet", reason=str(fault))

    # for people -----------------------------------------------------------------------------------------------

    @Keys.rotate.serve
    async def rotate(self, passphrase: str = "", seeds: bool = False) -> KeyringRow:
        async with self._changing:
            ring = self._opened()
            if seeds and ring.generation + 1 == GENERATIONS:
                raise BadRequest("Keys.rotate, $.seeds", f"{GENERATIONS} generations at most", "one more")
            if isinstance(self._root, PassphraseRoot):
                self._root.change(passphrase)
            elif passphrase:
                raise BadRequest("Keys.rotate, $.passphrase", "none: the root key is in a file", "one")
            with written():
                ring.rotate(_now(), seeds=seeds)
        self._holders.stir()
        return self._row()

    @Keys.unlock.serve
    async def unlock(self, passphrase: str) -> KeyringRow:
        root = self._root
        if not isinstance(root, PassphraseRoot):
            raise BadRequest(
                "Keys.unlock", "a root key that is given from outside", f"one of kind {root.kind}"
            )
        async with self._changing:
            fits = [tried for tried in root.offer(passphrase) if self._ring.try_key(tried.key)]
            if not fits:
                raise BadRequest(
                    "Keys.unlock, $.passphrase", "the one that the keyring was made with", "another"
                )
            if not self._ring.opened:
                root.take(fits[0])
                await self._open()
        return self._row()

    @Keys.keyring.serve
    def show(self) -> KeyringRow:
        return self._row()

    def _row(self) -> KeyringRow:
        row = KeyringRow(
            root=self._root.kind, locked=self._root.locked() or self._unreadable, attestation=self._attestation.name,
            size=self._ring.size, swappable=resident.said(), place=self._place() )  # fmt: skip
        if not self._ring.opened:
            return row
        held = self._ring.contents
        return structs.replace(
            row, keyspaces=len(held.badges), purges=len(held.purges), rotated=held.rotated, generations=len(held.seeds)
        )  # fmt: skip

    def _place(self) -> str:
        if not isinstance(self._root, PassphraseRoot) or self._root.kind != "tpm":
            return ""
        with written():
            return self._root.place()


@contextmanager
def written() -> Iterator[None]:
    """Raises `KeyringUnwritable` where the disk does not take it."""
    try:
        yield
    except OSError as fault:
        raise KeyringUnwritable(str(fault)) from None


def _key(made: Made) -> str:
    return f"{PURGES}{made.number:016x}/{made.badge:016x}"


def _now() -> int:
    from atoll.ipc import clock

    return int(clock.wall() * 1e9)
