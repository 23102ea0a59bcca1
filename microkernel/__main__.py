"""`python -m atoll.microkernel`: what runs without a node. `boot`, `image check`, `plan`, `doctor`, `filter`, `clean`,
and the kernel's parts of a backup, a restore and a replay."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from atoll.ipc.attach import base_folder
from atoll.ipc.errors import AtollError

from . import boot, graph
from .backup import NoRoom, keep, make_node
from .descriptions import describe_apart
from .detach import detached
from .image import Image
from .image_check import check, load, read_file
from .image_read import ImageRefused
from .journal import JournalDamaged
from .node import Node
from .ownership import BootRefused, own
from .place import Place

T = TypeVar("T")
OK, FAULT, REFUSED, NO_ROOM, FINDINGS = 0, 1, 6, 7, 10
"""As docs/manual.md has them; 2 is argparse's, for a wrong command line."""


class Ended(Exception):
    """A node ended, or did not come to serve, and nobody asked it to."""


def place_of(arguments: argparse.Namespace, image: Image) -> Place:
    name = arguments.name or image.image.name
    folder = Path(arguments.folder) if arguments.folder else base_folder() / name
    return Place(
        name=name,
        folder=folder.absolute(),
        image_path=str(Path(arguments.image).absolute()),
        degrade=arguments.degrade,
    )


def command_boot(arguments: argparse.Namespace) -> int:
    if arguments.detach:
        return detached(lambda say, owned, up: run_boot(arguments, say, owned, up))
    return run_boot(arguments, partial(print, flush=True), lambda folder: None, lambda node: None)


def run_boot(arguments: argparse.Namespace, say: boot.Say, owned: Callable[[Path], None], up: boot.Up) -> int:
    """Read, own, boot, serve. Returns the exit status. Raises `Ended`."""
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # as the other two: until the node listens to them, an end is an end
    path = Path(arguments.image)
    draft = read_file(path)
    if draft.problems:  # it cannot be booted; what else is wrong with it is said, too
        run(check, draft, path.parent, describe_apart)
    place = place_of(arguments, draft.image)
    owning = own(place, say)
    owned(place.folder)

    def serving(node: Node) -> None:
        say(
            f"{place.name} serves: boot {node.boot}, {len(node.servers)} servers, folder {place.folder}, "
            f"attach at {place.socket}"
        )
        up(node)

    failure = run(boot.Boot(place, draft, owning, say, plan_only=arguments.plan).run, serving)
    if failure:
        raise Ended(f"{place.name} ended: {failure}")
    return OK


def command_image_check(arguments: argparse.Namespace) -> int:
    checked = load(Path(arguments.image))
    drawn = graph.graph(checked)
    if arguments.json:
        told = {"image": drawn.name, "servers": list(drawn.levels), "graph": graph.plain(drawn)}
        print(msgspec.json.encode(told).decode())
        return OK
    if arguments.graph:
        picture = graph.svg(drawn)
        if picture is not None:
            path = Path(arguments.image).with_suffix(".svg").name
            Path(path).write_bytes(picture)
            print(f"drawn: {path}")
        print(graph.text(drawn), end="")
        return OK
    print(f"{arguments.image}: {checked.image.image.name} is an image that can be booted")
    return OK


def command_doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    found = doctor.diagnose()
    print(found.json().decode() if arguments.json else found.text())
    return FINDINGS if found.lacking else OK


def command_filter(arguments: argparse.Namespace) -> int:
    from .protection import filters

    print(filters.text(tuple(arguments.grants)), end="")
    return OK


def command_clean(arguments: argparse.Namespace) -> int:
    from .clean import clean_all

    folders = [Path(arguments.folder)] if arguments.folder else None
    done = run(clean_all, base_folder(), folders)
    print(
        msgspec.json.encode({"done": done}).decode()
        if arguments.json
        else "\n".join(done) or "nothing was left"
    )
    return OK


def command_keep(arguments: argparse.Namespace) -> int:
    print(msgspec.json.encode(keep(Path(arguments.folder), Path(arguments.archive))).decode())
    return OK


def command_replay(arguments: argparse.Namespace) -> int:
    from .replaying import replay

    run(replay, Path(arguments.package), arguments.version, arguments.socket, arguments.terminal)
    return OK


def command_make_node(arguments: argparse.Namespace) -> int:
    image = sys.stdin.read()
    make_node(Path(arguments.archive), Path(arguments.folder), arguments.name, arguments.epoch, image)
    return OK


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m atoll.microkernel")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    booting = commands.add_parser("boot", help="start a node from an image")
    booting.add_argument("image")
    booting.add_argument("--folder", default="")
    booting.add_argument("--name", default="")
    booting.add_argument("--plan", action="store_true", help="show what boot would change, and do nothing")
    booting.add_argument("--degrade", action="store_true", help="accept the nearest lower level")
    booting.add_argument("--detach", action="store_true", help="return once it serves")
    booting.set_defaults(run=command_boot)
    image = commands.add_parser("image", help="about image files").add_subparsers(
        required=True, metavar="COMMAND"
    )
    checking = image.add_parser("check", help="check an image without starting anything")
    checking.add_argument("image")
    checking.add_argument("--graph", action="store_true")
    checking.add_argument("--json", action="store_true")
    checking.set_defaults(run=command_image_check)
    doctoring = commands.add_parser("doctor", help="what this host can do")
    doctoring.add_argument("--json", action="store_true")
    doctoring.set_defaults(run=command_doctor)
    filtering = commands.add_parser(
        "filter", help="which system calls a server at level seccomp has, and why"
    )
    filtering.add_argument("grants", nargs="*", help="groups that its image grants")
    filtering.set_defaults(run=command_filter)
    cleaning = commands.add_parser("clean", help="remove what dead nodes left")
    cleaning.add_argument("--folder", default="")
    cleaning.add_argument("--json", action="store_true")
    cleaning.set_defaults(run=command_clean)
    keeping = commands.add_parser("keep", help="the kernel's part of a backup: copy package versions")
    keeping.add_argument("folder", help="the node's")
    keeping.add_argument("archive")
    keeping.set_defaults(run=command_keep)
    making = commands.add_parser(
        "make-node",
        help="the kernel's part of a restore: what makes a folder a node's; the image comes on stdin",
    )
    making.add_argument("archive")
    making.add_argument("folder")
    making.add_argument("--name", required=True)
    making.add_argument("--epoch", type=int, required=True, help="boots are counted on from here")
    making.set_defaults(run=command_make_node)
    replaying = commands.add_parser("replay", help="a process for `atoll replay`, confined")
    replaying.add_argument("package")
    replaying.add_argument("--version", default="", help="its hash, where it must be that one")
    replaying.add_argument("--terminal", action="store_true", help="it has our standard streams")
    replaying.add_argument("--socket", type=int, required=True, help="descriptor of a socket to who asks")
    replaying.set_defaults(run=command_replay)
    return made


def main(words: list[str]) -> int:
    """Returns the exit status: 0, 1 where something failed, 6 where the input was refused, 7 where a disk is full, 10 where
    `doctor` found something missing that nothing stands in for."""
    arguments = parser().parse_args(words)
    # Who ignores it hands that down, and how children end would be told to nobody here.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        status: int = arguments.run(arguments)
        return status
    except ImageRefused as refused:
        if "json" in arguments and arguments.json:
            problems = {"problems": refused.told()}
            report = {"error": "ImageRefused", "message": str(refused), "fields": problems}
            print(msgspec.json.encode(report).decode(), file=sys.stderr)
        else:
            print(refused, file=sys.stderr)
        return REFUSED
    except NoRoom as full:
        print(f"atoll: {full}", file=sys.stderr)
        return NO_ROOM
    except (BootRefused, Ended, JournalDamaged, AtollError, OSError) as error:
        print(f"atoll: {error}", file=sys.stderr)
        return REFUSED if isinstance(error, BootRefused) else FAULT


def run(async_function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """`trio.run`. A single fault that a person can do something about comes without the groups around it."""
    try:
        return trio.run(async_function, *arguments)
    except BaseExceptionGroup as group:
        found: BaseException = group
        while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
            found = found.exceptions[0]
        if isinstance(found, ImageRefused | BootRefused | AtollError | OSError):
            raise found from None
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
