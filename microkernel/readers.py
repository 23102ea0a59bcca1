"""Reader processes of the store: started as load asks, beside the one writer.

A reader runs the writer's package, at its level, with `role = "reader"`: of the store's folder it sees the file, which it
may only read, and the lock file, in which readers register. It shares the writer's capability table, so whatever is
revoked is revoked here, too, and `revoke` waits for its loop as for any other. Each holder of a keyspace gets a channel to
it, and on that channel a twin of its capability: a child with the same badge, cut down to reading, which ends with its
parent. The holder is told by `ReadAt`, and goes back to the writer by itself when a reader ends.

Before the store is swapped all its readers end: a new version may write what an old one cannot read.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import trio

from atoll.ipc.errors import AtollError, QuotaExceeded
from atoll.ipc.system.control import Port, ReadAt
from atoll.ipc.system.kernel import StartFailed

from . import ending, needs
from .accounts import CHANNEL, Cost
from .authority import Authority
from .capabilities import Capability
from .events import Events
from .holders import READING, Holders
from .image_check import STORE
from .launching import Launching, until_ready
from .node import Node
from .parties import Party, Serving
from .processes import CannotConfine, ZygoteDied
from .protection import Bind, Plan
from .server import Server
from .supervisor import Supervisor

FILES = (("data.mdb", False), ("lock.mdb", True))
"""What a reader reaches of the store's folder, and whether it may write it."""
ROUND = 1.0
"""Seconds between two looks at the load."""
BUSY_ROUNDS = 2
IDLE_ROUNDS = 60
IDLE_SHARE = 4
"""The share, one part of so many, of what starts a reader below which one is too many."""
END_WITHIN = 2.0
"""Seconds for a reader to end by itself; it has nothing that must be saved."""
CRASH_WAIT = 1.0
"""Seconds until a reader that died is followed by another; doubled for each that died within a minute, to a minute."""


class Demand:
    """How many readers there should be, from what is read."""

    def __init__(self, most: int, above: int) -> None:
        """`most`: readers; `above`: reads a second of one process that are too many."""
        self.most = most
        self.above = above
        self.wanted = 0
        self._busy = self._idle = 0

    def look(self, reads: float) -> int:
        """How many readers there should be after a round with so many reads a second, of all processes together."""
        self._busy = self._busy + 1 if reads > self.above * max(1, self.wanted) else 0
        enough = self.above / IDLE_SHARE * max(1, self.wanted - 1)
        self._idle = self._idle + 1 if self.wanted and reads < enough else 0
        if self._busy >= BUSY_ROUNDS and self.wanted < self.most:
            self.wanted += 1
            self._busy = 0
        elif self._idle >= IDLE_ROUNDS:
            self.wanted -= 1
            self._idle = 0
        return self.wanted


class Reader:
    """One reader process, and what was made for those who read there."""

    def __init__(self, serving: Serving, place: str) -> None:
        self.serving = serving
        self.place = place
        """Its control group, where the image gives readers a slice. A later reader takes it up again."""
        self.twins: dict[tuple[int, int], Capability] = {}
        """By party and capability, its twin."""
        self.left: list[Capability] = []
        """Twins of parties that read elsewhere now: no channel leads to them."""
        self.served = 0
        """Calls, at the last look."""

    @property
    def name(self) -> str:
        return self.serving.reader

    def parties(self) -> set[int]:
        """Numbers of those who read here."""
        return {number for number, _ in self.twins}


class Readers:
    def __init__(
        self, node: Node, events: Events, authority: Authority, launching: Launching, supervisor: Supervisor,
        holders: Holders,
    ) -> None:  # fmt: skip
        self._node = node
        self._events = events
        self._authority = authority
        self._launching = launching
        self._supervisor = supervisor
        self._holders = holders
        self._running: list[Reader] = []
        self._all: dict[str, Reader] = {}
        """With those that are ending."""
        self._numbers = itertools.count(1)
        self._changing = trio.Lock()
        self._closed = False
        self._died: list[float] = []
        """When readers died, lately."""
        self._not_before = 0.0
        self._writer = 0, 0, 0
        """The writer's number, its calls and its reads, at the last look."""

    def processes(self) -> Iterator[Serving]:
        """Reader processes that serve."""
        return (reader.serving for reader in list(self._running))

    # as load asks -------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Have as many readers as the load asks for. Runs as long as the kernel."""
        asked = self._node.servers[STORE].spec.readers
        if not asked.most:
            return
        demand = Demand(asked.most, asked.above)
        before = trio.current_time()
        while True:
            came = await self._holders.come(within=ROUND)
            now = trio.current_time()
            if not came:
                demand.look(await self._reads(asked.above) / (now - before))
                before = now
            async with self._changing:
                await self._have(demand.wanted)

    async def _reads(self, above: int) -> int:
        """What was read since the last look, in all processes. The writer is asked only if it had much to do: it must not
        be woken for nothing."""
        total = 0
        for reader in self._running:
            served = reader.serving.status.signs().served
            total += served - reader.served
            reader.served = served
        writer = self._node.serving(STORE)
        if writer is None:
            return total
        number, calls, reads = self._writer
        if number != writer.number:
            calls = reads = 0
        served = writer.status.signs().served
        if served - calls > above / IDLE_SHARE:
            try:
                now = (await self._node.store.state.statistics())["reads"]
            except AtollError:
                return total
            total += min(served - calls, now - reads)
            reads = now
        self._writer = writer.number, served, reads
        return total

    async def _have(self, wanted: int) -> None:
        self._spread()
        while len(self._running) > wanted:
            await self._end(self._running[-1], "there is little to read")
        server = self._node.servers[STORE]
        now = trio.current_time()
        if len(self._running) < wanted and now >= self._not_before and server.state == "serving":
            try:
                await self._start(server)
            except (AtollError, CannotConfine, ZygoteDied, OSError) as error:
                self._events.event("reader", STORE, f"a reader could not be started: {error}")
                self._wait_longer()

    def _wait_longer(self) -> None:
        now = trio.current_time()
        self._died = [when for when in self._died if now - when < 60] + [now]
        self._not_before = now + min(60.0, CRASH_WAIT * 2 ** (len(self._died) - 1))

    # one reader's life --------------------------------------------------------------------------------------

    async def _start(self, server: Server) -> None:
        node = self._node
        if self._closed:
            return
        name = _named(next(self._numbers))
        taken = {reader.place for reader in self._all.values()}
        place = next(each for each in map(_named, itertools.count(1)) if each not in taken)
        plan = self._plan(server)
        serving = await self._launching.launch(
            server, server.version, plan, self.attend, reader=name, place=place
        )
        if serving.gone:
            raise StartFailed(server=name, step="start", reason="it ended at once")
        self._all[name] = reader = Reader(serving, place)
        node.reading[name] = serving
        if self._closed and serving.process is not None:
            serving.process.kill()
        await until_ready(server, serving)
        self._running.append(reader)
        self._events.event("reader", STORE, f"{name} reads beside the writer")
        self._spread()

    def _plan(self, server: Server) -> Plan:
        """The writer's protection, with less of the store's folder in reach."""
        node, spec = self._node, server.spec
        folder = needs.store_folder(node)
        reached = tuple(Bind(source=str(folder / name), writable=writable) for name, writable in FILES)
        # Where nothing else keeps the file from being written: the writer's user is the reader's.
        add = ("landlock",) if node.abilities.landlock and "landlock" not in spec.drop else ()
        return self._launching.protection(
            server, spec.level, server.version, reached=reached, add=add, reader=True
        )

    async def _end(self, reader: Reader, reason: str) -> None:
        """Let a reader go; those who read there go on at another one, or at the writer."""
        self._running.remove(reader)
        self._detach(reader)
        await ending.end(reader.serving, reason, self._node.clock, END_WITHIN)
        self._events.event("reader", STORE, f"{reader.name} has ended: {reason}")

    async def attend(self, server: Server, serving: Serving) -> None:
        """Wait for a reader's end, whatever brought it, and tidy up after it."""
        node = self._node
        exit = await ending.has_ended(serving)
        reader = self._all.get(serving.reader)
        if reader is not None:
            if reader in self._running:
                self._running.remove(reader)
            self._detach(reader)
            # Only now: a twin that ended before its reader could be told from one that was revoked by nobody.
            ended = node.tree.let_go(twin.id for twin in (*reader.twins.values(), *reader.left))
            self._authority.clear(ended)
            self._events.capabilities((), ended)
            if server.spec.readers.slice:  # the next one is at its place
                await self._supervisor.end_all_in(node.group(server, reader.place), reader.name)
            del self._all[serving.reader], node.reading[serving.reader]
        self._supervisor.ended_reader(server, serving, exit)
        if not serving.expected_end and not node.down.is_set():
            self._wait_longer()
            self._events.event("reader", STORE, f"{serving.reader} {exit}: its callers go on at the writer")

    def _detach(self, reader: Reader) -> None:
        """Nobody reads there any more."""
        node = self._node
        for number, id in reader.twins:
            port = self._holders.ports.get(number, {}).get(id)
            party = node.parties.get(number)
            if port is not None and party is not None and not party.gone:
                party.send(_read_at(port, None))
        for channel in node.channels.of_server(reader.name):
            channel.close_for_client()
            self._authority.disconnect(channel, f"{reader.name} ends")

    @asynccontextmanager
    async def aside(self, server: Server) -> AsyncIterator[None]:
        """While the store is swapped there are no readers; afterwards there are as many as before."""
        if server.name != STORE:
            yield
            return
        async with self._changing:
            while self._running:  # one may die while another ends
                await self._end(self._running[-1], "the store is swapped")
            try:
                yield
            finally:
                self._holders.spread_again()

    async def close(self) -> None:
        """The node goes down: every reader ends at once."""
        self._closed = True
        for serving in [each for each in self._node.processes_of(STORE) if each.reader]:
            await ending.end_now(serving, "the node was shut down")

    # who reads where ----------------------------------------------------------------------------------------

    def _spread(self) -> None:
        """See to it that each holder of a keyspace reads at a reader, and each reader has its share of them."""
        node = self._node
        for number, offered in list(self._holders.ports.items()):
            party = node.parties.get(number)
            if party is None or party.gone:
                del self._holders.ports[number]
                continue
            for id in [id for id in offered if not node.tree.has(id)]:
                del offered[id]
            if self._running and offered:
                reader = self._reader_of(party)
                for id, port in offered.items():
                    self._give(reader, party, node.tree.get(id), port)

    def _reader_of(self, party: Party) -> Reader:
        """Where a party reads. One moves to another reader when that has less to do by two parties or more."""
        load = {reader.name: len(reader.parties()) for reader in self._running}
        least = min(self._running, key=lambda reader: load[reader.name])
        for reader in self._running:
            if party.number in reader.parties():
                if load[reader.name] - load[least.name] < 2:
                    return reader
                self._leave(reader, party)
        return least

    def _leave(self, reader: Reader, party: Party) -> None:
        """A party reads elsewhere from now on."""
        channel = self._node.channels.between(party, reader.name)
        for key in [key for key in reader.twins if key[0] == party.number]:
            port = self._holders.ports.get(party.number, {}).get(key[1])
            if port is not None:
                party.send(_read_at(port, None))
            reader.left.append(reader.twins.pop(key))
        if channel is not None:
            channel.close_for_client()
            self._authority.disconnect(channel, "its client reads elsewhere")

    def _give(self, reader: Reader, party: Party, capability: Capability, port: Port) -> None:
        node, key = self._node, (party.number, capability.id)
        if key in reader.twins:
            return
        connected = node.channels.between(party, reader.name) is not None
        connecting: Cost = {} if connected else CHANNEL
        if not node.ledger.has_room(party.account, {"capabilities": 1, **connecting}):
            return  # it keeps to the writer, and asked for nothing that could be refused
        rights = capability.rights & READING
        try:
            channel = self._authority.connect(party, reader.name)
            twin = node.tree.derive(capability.id, by=capability.holder, rights=rights, account=party.account)
        except (QuotaExceeded, OSError):
            return  # its account has no room for it: it keeps to the writer
        try:
            self._authority.enter(twin, channel)
        except OSError:  # the table cannot grow now: it does so, too
            self._authority.clear(node.tree.revoke(twin.id, by=None))
            return
        party.session.add(twin.id)
        reader.twins[key] = twin
        self._events.capabilities((twin,), None)
        party.send(_read_at(port, self._authority.port(twin, channel)))


def _named(number: int) -> str:
    return f"{STORE}.reader-{number}"


def _read_at(of: Port, port: Port | None) -> ReadAt:
    return ReadAt(channel=of.channel, slot=of.slot, generation=of.generation, port=port)
