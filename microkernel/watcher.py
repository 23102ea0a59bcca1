"""The watcher: a small process that answers refused system calls and says who was refused what, how often.

A filter that asks (`notify`) leaves the caller waiting in the kernel until someone answers at the filter's
listener. The answer is always EPERM: nothing is ever done on a caller's behalf, and its memory is not read,
so there is nothing to race for. What is known is the call's number and its arguments. Refusals are
coalesced per (process, call); the first is told at once, the rest with counts once a second and when the
process ends. A process that floods is killed.

The listener lives here only. If the watcher dies, waiting calls fail with ENOSYS and nobody hangs; what was
refused after that is unseen until the process is started again, and the kernel says so.
"""

import array
import ctypes
import fcntl
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

RECEIVE, ANSWER = 0xC0502100, 0xC0182101
"""SECCOMP_IOCTL_NOTIF_RECV and _SEND."""
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
RESPONSE = struct.Struct("=QqiI")
EPERM = 1
TOLD_EVERY = 1.0
"""Seconds between reports of counts."""
FLOOD = 20_000
"""Refusals of one process between two reports that end it."""
SOCKET = 3
PACKET_LIMIT = 64 * 1024


class Watch(Struct, frozen=True, kw_only=True, tag=True):
    """To the watcher: a process to answer; its listener and its pidfd ride along."""

    server: str
    process: int
    """The kernel's number of it."""


class Refusal(Struct, frozen=True, kw_only=True, tag=True):
    """A system call was refused `count` times since the last report; `arguments` are the last one's."""

    server: str
    process: int
    call: int
    arguments: tuple[int, ...]
    count: int


class Flooded(Struct, frozen=True, kw_only=True, tag=True):
    """A process was killed: it made `count` refused calls between two reports."""

    server: str
    process: int
    count: int


Report = Refusal | Flooded
encode = msgspec.msgpack.Encoder().encode
to_watcher = msgspec.msgpack.Decoder(Watch)
from_watcher = msgspec.msgpack.Decoder(Report)


class Watched:
    """One process under watch. Owns listener and pidfd."""

    def __init__(self, watch: Watch, listener: int, pidfd: int) -> None:
        self.watch = watch
        self.listener = listener
        self.pidfd = pidfd
        self.told: set[int] = set()
        """Calls that were reported once; from then on they are counted."""
        self.counts: Counter[int] = Counter()
        self.arguments: dict[int, tuple[int, ...]] = {}
        self.since_report = 0
        self.flooded = False

    def close(self) -> None:
        os.close(self.listener)
        os.close(self.pidfd)


class Watcher:
    """The watcher process's loop."""

    def __init__(self, kernel: socket.socket, flood: int) -> None:
        self.kernel = kernel
        self.flood = flood
        self.ready = selectors.DefaultSelector()
        self.ready.register(kernel, selectors.EVENT_READ)
        self.watched: dict[int, Watched] = {}

    def serve(self) -> None:
        """Answer until the kernel closes its end."""
        due = time.monotonic() + TOLD_EVERY
        while True:
            untold = any(watched.since_report for watched in self.watched.values())
            for key, _ in self.ready.select(max(0.0, due - time.monotonic()) if untold else None):
                if key.fileobj is self.kernel:
                    if not self._take():
                        return
                else:
                    self._answer(self.watched[key.fd])
            if time.monotonic() >= due:
                for watched in self.watched.values():
                    self._report(watched)
                due = time.monotonic() + TOLD_EVERY

    def _take(self) -> bool:
        room = socket.CMSG_SPACE(8)
        try:
            packet, control, _, _ = self.kernel.recvmsg(PACKET_LIMIT, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # it closed with reports unread
            return False
        if not packet:
            return False
        received = array.array("i")
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(data)
        listener, pidfd = received
        self.watched[listener] = Watched(to_watcher.decode(packet), listener, pidfd)
        self.ready.register(listener, selectors.EVENT_READ)
        return True

    def _answer(self, watched: Watched) -> None:
        events = _events(watched.listener)
        if not events & select.POLLIN:  # to receive now would block
            if events & select.POLLHUP:
                self._forget(watched)
            return
        room = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(watched.listener, RECEIVE, room)
        except FileNotFoundError:  # the caller was killed meanwhile
            return
        identity, _, _, call, _, _, *arguments = NOTIFICATION.unpack(room)
        with suppress(FileNotFoundError):  # killed before the answer
            fcntl.ioctl(watched.listener, ANSWER, RESPONSE.pack(identity, 0, -EPERM, 0))
        watched.counts[call] += 1
        watched.arguments[call] = tuple(arguments)
        watched.since_report += 1
        if call not in watched.told:
            watched.told.add(call)
            self._report(watched, only=call)
        if watched.since_report > self.flood and not watched.flooded:
            watched.flooded = True
            signal.pidfd_send_signal(watched.pidfd, signal.SIGKILL)
            self._tell(
                Flooded(
                    server=watched.watch.server, process=watched.watch.process, count=watched.since_report
                )
            )

    def _report(self, watched: Watched, only: int | None = None) -> None:
        calls = list(watched.counts) if only is None else [only]
        for call in calls:
            self._tell(
                Refusal(
                    server=watched.watch.server,
                    process=watched.watch.process,
                    call=call,
                    arguments=watched.arguments[call],
                    count=watched.counts.pop(call),
                )
            )
        if only is None:
            watched.since_report = 0

    def _tell(self, report: Report) -> None:
        with suppress(BrokenPipeError):  # the kernel has closed; the loop is about to see it
            self.kernel.sendmsg([encode(report)])

    def _forget(self, watched: Watched) -> None:
        self._report(watched)
        self.ready.unregister(watched.listener)
        del self.watched[watched.listener]
        watched.close()


def _events(listener: int) -> int:
    """POLLIN: someone waits for an answer. POLLHUP: no process is left under this filter."""
    look = select.poll()
    look.register(listener, select.POLLIN)
    return next((events for _, events in look.poll(0)), 0)


def main(arguments: Sequence[str]) -> None:
    """`MARKER [FLOOD]`, with the kernel's socket as descriptor 3."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.set_inheritable(SOCKET, False)
    Watcher(socket.socket(fileno=SOCKET), int(arguments[1]) if len(arguments) > 1 else FLOOD).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
