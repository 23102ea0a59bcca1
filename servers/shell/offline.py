"""Commands that run without a node. The shell imports no kernel: it becomes `python -m atoll.microkernel`."""

import difflib
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from atoll.ipc.errors import NotFound

from . import exits, jobs
from .options import Json

STORE = Path("data") / "state"
"""Where a node's folder has its store."""

ImagePath = Annotated[Path, typer.Argument(help="An image: a TOML file.")]


def become(*arguments: str) -> NoReturn:
    """Replace this process by a module of Atoll, so that signals and the exit code are the module's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, jobs.python(*arguments))


def flags(**given: bool) -> list[str]:
    return [f"--{name}" for name, is_set in given.items() if is_set]


def values(**given: str) -> list[str]:
    return [f"--{name}={value}" for name, value in given.items() if value]


def boot(
    image: ImagePath,
    folder: Annotated[
        str, typer.Option("--folder", help="The node's folder.", show_default="by the image's name")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="The node's name.", show_default="the image's")] = "",
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it serves; the node runs on.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what boot would change, and do nothing.")
    ] = False,
    degrade: Annotated[
        bool, typer.Option("--degrade", help="Accept lower levels where this host needs it.")
    ] = False,
    job: Annotated[str, typer.Option("--job", help="Run this job once the node serves: reviews.")] = "",
) -> None:
    """Start a node from an image; it runs until Ctrl-C."""
    arguments = [*values(folder=folder, name=name), *flags(plan=plan, degrade=degrade)]
    if job:
        jobs.module(job)
    there(image)
    if job and not plan:
        raise typer.Exit(jobs.run(image, job, (folder, name), arguments, detach))
    become("atoll.microkernel", "boot", str(image), *arguments, *flags(detach=detach))


def image_check(
    image: ImagePath,
    graph: Annotated[bool, typer.Option("--graph", help="Draw who may call whom.")] = False,
    as_json: Json = False,
) -> None:
    """Check an image without starting anything: every error with file, line, what was expected and what was
    found."""
    there(image)
    become("atoll.microkernel", "image", "check", str(image), *flags(graph=graph, json=as_json))


def there(image: Path) -> None:
    """Raises `NotFound` for an image that is no file, with the nearest name beside it."""
    if not image.is_file():
        beside = [path.name for path in image.parent.glob("*.toml")]
        near = difflib.get_close_matches(image.name, beside, 1)
        raise NotFound(what="image", name=str(image), nearest=str(image.parent / near[0]) if near else "")


def doctor(as_json: Json = False) -> None:
    """Say what this host can do, and what stands in for what."""
    become("atoll.microkernel", "doctor", *flags(json=as_json))


def clean(
    folder: Annotated[
        str, typer.Option("--folder", help="Only this node's folder.", show_default="all")
    ] = "",
    as_json: Json = False,
) -> None:
    """Remove what dead nodes left: cgroups, sockets, mounts. What a node knows is kept."""
    become("atoll.microkernel", "clean", *values(folder=folder), *flags(json=as_json))


def check(
    folder: Annotated[Path, typer.Argument(help="The node's folder, or the one that holds the store.")],
    as_json: Json = False,
) -> None:
    """Walk a store's file and prove its invariants; the node need not run."""
    inside = folder / STORE
    store = inside if inside.is_dir() else folder
    done = subprocess.run(
        jobs.python("atoll.servers.state.check", str(store), *flags(json=as_json)), check=False
    )
    # The checker's own codes: 1 is damage, 2 a folder that holds no store it can read.
    raise typer.Exit({0: exits.OK, 1: exits.FINDINGS, 2: exits.WRONG_INPUT}.get(done.returncode, exits.FAULT))
