"""Worker processes: where a server's CPU-bound work goes, since a busy Python thread beside the loop ruins every latency.

    async def start(self) -> None:
        self.workers = Workers(2)
    @Digest.of.serve
    async def of(self, data: bytes) -> bytes:
        return await self.workers.run(compute, data)

Workers are forks of the server, made when `Workers` is, with its confinement: they hold no channel and no capability, and
end with it. The image must grant the server the group `workers` (`allow`), since a confined process makes none otherwise.
Functions are named by module and qualified name; arguments and results are pickled, which is safe here because both ends are
one program with one set of rights.
"""

import ctypes
import importlib
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import trio

from atoll.ipc import discretion
from atoll.ipc.errors import InternalFault, Overloaded, PeerDied

from . import resident

P = ParamSpec("P")
R = TypeVar("R")

_PR_SET_PDEATHSIG = 1
_length = struct.Struct("<Q")


class Workers:
    """`count` worker processes; work waits for a free one. Make it in `start()`, close it in `stop()`."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"a server has at least one worker, not {count}")
        self._send, self._free = trio.open_memory_channel[_Worker | None](count)
        """None in place of one that has ended: who takes it makes another, since none may be had at the moment."""
        self._closed = False
        self._all = [_Worker() for _ in range(count)]
        for worker in self._all:
            self._send.send_nowait(worker)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it in a free worker. What it raises comes as the text of an `InternalFault` (of a server with a private
        keyspace its type alone); `PeerDied` if the worker ended over it, `Overloaded` if it could not be replaced yet.

        A cancelled call ends its worker: there is no other way to stop what it computes.
        """
        name = f"{function.__module__}:{function.__qualname__}"
        worker = await self._free.receive()
        whole = False
        try:
            worker = worker or self._another(name)
            result = await worker.ask(name, args, kwargs)
            whole = True
        finally:
            if not whole and worker in self._all:  # else all were ended meanwhile
                self._all.remove(worker)
                worker.end()
            self._send.send_nowait(worker if whole else None)
        if isinstance(result, _Raised):
            raise InternalFault(function.__qualname__, result.told)
        return result  # type: ignore[no-any-return]

    def _another(self, name: str) -> "_Worker":
        if self._closed:
            raise PeerDied(name)
        try:
            worker = _Worker()
        except OSError as error:
            raise Overloaded(name) from error
        self._all.append(worker)
        return worker

    def close(self) -> None:
        """End them all, with what they have in hand."""
        self._closed = True
        for worker in self._all:
            worker.end()
        self._all.clear()


class _Raised:
    """What a worker sends in place of a result."""

    def __init__(self, told: str) -> None:
        self.told = told


class _Worker:
    """One process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if self.pid == 0:
            ours.close()
            _serve(theirs, parent)
        theirs.close()
        self._socket = trio.socket.from_stdlib_socket(ours)

    async def ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        data = pickle.dumps((name, args, kwargs))
        try:
            for part in (_length.pack(len(data)), data):
                view = memoryview(part)
                while view:
                    view = view[await self._socket.send(view) :]
            (size,) = _length.unpack(await self._read(_length.size))
            return pickle.loads(await self._read(size))
        except (OSError, trio.ClosedResourceError):  # it ended, or was ended
            raise PeerDied(name) from None

    async def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            part = await self._socket.recv(min(size - len(found), 1 << 20))
            if not part:
                raise PeerDied("a worker process")
            found += part
        return bytes(found)

    def end(self) -> None:
        self._socket.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _serve(end: socket.socket, parent: int) -> NoReturn:
    """The worker: one piece of work after the other until the server closes its end or dies."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if not resident.said():
            resident.keep()  # a fork inherits no lock
        if os.getppid() == parent:
            while (head := _exactly(end, _length.size)) is not None:
                (size,) = _length.unpack(head)
                answer = _work(_exactly(end, size) or b"")
                end.sendall(_length.pack(len(answer)) + answer)
            status = 0
    finally:
        os._exit(status)


def _exactly(end: socket.socket, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        part = end.recv(min(size - len(found), 1 << 20))
        if not part:
            return None
        found += part
    return bytes(found)


def _work(data: bytes) -> bytes:
    try:
        name, args, kwargs = pickle.loads(data)
        module, _, path = name.partition(":")
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        return pickle.dumps(found(*args, **kwargs))
    except Exception as error:
        print(discretion.trace(error), file=sys.stderr)
        return pickle.dumps(_Raised(discretion.told(error)))
