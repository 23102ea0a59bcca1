"""Many clients of one server: programs outside the node, a process each. This module is a client, too."""

import os
import sys
import time
from contextlib import ExitStack

from atoll.ipc.attach import connect

from .. import children
from ..echo.interface import Echo
from ..frame import Figure, Unavailable
from ..payload import NUMBER, TEXT
from ..placement import available
from .booted import Booted, place

MODULE = "node.crowd"


def figures(booted: Booted, level: str, clients: int, seconds: float) -> list[Figure]:
    """`clients` call one server for so long, wherever the host has them run; beside one alone, awake like its server."""
    cores = available()
    if len(cores) < 2:
        raise Unavailable("one core: eight clients and a server would only take turns")
    alone = _rates(booted, level, 1, seconds, cores[0], cores[-1])
    together = _rates(booted, level, clients, seconds)
    label = f"{clients} clients, one server, two cores"
    return [
        Figure(name=f"{label}: one client", value=alone[0], unit="1/s"),
        _goal(f"{label}: all", sum(together), "one client", sum(together) / alone[0], 0.8),
        _goal(f"{label}: slowest", min(together), "the fastest", min(together) / max(together), 0.4),
    ]


def _goal(name: str, value: float, against: str, ratio: float, bound: float) -> Figure:
    return Figure(
        name=name,
        value=value,
        unit="1/s",
        against=against,
        ratio=ratio,
        goal=f">= {bound:g} x",
        holds=ratio >= bound,
    )


def _rates(
    booted: Booted,
    level: str,
    clients: int,
    seconds: float,
    core: int | None = None,
    server_core: int | None = None,
) -> list[float]:
    """Calls a second of each, all begun together."""
    server = f"echo_{level}"
    with booted.attached() as node, ExitStack() as running:
        place(node, server, server_core)
        crowd = [
            running.enter_context(children.served(MODULE, booted.folder, server, seconds, core=core))
            for _ in range(clients)
        ]
        for each in crowd:
            assert each.stdin is not None
            each.stdin.write(b"!")
            each.stdin.flush()
        return [float(each.stdout.readline()) for each in crowd if each.stdout is not None]


def main(arguments: list[str]) -> None:
    folder, server, seconds = arguments[0], arguments[1], float(arguments[2])
    with connect(folder) as node:
        now = node.open(server, Echo).exchange.now
        for _ in range(200):
            now(NUMBER, TEXT)
        children.ready()
        sys.stdin.read(1)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(50):
                now(NUMBER, TEXT)
            done += 50
        os.write(1, f"{done / (time.perf_counter() - began)}\n".encode())
