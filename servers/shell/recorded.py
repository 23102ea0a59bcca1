"""What servers recorded of their calls, as this program may read it: found by id, or the last of them."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
from msgspec import Struct

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.system import records
from atoll.ipc.system.calls import PREFIX, Asked, ChunkRow, OpeningRow, Recorded, Tape, keyspace_of, read
from atoll.ipc.system.records import AnyRow, ChannelRow, after, decode
from atoll.ipc.system.state import Item, State

from .rows import latest, pages
from .when import DIGITS

PAGE = 32
"""Chunks that are asked for at a time: each is half a MiB at most."""


class Process(Struct, frozen=True, kw_only=True):
    """A process whose calls are recorded, with the keyspace they are in."""

    server: str
    """Whose record it is in; what the rows say of it is its own word."""
    opening: OpeningRow
    state: State
    upto: int | None = None
    """What was put away after this revision is left out."""

    def method(self, call: Recorded) -> str:
        named = (method.label for method in self.opening.methods if method.number == call.method)
        return next(named, f"method {call.method:#010x}")

    def chunks(self) -> Iterator[ChunkRow]:
        """Its tape, from the beginning."""
        start = ChunkRow.key_of(self.opening.boot, self.opening.process)
        for items in pages(self.state, start, after(start), most=PAGE):
            yield from _decoded(ChunkRow, items, self.upto)

    def last_chunks(self) -> Iterator[ChunkRow]:
        """Its tape, from the end."""
        start = ChunkRow.key_of(self.opening.boot, self.opening.process)
        end = after(start)
        while True:
            page = self.state.range.now(start, end, PAGE, reverse=True)
            yield from _decoded(ChunkRow, page.items, self.upto)
            if not page.more or not page.items:
                return
            end = page.items[-1].key

    def calls(self) -> Iterator[Recorded]:
        return read(self.chunks())

    def start(self) -> list[Asked]:
        """What its server's `start` asked for."""
        tape = Tape()
        for chunk in self.chunks():
            for _ in tape.calls(chunk):
                return tape.start  # it was over before the first call
        return tape.start


class Records:
    """Of a node, up to a revision (None: to now). Which keyspaces it can read the node says."""

    def __init__(self, attached: Attached, upto: int | None = None) -> None:
        self._attached = attached
        self._upto = upto
        self._kernel: State | None = None
        self._clients: dict[tuple[int, int], str] = {}

    @property
    def kernel(self) -> State:
        """The kernel's own rows."""
        if self._kernel is None:
            self._kernel = self._attached.keyspace(records.KEYSPACE, ["read", "history"])
        return self._kernel

    def servers(self) -> list[str]:
        """Those whose calls are recorded, or were."""
        names = self._attached.kernel.keyspaces.now()
        return [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]

    def processes(self, server: str, boot: int | None = None) -> list[Process]:
        """In order. Raises `NotFound` where no call of such a server was recorded."""
        if server not in self.servers():
            raise NotFound.among("server whose calls are recorded, called", server, self.servers())
        state = self._attached.keyspace(keyspace_of(server), ["read"])
        prefix = OpeningRow.key_of() if boot is None else OpeningRow.key_of(boot)
        return [
            Process(server=server, opening=row, state=state, upto=self._upto)
            for row in _all(state, prefix, self._upto)
        ]

    def all(self, server: str) -> Iterator[tuple[Process, Recorded]]:
        """Every call of a server."""
        for process in self.processes(server):
            for call in read(process.chunks(), notes=False):
                yield process, call

    def dropped(self, server: str) -> int:
        """Calls of its last process that are not recorded, since they came too fast."""
        last = next((process.last_chunks() for process in reversed(self.processes(server))), iter(()))
        return next((chunk.dropped for chunk in last), 0)

    def last(
        self, server: str, most: int, wanted: Callable[[Process, Recorded], bool], since: int = 0
    ) -> Iterator[tuple[Process, Recorded]]:
        """The last calls of a server that are wanted, the last one first; since a time in ns."""
        for process in reversed(self.processes(server)):
            found = _last(process, most, wanted, since)
            yield from ((process, call) for call in found)
            most -= len(found)
            if most <= 0:
                return

    def find(self, id: str) -> tuple[Process, Recorded]:
        """A call by its id. Raises `BadRequest`, `NotFound`."""
        boot, channel, request = _parts(id)
        row = latest(self.kernel, ChannelRow.key_of(boot, channel))
        if row is None:
            raise NotFound("channel of the call", id, see="atoll calls")
        server = decode(ChannelRow, row.value or b"").server
        known = self.processes(server, boot)
        for process in reversed(known):
            for call in process.calls():
                if (call.channel, call.request) == (channel, request):
                    return process, call
        raise NotFound(f"recorded call of {server}", id, see=f"atoll calls --server {server}")

    def client(self, call: Recorded, name: Callable[[State, int, int], str]) -> str:
        """Who made it, by what `name` makes of a channel."""
        key = call.boot, call.channel
        if key not in self._clients:
            self._clients[key] = name(self.kernel, *key)
        return self._clients[key]


def _parts(id: str) -> tuple[int, int, int]:
    parts = id.split(".")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) <= DIGITS for part in parts):
        raise BadRequest(
            where="CALL", expected="the id of a call, as `atoll calls` prints it: 2.14.381", got=id
        )
    return int(parts[0]), int(parts[1]), int(parts[2])


def _decoded(table: type[AnyRow], items: list[Item], upto: int | None) -> Iterator[AnyRow]:
    """Rows up to a revision; what a server wrote there that is none is passed over."""
    for item in items:
        if upto is not None and item.revision > upto:
            continue
        with suppress(msgspec.DecodeError):
            yield decode(table, item.value or b"")


def _all(state: State, prefix: bytes, upto: int | None) -> Iterator[OpeningRow]:
    for items in pages(state, prefix, after(prefix)):
        yield from _decoded(OpeningRow, items, upto)


def _last(
    process: Process, most: int, wanted: Callable[[Process, Recorded], bool], since: int
) -> list[Recorded]:
    """As many chunks from the end as have so many calls, read in their order."""
    chunks: list[ChunkRow] = []
    found: list[Recorded] = []
    for chunk in process.last_chunks():
        if chunk.time < since:
            break
        chunks.insert(0, chunk)
        found = [call for call in read(chunks, notes=False) if call.time >= since and wanted(process, call)]
        if len(found) > most:  # one more: the first may lack what came before
            break
    return sorted(found, key=lambda call: call.time)[-most:][::-1]
