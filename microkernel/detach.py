"""`boot --detach`: the node in a process of its own; the command returns once it serves, with what boot said."""

import os
import sys
from collections.abc import Callable

from .node import Node

Say = Callable[[str], None]


def detached(run: Callable[[Say, Callable[[Node], None]], int]) -> int:
    """Run a boot in the background; returns the exit status for the caller, who waits until it serves or fails.

    What boot says goes to the caller until then. The node's own later words are in its log; a failure ends up there too.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(tell)
        with os.fdopen(told, "rb") as answer:
            status = answer.read(1)
        if status:
            return status[0]
        _, ended = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(ended)
    os.close(told)
    os.setsid()

    def up(node: Node) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        log = os.open(
            node.place.folder / "kernel.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for number, descriptor in ((0, empty), (1, log), (2, log)):
            os.dup2(descriptor, number)
        os.close(log)
        os.close(empty)
        os.write(tell, b"\0")
        os.close(tell)

    return run(print, up)
