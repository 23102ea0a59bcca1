"""What servers say: lines of their log, their standard output and error. A bounded ring in memory, then rows.

A server that writes faster than rows can be made loses lines, which the log says with their number, and is read
slowly: nothing a server writes can hold up the kernel, or push out what others said. Until the store serves, lines go
to a file in the node's folder as well.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import suppress

import trio

from atoll.ipc.system import records
from atoll.ipc.system.kernel import LogRow

from .node import Node

KEPT = 10_000
"""Lines in memory, of all servers together."""
UNWRITTEN_MOST = 2_000
"""Lines of one server that wait to become rows; more are counted and dropped."""
ROWS_EVERY = 0.5
"""Seconds between two hand-overs of lines to the store."""
LINE_MOST = 8192
"""Bytes of one line, and of all its fields; longer ones are cut."""
READ_AT_ONCE = 65536
FLOODED_PAUSE = 0.05
"""Seconds until a server's output is read again that has used its lines up. A pipe that is full makes it wait."""
TURN = 100
"""Lines that are taken before others have their turn."""
LAST_KEPT = 5
HEARD_WITHIN = 0.2
"""Seconds that a crash waits to be told with all that its process said."""


class Logs:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._lines: deque[LogRow] = deque(maxlen=KEPT)
        self._position = 0
        self._more = trio.Event()
        self._unwritten: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._last: dict[str, deque[str]] = {}
        self._pending: list[records.LogRow] = []
        self._open: Counter[int] = Counter()
        """By process, its outputs that are not read to their end."""
        self._closed = trio.Event()
        self._file = os.open(
            node.place.folder / "boot.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )

    def line(
        self, server: str, pid: int, level: str, text: str, fields: dict[str, str] | None = None
    ) -> None:
        """Take one line."""
        if self._unwritten.get(server, 0) >= UNWRITTEN_MOST:
            self._dropped[server] = self._dropped.get(server, 0) + 1
            return
        text = text[:LINE_MOST]
        self._position += 1
        row = LogRow(
            position=self._position, time=self._node.now(), server=server, pid=pid, level=level, text=text,
            fields=_cut(fields or {}),
        )  # fmt: skip
        self._lines.append(row)
        if pid:
            self._last.setdefault(server, deque(maxlen=LAST_KEPT)).append(text)
        self._write(row)
        self._more.set()
        self._more = trio.Event()

    def _write(self, row: LogRow) -> None:
        if not self._node.store.serves:
            with suppress(OSError):  # a full disk: the line is in memory, and the node goes on
                os.write(self._file, f"{row.server} {row.level}: {row.text}\n".encode(errors="replace"))
        self._unwritten[row.server] = self._unwritten.get(row.server, 0) + 1
        self._pending.append(
            records.LogRow(
                server=row.server,
                boot=self._node.boot,
                sequence=row.position,
                time=row.time,
                level=row.level,
                text=row.text,
                fields=row.fields,
            )
        )

    async def keep(self) -> None:
        """Make rows of the lines. Runs as long as the kernel."""
        while True:
            await trio.sleep(ROWS_EVERY)
            if not self._node.store.behind:  # else it would be where lines pile up
                self.write_rows()

    def write_rows(self) -> None:
        """Hand what is there to the store."""
        if not self._node.store.serves:
            return
        self._unwritten.clear()
        dropped, self._dropped = self._dropped, {}
        for server, count in dropped.items():
            self.line(
                server, 0, "warning", f"{count} lines were dropped: it wrote faster than they could be kept"
            )
        if self._pending:
            rows, self._pending = self._pending, []
            self._node.store.later(self._node.store.batch("log lines").put(*rows))

    def last(self, server: str) -> tuple[str, ...]:
        """The last things a server itself said, not the kernel of it."""
        return tuple(self._last.get(server, ()))

    async def read_output(self, server: str, pid: int, level: str, output: int) -> None:
        """Take what a process writes to its standard output or error, line by line, until it closes it."""
        os.set_blocking(output, False)
        self._open[pid] += 1
        rest = b""
        try:
            while True:
                await trio.lowlevel.wait_readable(output)
                try:
                    data = os.read(output, READ_AT_ONCE)
                except (
                    BlockingIOError
                ):  # what was readable bore this number before, and lives on in another process
                    continue
                if self._unwritten.get(server, 0) >= UNWRITTEN_MOST and data:
                    self._dropped[server] = self._dropped.get(server, 0) + data.count(b"\n")
                    rest = b""
                    await trio.sleep(FLOODED_PAUSE)
                    continue
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_MOST or (not data and rest):
                    lines, rest = [*lines, rest], b""
                for number, line in enumerate(lines):
                    self.line(server, pid, level, line.decode(errors="replace"))
                    if number % TURN == TURN - 1:
                        await trio.lowlevel.checkpoint()
                if not data:
                    return
        finally:
            os.close(output)
            self._open[pid] -= 1
            if not self._open[pid]:
                del self._open[pid]
            self._closed.set()
            self._closed = trio.Event()

    async def heard_out(self, pid: int) -> None:
        """Until what a process that has ended wrote is read; or for a moment, if whoever it left behind has its outputs."""
        with trio.move_on_after(HEARD_WITHIN):
            while pid in self._open:
                await self._closed.wait()

    async def follow(self, after: int, server: str, follow: bool) -> AsyncIterator[LogRow]:
        """Lines after a position, of one server or all; without `follow` those that exist."""
        while True:
            more = self._more
            for line in list(self._lines):
                if line.position > after and server in ("", line.server):
                    after = line.position
                    yield line
            if not follow:
                return
            await more.wait()

    def close(self) -> None:
        os.close(self._file)


def _cut(fields: dict[str, str]) -> dict[str, str]:
    """As many of a line's fields as a line may have bytes; the last one cut."""
    left, kept = LINE_MOST, {}
    for name, value in fields.items():
        if left <= len(name):
            break
        kept[name] = value[: left - len(name)]
        left -= len(name) + len(kept[name])
    return kept
