"""Commands that change a server's life: load, swap, stop, restart, freeze, thaw; and the node's end."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from atoll.ipc.attach import connect
from atoll.ipc.errors import BadRequest
from atoll.ipc.system.kernel import (
    Binding,
    ConfigBinding,
    KeyspaceBinding,
    Load,
    ProcessRow,
    ServerBinding,
    SocketBinding,
    Swap,
)

from . import jobs, options, printing
from .calling import json_of
from .options import Deadline, Drain, Json, Node, Server


def load(
    server: Annotated[str, typer.Argument(help="The name it gets in the node.")],
    package: Annotated[
        Path, typer.Argument(help="The package's folder: interface.py and server.py are in it.")
    ],
    level: Annotated[
        str, typer.Option("--level", help="Protection level: process, seccomp, sandbox.")
    ] = "sandbox",
    need: Annotated[
        list[str] | None,
        typer.Option(
            "--need",
            metavar="NAME=KIND:VALUE",
            help="Bind a need: rows=keyspace:counter, audit=server:audit/read+write, "
            "config=config:'{\"step\": 2}', web=listen:127.0.0.1:8000.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--exec", help="Start by a fresh exec, not from the zygote.")
    ] = False,
    degrade: Annotated[
        bool, typer.Option("--degrade", help="Accept a lower level where this host needs it.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Record its calls, so that `atoll replay` runs them again.")
    ] = False,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Start a server that the image does not have."""
    what = Load(
        server=server,
        package=str(folder(package)),
        level=level,
        start="exec" if fresh else "zygote",
        needs=dict(binding(text) for text in need or ()),
        degrade=degrade,
        record=record,
    )
    with connect(node=node or None) as attached:
        row = attached.kernel.load.now(what)
    printing.answer(
        row, f"{server} serves {', '.join(row.interfaces)} at level {row.level}, pid {row.pid}", as_json
    )


def swap(
    server: Server,
    package: Annotated[
        Path | None, typer.Argument(help="Folder of the new version.", show_default="the same")
    ] = None,
    version: Annotated[
        str, typer.Option("--version", help="An earlier version, as `atoll versions` prints it.")
    ] = "",
    level: options.Level = "",
    deadline: Drain = None,
    force: Annotated[
        bool, typer.Option("--force", help="End calls that are left after the deadline.")
    ] = False,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Put a new version or another protection level in a running server's place; its clients keep their
    channels."""
    what = Swap(
        server=server,
        package=str(folder(package)) if package else "",
        version=version,
        level=level or None,
        deadline=deadline,
        force=force,
    )
    with connect(node=node or None) as attached:
        done = attached.kernel.swap.now(what)
    ended = "".join(f"; ended {count} of {label}" for label, count in done.ended.items())
    change = f"{done.old[:8]} -> {done.new[:8]} at level {done.level}"
    printing.answer(
        done,
        f"{server}: {change}, paused {done.pause * 1000:.1f} ms{ended}",
        as_json,
    )


def stop(server: Server, deadline: Drain = None, node: Node = "", as_json: Json = False) -> None:
    """Stop a server; it stays stopped until `restart`."""
    with connect(node=node or None) as attached:
        state(attached.kernel.stop.now(server, deadline), as_json)


def restart(server: Server, deadline: Drain = None, node: Node = "", as_json: Json = False) -> None:
    """Stop a server, if it runs, and start it again."""
    with connect(node=node or None) as attached:
        state(attached.kernel.restart.now(server, deadline), as_json)


def freeze(
    server: Server,
    reason: Annotated[str, typer.Option("--reason", help="Kept with the row.")] = "",
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Halt a server between two messages; calls to it wait."""
    with connect(node=node or None) as attached:
        state(attached.kernel.freeze.now(server, reason), as_json)


def thaw(server: Server, node: Node = "", as_json: Json = False) -> None:
    """Let a frozen server go on."""
    with connect(node=node or None) as attached:
        state(attached.kernel.thaw.now(server), as_json)


def shutdown(deadline: Deadline = 5.0, node: Node = "", as_json: Json = False) -> None:
    """Stop every server and end the node; returns when it is down."""
    name = jobs.end(node, deadline)
    printing.answer({"node": name}, f"{name} is down", as_json)


def state(row: ProcessRow, as_json: bool) -> None:
    running = f", pid {row.pid}" if row.pid else ""
    printing.answer(row, f"{row.server} is {row.state}{running}", as_json)


def folder(package: Path) -> Path:
    """The package as the kernel needs it: absolute, and checked here, where the mistake was made."""
    if not (package / "server.py").is_file():
        raise BadRequest(
            where="PACKAGE", expected="a folder with server.py and interface.py", got=str(package)
        )
    return package.resolve()


def binding(text: str) -> tuple[str, Binding]:
    """A `--need` as the kernel takes it. Raises `BadRequest` naming the part that is wrong."""
    name, equals, bound = text.partition("=")
    kind, colon, value = bound.partition(":")
    target, _, rights = value.partition("/")
    listed = [right for right in rights.split("+") if right]
    match kind if equals and colon and value else "":
        case "keyspace":
            return name, KeyspaceBinding(keyspace=target, rights=listed)
        case "server":
            return name, ServerBinding(server=target, rights=listed)
        case "listen":
            return name, SocketBinding(listen=value)
        case "config":
            table = json_of(value.encode(), dict[str, object], f"--need {name}", "a JSON object")
            return name, ConfigBinding(value=msgspec.Raw(msgspec.msgpack.encode(table)))
        case _:
            raise BadRequest(
                where="--need",
                expected="NAME=keyspace:K, NAME=server:S, NAME=config:JSON or NAME=listen:ADDRESS",
                got=text,
            )
