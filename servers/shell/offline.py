"""Commands that run without a node. The shell imports no kernel: it becomes `python -m atoll.microkernel`."""

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from atoll.ipc.attach import base_folder
from atoll.ipc.errors import BadRequest, NotFound

from . import backup, exits, jobs
from .options import Json

STORE = Path("data") / "state"
"""Where a node's folder has its store."""
FILE = "data.mdb"
"""By which a store's folder is known."""

ImagePath = Annotated[
    Path,
    typer.Argument(help="A TOML file, or the name of an image that comes with Atoll: dev, minimal, rlhf."),
]


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
    image = there(image)
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
    become("atoll.microkernel", "image", "check", str(there(image)), *flags(graph=graph, json=as_json))


def there(image: Path) -> Path:
    """The file that is meant. Raises `NotFound` where there is none, with the nearest name."""
    with resources.as_file(resources.files("atoll.images")) as folder:
        ours = {path.stem: path for path in folder.glob("*.toml")}
    if image.is_file():
        return image
    if str(image) in ours:
        return ours[str(image)]
    raise NotFound.among("image", str(image), [*map(str, image.parent.glob("*.toml")), *ours])


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
    if folder and not Path(folder).is_dir():
        raise BadRequest(where="--folder", expected="the folder of a node", got=f"{folder}, which is none")
    become("atoll.microkernel", "clean", *values(folder=folder), *flags(json=as_json))


def check(
    folder: Annotated[
        Path, typer.Argument(help="A node's name or folder, the folder that holds a store, or a backup's.")
    ],
    as_json: Json = False,
) -> None:
    """Walk a store's file, or a backup, and prove what holds of it; the node need not run."""
    if backup.is_one(folder):
        raise typer.Exit(backup.verify(folder, as_json))
    named = base_folder() / folder
    store = next(
        (place for place in (folder / STORE, folder, named / STORE) if (place / FILE).exists()), None
    )
    if store is None:
        raise BadRequest(
            where="FOLDER",
            expected="a node's name, its folder, a store's, or a backup's",
            got=f"{folder}, which has no store",
        )
    done = subprocess.run(
        jobs.python("atoll.servers.state.check", str(store), *flags(json=as_json)), check=False
    )
    # The checker's own codes: 1 is damage, 2 a folder that holds no store it can read.
    raise typer.Exit({0: exits.OK, 1: exits.FINDINGS, 2: exits.WRONG_INPUT}.get(done.returncode, exits.FAULT))
