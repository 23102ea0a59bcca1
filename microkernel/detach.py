"""`boot --detach`: the node in a process of its own; the command returns once it serves, with what boot said."""

import fcntl
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from .node import Node

LOG = "kernel.log"


class Boots(Protocol):
    """A boot that says what it does (`say`), where its folder is once it owns it (`owned`), and when it serves (`up`)."""

    def __call__(
        self, say: Callable[[str], None], owned: Callable[[Path], None], up: Callable[[Node], None]
    ) -> int: ...


class Background:
    """A boot in the background. Its caller hears what boot says until it serves, or why it does not; what the node
    and its helpers write afterwards goes to a log in its folder."""

    def __init__(self, tell: int) -> None:
        self._tell = tell
        self._caller = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (1, 2)]

    def say(self, line: str) -> None:
        if self._caller:
            with suppress(OSError):  # nobody reads what it says; that it serves is what they wait for
                os.write(self._caller[0], f"{line}\n".encode())
        else:
            print(line, flush=True)

    def owned(self, folder: Path) -> None:
        """From here on nothing that is started holds the caller's output open."""
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for number, descriptor in ((0, empty), (1, log), (2, log)):
            os.dup2(descriptor, number)
        os.close(log)
        os.close(empty)

    def up(self, node: Node) -> None:
        os.write(self._tell, b"\0")
        self._let_go()

    def failed(self) -> None:
        """The caller is to hear why."""
        for number, descriptor in zip((1, 2), self._caller, strict=False):
            os.dup2(descriptor, number)

    def _let_go(self) -> None:
        os.close(self._tell)
        for descriptor in self._caller:
            os.close(descriptor)
        self._caller = []


def detached(boot: Boots) -> int:
    """Boot in the background; returns the exit status for the caller, who waits until it serves or fails."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(tell)
        status = b""
        with os.fdopen(told, "rb") as answer:
            try:
                status = answer.read(1)
            except KeyboardInterrupt:
                os.kill(child, signal.SIGTERM)  # who no longer waits for it does not want it either
        if status:
            return status[0]
        _, ended = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(ended)
    os.close(told)
    os.setsid()
    background = Background(tell)
    try:
        return boot(background.say, background.owned, background.up)
    except BaseException:
        background.failed()
        raise
