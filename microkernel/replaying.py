"""The process of a replay: confined like a package that nobody has decided to trust, with one socket to who asked for it.

It is no process of a node: it has no capability, no channel, no account, and what it may use is bounded. Its terminal, or
what stands for one, is its caller's.
"""

from __future__ import annotations

import os
import resource
import socket
import tempfile
from pathlib import Path

import trio

from atoll.ipc.errors import BadRequest
from atoll.ipc.replay.messages import Ended, framed

from .descriptions import FIRST_TO_GO
from .processes import CannotConfine, Forge
from .protection import Bind, Limit, Subject, plan, probe
from .versions import hash_of, interface_folders, readable_copy

LEVEL = "sandbox"
ENTRY = "atoll.ipc.replay.process:main"
SOCKET = 3
LIMITS = (
    Limit(resource=resource.RLIMIT_DATA, soft=4 << 30, hard=4 << 30),
    Limit(resource=resource.RLIMIT_FSIZE, soft=64 << 20, hard=64 << 20),
    Limit(resource=resource.RLIMIT_NPROC, soft=256, hard=256),
)


async def replay(package: Path, version: str, end: int, terminal: bool) -> None:
    """Confine a process that replays with what the other end of the socket says, and say there how it ended. The package's
    copy is all that it can read beside Atoll. Raises `BadRequest` where its contents do not have the hash `version`."""
    if version and hash_of(package) != version:
        raise BadRequest(
            where=str(package),
            expected=f"contents with the hash {version}",
            got=f"others: {hash_of(package)}",
        )
    forge = Forge(f"atoll-replay={os.getpid()}", preload=(ENTRY.partition(":")[0],))
    forge.start()
    with socket.socket(fileno=end) as ours, tempfile.TemporaryDirectory(prefix="atoll-replay-") as scratch:
        os.chmod(scratch, 0o755)  # who replays has another user id, and no mounts where the host gives none
        try:
            how, clean = await _run(forge, readable_copy(package, Path(scratch) / "package"), ours, terminal)
            ours.sendall(framed(Ended(how=how, clean=clean)))
        except BrokenPipeError:
            pass  # who asked has gone
        finally:
            with trio.CancelScope(shield=True):
                await forge.close()


async def _run(forge: Forge, package: Path, end: socket.socket, terminal: bool) -> tuple[str, bool]:
    folder = str(package.parent)
    subject = Subject(
        name="replay",
        binds=tuple(Bind(source=path) for path in (folder, *interface_folders())),
        limits=LIMITS,
        refusal="error",
        oom_score=FIRST_TO_GO,
    )
    confinement = plan(LEVEL, subject, probe()).require()
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    streams = {0: 0, 1: 1, 2: 2} if terminal else dict.fromkeys(range(3), nowhere)
    try:
        process = await forge.spawn(
            confinement,
            entry=ENTRY,
            descriptors={**streams, SOCKET: end.fileno()},
            arguments=(SOCKET, folder, package.name),
        )
    except CannotConfine as error:
        return str(error), False
    finally:
        os.close(nowhere)
    try:
        exit = await process.wait()
        return str(exit), exit.clean
    finally:
        process.kill()
        process.close()
