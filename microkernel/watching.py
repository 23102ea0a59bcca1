"""The kernel's end of the watcher: starts it, hands it listeners, receives what was refused to whom."""

import array
import os
import socket
from contextlib import ExitStack

import trio

from .mechanisms import Process
from .processes import execute
from .watcher import FLOOD, PACKET_LIMIT, SOCKET, Flooded, Refusal, Watch, encode, from_watcher


class Watching:
    """One watcher process. Owns its end of the socket; listeners are given away."""

    def __init__(self, marker: str, flood: int = FLOOD) -> None:
        self._marker = marker
        self._flood = flood
        self._socket: trio.socket.SocketType | None = None
        self.process: Process | None = None

    def start(self) -> Process:
        """Execute the watcher, from the main thread. What is handed to it meanwhile waits in the socket. Raises `OSError`;
        then there is none that was not there before."""
        with ExitStack() as made:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            made.callback(ours.close)
            with theirs:
                arguments = (self._marker, str(self._flood))
                self.process = execute("watcher", arguments, {SOCKET: theirs.fileno()})
            made.pop_all()
        self._socket = trio.socket.from_stdlib_socket(ours)
        return self.process

    @property
    def watcher(self) -> Process | None:
        return self.process

    async def watch(self, number: int, process: Process) -> None:
        """Give the listener of `process` (the kernel's `number`) away. Nothing happens if its filter does
        not ask."""
        if process.listener is None or self._socket is None:
            return
        told = encode(Watch(server=process.name, process=number))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [process.listener, process.pidfd]))]
        try:
            await self._socket.sendmsg([told], rights)
        except (BrokenPipeError, ConnectionResetError):
            assert self.process is not None
            await self.renew(self.process)
            await self._socket.sendmsg([told], rights)
        os.close(process.listener)
        process.listener = None

    async def report(self) -> Refusal | Flooded | None:
        """The next report. None once the watcher has ended: what the processes it watched are refused fails with
        ENOSYS, unseen; `renew` starts another one for those to come."""
        if self._socket is None:
            return None
        try:
            packet = await self._socket.recv(PACKET_LIMIT)
        except ConnectionResetError:
            packet = b""
        return from_watcher.decode(packet) if packet else None

    async def renew(self, ended: Process) -> None:
        """Another watcher in the place of one that ended, if that was not done meanwhile. Raises `OSError`; then it is to be
        tried again."""
        await ended.wait()
        before = self._socket
        if self.process is ended and before is not None:
            self.start()
            before.close()
            ended.close()

    async def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self.process is not None:
            await self.process.wait()
            self.process.close()
