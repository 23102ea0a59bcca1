"""What packages say of themselves. To be asked, a package is imported, and its code runs: as confined as this host allows.

The level that a server is to run at counts for nothing here. Who describes a package may not know yet what it is, and
nobody has decided to trust it: no files but its own, no network, nobody else's processes, a system-call filter, no
uid of the node's. What it may use up is bounded, and so is its time.
"""

import os
import resource
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from atoll.ipc.errors import AtollError, DecodeFaults
from atoll.ipc.runtime.describe import Answer, Asked, Description, heard

from .mechanisms import Process, Spawner
from .processes import CannotConfine, Forge, ZygoteDied
from .protection import Bind, Confinement, Host, Limit, Subject, plan, probe
from .versions import hash_of, interface_folders, readable_copy

LEVEL = "sandbox"
ENTRY = "atoll.ipc.runtime.describe:main"
LONGEST = 60.0
"""Seconds after which a package that does not even import is given up."""
ANSWER_MOST = 16 << 20
"""Bytes of an answer."""
LIMITS = (
    Limit(resource=resource.RLIMIT_DATA, soft=4 << 30, hard=4 << 30),
    Limit(resource=resource.RLIMIT_FSIZE, soft=64 << 20, hard=64 << 20),
    Limit(resource=resource.RLIMIT_NPROC, soft=256, hard=256),
)
FIRST_TO_GO = 1000
"""Its OOM score: if memory runs out meanwhile, it was this."""
SOCKET = 3

Configs = Mapping[str, Mapping[str, Mapping[str, Any]]]
Descriptions = dict[str, Description | str]


async def describe_all(
    forge: Spawner, host: Host, packages: Mapping[str, Path], configs: Configs
) -> Descriptions:
    """By server: its description, with faults of its configuration (`configs`: per server and need), or a
    sentence why there is none. All are asked at once.
    """
    found: Descriptions = {}

    async def ask(name: str, package: Path) -> None:
        given = {need: dict(table) for need, table in configs.get(name, {}).items()}
        asked = Asked(folder=str(package.parent), package=package.name, configs=given)
        try:
            answer = await _ask(forge, host, name, asked)
            found[name] = answer.fault
            if answer.description is not None:
                found[name] = msgspec.structs.replace(answer.description, hash=hash_of(package))
        except OSError as error:  # no descriptor is left, or no process
            found[name] = str(error)

    async with trio.open_nursery() as nursery:
        for name, package in packages.items():
            nursery.start_soon(ask, name, package)
    return found


async def describe_copies(
    forge: Spawner, host: Host, packages: Mapping[str, Path], configs: Configs
) -> Descriptions:
    """`describe_all` where no node runs yet: of copies, since who describes need not be able to read the packages'
    files."""
    with tempfile.TemporaryDirectory(prefix="atoll-describe-") as scratch:
        os.chmod(scratch, 0o755)  # who describes has another user id, and no mounts where the host gives none
        copies, found = _copied(packages, Path(scratch))
        return await describe_all(forge, host, copies, configs) | found


async def describe_apart(packages: Mapping[str, Path], configs: Configs) -> Descriptions:
    """`describe_copies` where no node is to run, with a fork server for the time it takes."""
    forge = Forge(f"atoll-describe={os.getpid()}", preload=(ENTRY.partition(":")[0], "atoll.ipc.keyspace"))
    forge.start()
    try:
        return await describe_copies(forge, probe(), packages, configs)
    finally:
        with trio.CancelScope(shield=True):
            await forge.close()


def _copied(packages: Mapping[str, Path], scratch: Path) -> tuple[dict[str, Path], Descriptions]:
    """By server the copy of its package, or a sentence why there can be none."""
    copies: dict[str, Path] = {}
    faults: Descriptions = {}
    for name, package in packages.items():
        try:
            copies[name] = readable_copy(package, scratch / name)
        except (AtollError, OSError) as error:
            faults[name] = str(error)
    return copies, faults


def _confined(name: str, folder: str, host: Host) -> Confinement:
    subject = Subject(
        name=f"describe {name}",
        binds=tuple(Bind(source=path) for path in (folder, *interface_folders())),
        limits=LIMITS,
        refusal="error",
        oom_score=FIRST_TO_GO,
    )
    return plan(LEVEL, subject, host, degrade=True).require()


async def _ask(forge: Spawner, host: Host, name: str, asked: Asked) -> Answer:
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        ours, theirs = socket.socketpair()
    except OSError:
        os.close(nowhere)
        raise
    try:
        process = await forge.spawn(
            _confined(name, asked.folder, host),
            entry=ENTRY,
            descriptors={1: nowhere, 2: nowhere, SOCKET: theirs.fileno()},
            arguments=(SOCKET,),
        )
    except (CannotConfine, ZygoteDied) as error:
        ours.close()
        return Answer(fault=str(error))
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(nowhere)
    try:
        with trio.move_on_after(LONGEST):
            return await _talk(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), process, asked)
        return Answer(fault=f"no answer from its import within {LONGEST:g} s")
    finally:
        ours.close()
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        process.close()


async def _talk(stream: trio.SocketStream, process: Process, asked: Asked) -> Answer:
    told = bytearray()
    try:
        await stream.send_all(msgspec.json.encode(asked))
        await stream.send_eof()
        async for data in stream:
            told += data
            if len(told) > ANSWER_MOST:
                return Answer(fault=f"it says more of itself than {ANSWER_MOST} bytes")
    except trio.BrokenResourceError:
        pass  # it has ended: how, is said below
    try:
        return heard(bytes(told)) or Answer(fault=f"its import {await process.wait()}")
    except DecodeFaults as error:
        return Answer(fault=f"its answer is none: {error}")
