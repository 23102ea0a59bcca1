"""Forks server processes from a process that was itself forked before the test had threads, trio or channels.

A server process runs the SDK's own `launch.main` on its end of a control socket; the test holds the kernel's end.
"""

import contextlib
import os
import signal
import socket
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Any

from atoll.ipc.runtime import launch, shares, trio_inside
from atoll.ipc.serve import Serves

from .forked import die_with_parent

PACKAGE = "served"
_ANYWHERE = -1


class Nest:
    """`versions`: the server classes it can start, by index. Make it outside any event loop."""

    def __init__(
        self, versions: Sequence[type[Serves[Any]]], in_hand: int | None = None, in_trio: bool = False
    ) -> None:
        self._own, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._own.close()
            code = 1
            try:
                die_with_parent(parent)
                if in_hand is not None:
                    shares.IN_HAND_MOST = in_hand
                if in_trio:
                    trio_inside.descriptor = lambda: None  # as in a trio that keeps its epoll elsewhere
                _hatch(child, versions)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        child.close()

    def start(self, version: int, control: socket.socket, core: int | None) -> int:
        """Start a server; its pid. `control` is its end, closed here."""
        socket.send_fds(
            self._own, [b"start %d %d" % (version, _ANYWHERE if core is None else core)], [control.fileno()]
        )
        control.close()
        return int(self._own.recv(64))

    def wait(self, pid: int) -> int:
        """Wait for the end of a server: its exit code, or minus the signal that ended it."""
        self._own.send(b"wait %d" % pid)
        return int(self._own.recv(64))

    def close(self) -> None:
        """End what is left."""
        self._own.close()
        os.waitpid(self._pid, 0)


def _hatch(orders: socket.socket, versions: Sequence[type[Serves[Any]]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    alive: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, 64, 1)
        if not data:
            break
        order, *numbers = data.split()
        if order == b"start":
            version, core = map(int, numbers)
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                die_with_parent(parent)
                orders.close()
                _serve(versions[version], descriptors[0], core)
            os.close(descriptors[0])
            alive.add(pid)
            orders.send(b"%d" % pid)
        else:
            pid = int(numbers[0])
            _, status = os.waitpid(pid, 0)
            alive.discard(pid)
            orders.send(b"%d" % os.waitstatus_to_exitcode(status))
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(server: type[Serves[Any]], control: int, core: int) -> None:
    code = 1
    try:
        if core != _ANYWHERE:
            os.sched_setaffinity(0, {core})
        # The launcher imports `PACKAGE.server`: the class stands there as if it had come from a version's folder.
        module = types.ModuleType(f"{PACKAGE}.server")
        module.Server = server  # type: ignore[attr-defined]
        sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        sys.modules[module.__name__] = module
        launch.main(control)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
