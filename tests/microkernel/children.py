"""A real zygote, and real confined children to look at, for the tests of protection."""

import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from atoll.microkernel.processes import Exit, Forge, Process
from atoll.microkernel.protection import Bind, Confinement, Plan, Subject, plan, probe
from atoll.microkernel.remains import end_survivors

VICTIMS = str(Path(__file__).parent.parent / "escape")
OUT = 5
FIRST_UID = 710_000


def subject(name: str = "victim", **fields: object) -> Subject:
    """Someone to confine, with a uid of its own where that can be."""
    uid = FIRST_UID if os.geteuid() == 0 else None
    given = {"uid": uid, "binds": (Bind(source=VICTIMS),), **fields}
    return Subject(name=name, **given)  # type: ignore[arg-type]


def planned(
    level: str, *, add: tuple[str, ...] = (), drop: dict[str, str] | None = None, **fields: object
) -> Plan:
    return plan(level, subject(**fields), probe(), add=add, drop=drop or {})


@asynccontextmanager
async def forge(marker: str | None = None) -> AsyncIterator[Forge]:
    """A zygote without the runtime preloaded; whatever it made is gone afterwards."""
    marker = marker or f"--test={secrets.token_hex(8)}"
    made = Forge(marker, preload=())
    made.start()
    try:
        yield made
    finally:
        with trio.CancelScope(shield=True):
            await made.close()
            await end_survivors(marker)


async def start(
    made: Forge,
    confinement: Confinement,
    function: str,
    *arguments: int | str,
    groups: Sequence[int] = (),
    more: Mapping[int, int] = {},
) -> tuple[Process, int]:
    """A child that runs a victim's function with a pipe as its first argument; returns it and the pipe's
    other end."""
    read, write = os.pipe()
    try:
        process = await made.spawn(
            confinement,
            descriptors={OUT: write, **more},
            arguments=(OUT, *arguments),
            entry=f"victims:{function}",
            path=(VICTIMS,),
            environment={"GIVEN": "1"},
            groups=groups,
        )
    finally:
        os.close(write)
    return process, read


def unwatch(process: Process) -> None:
    """Let go of a filter's listener: the kernel fails every call that waits for an answer, or ever would."""
    if process.listener is not None:
        os.close(process.listener)
        process.listener = None


async def heard(read: int) -> str:
    """All that comes out of a pipe up to its end, which is closed then."""
    try:
        text = b""
        while part := await trio.to_thread.run_sync(os.read, read, 65536):
            text += part
        return text.decode()
    finally:
        os.close(read)


async def told(
    made: Forge, confinement: Confinement, function: str, *arguments: int | str
) -> tuple[str, Exit]:
    """Run a victim's function to its end: what it said, and how it ended. Nobody answers its filter: what
    it refuses fails."""
    process, read = await start(made, confinement, function, *arguments)
    unwatch(process)
    said = await heard(read)
    ended = await process.wait()
    process.close()
    return said, ended
