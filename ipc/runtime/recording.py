"""The tape of a process whose calls are recorded: what its handlers are given goes on it, and it is put away. (Raw cffi.)

Calls and answers are recorded by the C loop. The rest is noted here, by what stands in place of a handler's clock, its
chance, its needs (`witness.py`): only in processes that the kernel gave a tape.
"""

import mmap
import threading
from collections.abc import Callable

import msgspec
import trio

from atoll.ipc import chance, clock
from atoll.ipc.context import INLINE, Call, Log, SystemClock, current_or_none
from atoll.ipc.errors import AtollError, NotAllowed
from atoll.ipc.serve import Endpoint
from atoll.ipc.system import control
from atoll.ipc.system.calls import (
    CHANCE,
    DOUBLE,
    MONOTONIC,
    NOW,
    VIEW,
    WHOLE,
    ChunkRow,
    Method,
    NeedThen,
    OpeningRow,
    Viewed,
)
from atoll.ipc.system.state import State, Write
from atoll.native import ffi, lib

from .loop import ServeLoop

GATHER = 0.25
"""Seconds in which records are gathered into one row."""
CHUNK = 512 << 10
"""Bytes of a row at most."""
RATE = 8 << 20
"""Bytes a second that are put away at most, where calls may be dropped: the store is others', too."""
RETRY = 0.5
"""Seconds until a row that the store did not take is given to it again."""

_encode = msgspec.msgpack.Encoder().encode


class Recorder:
    """Of one process. `need`: the capability on the keyspace of its calls."""

    def __init__(self, told: control.Recording, memory: int, start: control.Start, state: State) -> None:
        """`memory`: the tape's descriptor, which may be closed afterwards."""
        self._map = mmap.mmap(memory, lib.atoll_tape_memory(told.size))
        self._view = memoryview(self._map)[mmap.PAGESIZE :]
        self._size = told.size
        self.c = lib.atoll_tape_new(
            ffi.from_buffer(self._map), told.size, told.payloads, told.every, told.full
        )
        if self.c == ffi.NULL:
            raise OSError(ffi.errno, "the tape of its calls could not be mapped")
        self.payloads = told.payloads
        self._full = told.full
        self._start = start
        self._state = state
        self._home = threading.get_ident()
        self._some, self._much = trio.Event(), trio.Event()
        self._loop: ServeLoop | None = None
        self.starting = True
        """Nothing is served yet: what is asked now the server's `start` asks."""

    # what the loop says -----------------------------------------------------------------------------------------------

    def record(self, loop: ServeLoop) -> None:
        """Have a loop record its calls here."""
        self._loop = loop
        loop.tape = self._due
        lib.atoll_loop_tape(loop.c, self.c)

    def _due(self, what: int) -> None:
        """The tape has something to put away. 2: and no room for a call."""
        if what == 2 and self._loop is not None:
            self._loop.room(False)
        if self._some.is_set() or what == 2:
            self._much.set()
        self._some.set()

    # notes ------------------------------------------------------------------------------------------------------------

    def witness(self) -> None:
        """Note what calls are given of time and chance, in this whole process."""
        if self.payloads:
            INLINE.clock = _Clock(self)
            chance.follow(_noting(self, chance.token))

    def note(self, call: Call | None, what: int, payload: bytes) -> None:
        """Of the call in hand; of the process itself where there is none and it starts up."""
        if threading.get_ident() != self._home:
            return
        if call is not None and call.request:
            lib.atoll_tape_note(self.c, call.client, call.request, what, payload, len(payload))
        elif call is None and self.starting:
            lib.atoll_tape_note(self.c, 0, 0, what, payload, len(payload))

    def note_of(self, channel: int, request: int, what: int, payload: bytes) -> None:
        """Of a call that is not in hand any more, or of the process (0, 0)."""
        if threading.get_ident() == self._home:
            lib.atoll_tape_note(self.c, channel, request, what, payload, len(payload))

    # putting away -----------------------------------------------------------------------------------------------------

    async def open(
        self,
        endpoint: Endpoint,
        rights: list[tuple[str, ...]],
        views: dict[str, int],
        took_over: bytes | None,
    ) -> None:
        """Say what process this is, before it serves: what it leaves is of use with that alone. `views`: by need, how far
        its local view has come. What it took over is payload as well: somebody's words may be in it."""
        start = self._start
        took_over = took_over if self.payloads else None
        kept = took_over if took_over is not None and len(took_over) <= WHOLE else None
        kinds = {
            need: type(bound).__name__.removesuffix("Need").lower() for need, bound in start.needs.items()
        }
        row = OpeningRow(
            boot=start.boot, process=start.process, server=start.server, package=start.package,
            version=start.version, payloads=self.payloads, began=int(clock.wall() * 1e9),
            methods=tuple(
                Method(
                    entry.spec.number, entry.spec.label, entry.spec.kind,
                    endpoint.workflows is not None and endpoint.workflows.has(entry.spec.label),
                )
                for entry in endpoint.table
            ),
            rights=tuple(rights),
            needs={
                need: NeedThen(
                    kind=kinds[need],  # type: ignore[arg-type]
                    config=bytes(bound.value) if isinstance(bound, control.ConfigNeed) else b"",
                )
                for need, bound in start.needs.items()
                if need != control.CALLS
            },
            keyspaces=start.recording.keyspaces if start.recording is not None else {},
            took_over=kept,
            left_out=0 if took_over is None or kept is not None else len(took_over),
        )  # fmt: skip
        await self._surely(row)
        for need, revision in views.items():
            self.note_of(0, 0, VIEW, _encode(Viewed(need, revision)))
        self.starting = False

    async def run(self) -> None:
        """Put the tape away, as it fills. Runs as long as the server."""
        while True:
            await self._some.wait()
            with trio.move_on_after(GATHER):
                await self._much.wait()
            self._some, self._much = trio.Event(), trio.Event()
            began, size = clock.monotonic(), await self.put_away()
            if not self._full:
                await trio.sleep(max(0.0, began + size / RATE - clock.monotonic()))

    async def put_away(self) -> int:
        """All that is on the tape now; how many bytes."""
        first, end = lib.atoll_tape_kept(self.c), lib.atoll_tape_written(self.c)
        while (begin := lib.atoll_tape_kept(self.c)) < end:
            upto = lib.atoll_tape_cut(self.c, CHUNK)
            row = self._chunk(begin, upto)
            await self._surely(row)
            lib.atoll_tape_keep(self.c, upto)
            if self._full and self._loop is not None:
                self._loop.room(True)
        return int(end - first)

    def _chunk(self, begin: int, end: int) -> ChunkRow:
        at, length = begin % self._size, end - begin
        first = self._view[at : min(at + length, self._size)]
        tape = bytes(first) + bytes(self._view[: length - len(first)])
        now = int(clock.wall() * 1e9)
        return ChunkRow(
            boot=self._start.boot, process=self._start.process, position=begin,
            wall=now - clock.monotonic_ns(), time=now, dropped=lib.atoll_tape_dropped(self.c), tape=tape,
        )  # fmt: skip

    async def _surely(self, row: OpeningRow | ChunkRow) -> None:
        """Add it, as soon as the store takes it. A row that comes twice is the same row."""
        while True:
            try:
                await self._state.append([Write(row.key(), row.value())], note="calls")
                return
            except NotAllowed as error:
                # Somebody was there before, in this process's name: the kernel has recorded what it refused.
                Log().error("calls of this process are not recorded", reason=str(error))
                return
            except AtollError as error:
                Log().debug("recorded calls wait for the store", reason=str(error))
            await trio.sleep(RETRY)


class _Clock(SystemClock):
    """The host's, and each time that a call asked for is noted."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def time(self) -> float:
        now = super().time()
        self._recorder.note(current_or_none(), NOW, DOUBLE.pack(now))
        return now

    def monotonic(self) -> float:
        now = super().monotonic()
        self._recorder.note(current_or_none(), MONOTONIC, DOUBLE.pack(now))
        return now


def _noting(recorder: Recorder, source: Callable[[int], bytes]) -> Callable[[int], bytes]:
    def token(size: int) -> bytes:
        drawn = source(size)
        recorder.note(current_or_none(), CHANCE, drawn)
        return drawn

    return token


__all__ = ["Recorder"]
