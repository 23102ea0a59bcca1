"""The same echo three times: recorded for replay, with its calls as rows, and neither."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.ipc.system.calls import keyspace_of
from atoll.servers.shell.recorded import Records

from ..echo.interface import Echo
from ..frame import Figure
from ..payload import NUMBER, TEXT
from ..peers.blocks import Proxies
from ..placement import Placement
from .booted import ECHO, HEAD, KEYSPACE, Booted, place

PLAIN, RECORDED, SAMPLED, FULL = "echo_plain", "echo_recorded", "echo_sampled", "echo_full"
SETTINGS = {PLAIN: "", RECORDED: "record = true", SAMPLED: 'audit = "sample"', FULL: 'audit = "full"'}
BURST = 1.0
"""Seconds of calls as fast as they go."""


def booted(scratch: Path) -> Booted:
    servers = "".join(
        f'\n[server.{name}]\npackage = "{ECHO}"\nneeds = {{}}\n{setting}\n'
        for name, setting in SETTINGS.items()
    )
    return Booted(scratch, HEAD.format(keyspace=KEYSPACE) + servers, "recording")


def at(node: Booted, server: str) -> Proxies:
    @contextmanager
    def proxy(placement: Placement) -> Iterator[Echo]:
        with node.attached() as attached:
            place(attached, server, placement.server)
            yield attached.open(server, Echo)

    return proxy


def kept(node: Booted) -> list[Figure]:
    """Of calls as fast as they go, how many were recorded, and at what pace."""
    found = []
    with node.attached() as attached:
        for server in (RECORDED, FULL):
            now = attached.open(server, Echo).exchange.now
            state = attached.keyspace(keyspace_of(server))
            first, count, end = state.head.now(), 0, time.perf_counter() + BURST
            while time.perf_counter() < end:
                for _ in range(100):
                    now(NUMBER, TEXT)
                count += 100
            (process,) = Records(attached).processes(server)
            for _ in state.watch.now(first):
                known = sum(1 for _ in process.calls())
                dropped = max(chunk.dropped for chunk in process.chunks())
                if known + dropped >= count:
                    break
            share = known / (known + dropped) * 100
            found.append(
                Figure(name=f"calls as fast as they go: {server}, recorded", value=share, unit="%",
                       note=f"{count} calls in {BURST:g} s")
            )  # fmt: skip
    return found
