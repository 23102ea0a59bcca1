"""`atoll boot IMAGE --job NAME`: boot a node, run a program against it, report, and end what was begun.

A job is a module that is run as a program of its own, a client of the node like any other; it finds the
node by `ATOLL_NODE`. In a terminal the node stays up after the report until Ctrl-C, so that a person can
look around; without one it stops by itself. With `--detach` it is left running. Whatever goes wrong in
between, no node is left behind by accident.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from atoll.ipc.attach import connect
from atoll.ipc.errors import BadRequest, NodeDown

from . import exits

JOBS = {"reviews": "atoll.servers.feedback.job"}
"""Jobs by name: the module that `python -m` runs."""


def module(job: str) -> str:
    if job not in JOBS:
        raise BadRequest(where="--job", expected=f"one of {', '.join(JOBS)}", got=repr(job))
    return JOBS[job]


def python(*arguments: str) -> list[str]:
    """`-P` keeps the current folder off the import path: a file named like a module of ours must not be
    run.
    """
    return [sys.executable, "-P", "-m", *arguments]


def node_of(image: Path, folder: str, name: str) -> str:
    """The node that an image boots, as `--node` takes it. A wrong image is the kernel's to explain: the
    boot fails first.
    """
    if folder:
        return str(Path(folder).absolute())  # with a `/` in it, or it would be a name
    return name or str(tomllib.loads(image.read_text())["image"]["name"])


def run(image: Path, job: str, node: tuple[str, str], boot: Sequence[str], detach: bool) -> int:
    """Boot, run the job, end the node; the exit code is the boot's or the job's. `node`: folder and name,
    or empty.
    """
    program = module(job)
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C does: whoever ends us, no node is left behind
        signal.signal(ending, signal.default_int_handler)
    with subprocess.Popen(python("atoll.microkernel", "boot", str(image), *boot, "--detach")) as booting:
        try:
            booted = booting.wait()
        except KeyboardInterrupt:  # it has heard of that, too, and takes down what it has begun
            booting.wait()
            return exits.INTERRUPTED
    if booted:
        return booted
    target = node_of(image, *node)
    try:
        done = subprocess.run(python(program), env=os.environ | {"ATOLL_NODE": target}, check=False)
        if done.returncode == 0 and (detach or sys.stdout.isatty()):
            print(f"\n{target} runs{' on' if detach else ' until Ctrl-C'}: {reach(not detach)}", flush=True)
        if done.returncode == 0 and not detach and sys.stdout.isatty():
            wait(target)
    except KeyboardInterrupt:
        told(target)
        return exits.INTERRUPTED
    if done.returncode or not detach:
        told(target)
        if not sys.stdout.isatty():
            print("to look around, boot it with --detach: it then stays up")
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def reach(elsewhere: bool) -> str:
    """How a person gets at the node; where this command is not on the `PATH`, also how it comes there."""
    here = f'export PATH="{Path(sys.executable).parent}:$PATH"; ' if shutil.which("atoll") is None else ""
    if elsewhere:
        return f"look around in another terminal: {here}atoll ps"
    return f"{here}atoll ps looks around, atoll shutdown ends it"


def told(node: str) -> None:
    """End the node, and say so: what a person reads last is whether anything is left running."""
    with suppress(NodeDown):
        name = end(node)
        print(f"\n{name} is down; its folder keeps what it knows, and the next boot goes on from there")


def wait(node: str) -> None:
    """Until Ctrl-C, or until somebody else ended the node."""
    try:
        with connect(node=node) as attached:
            while True:
                attached.kernel.node.now()
                time.sleep(1)
    except (NodeDown, KeyboardInterrupt):
        return


def end(node: str, deadline: float = 5.0) -> str:
    """Shut the node down, and return its name when its last process is gone. Raises `NodeDown` if it does not run."""
    with connect(node=node or None) as attached, suppress(NodeDown):
        attached.kernel.shutdown.now(deadline)
        while True:
            attached.kernel.node.now()
            time.sleep(0.05)
    return attached.name
