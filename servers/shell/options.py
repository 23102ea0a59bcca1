"""Arguments and options that several commands share, so that each is spelt and explained once."""

from typing import Annotated

import typer

from atoll.ipc.attach import connect
from atoll.ipc.errors import AtollError

from .when import DIGITS


def server_names(incomplete: str) -> list[str]:
    """Completion of a server's name; without a node there is nothing to complete."""
    try:
        with connect() as node:
            return [row.server for row in node.kernel.ps.now() if row.server.startswith(incomplete)]
    except AtollError:
        return []


def keyspace_names(incomplete: str) -> list[str]:
    """Completion of a keyspace's name."""
    try:
        with connect() as node:
            return [name for name in node.kernel.keyspaces.now() if name.startswith(incomplete)]
    except AtollError:
        return []


Node = Annotated[
    str,
    typer.Option(
        "--node",
        "-n",
        envvar="ATOLL_NODE",
        help="The node: its name or folder.",
        show_default="the only one that runs",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Server = Annotated[str, typer.Argument(help="Name of a server of the node.", autocompletion=server_names)]
SomeServer = Annotated[
    str, typer.Argument(help="Only this server.", autocompletion=server_names, show_default="all servers")
]
Keyspace = Annotated[str, typer.Argument(help="Name of a keyspace.", autocompletion=keyspace_names)]
SomeKeyspace = Annotated[
    str,
    typer.Argument(help="Only this keyspace.", autocompletion=keyspace_names, show_default="all keyspaces"),
]
Key = Annotated[str, typer.Argument(help="A key: text, or 0x and hexadecimal digits.")]
At = Annotated[
    str,
    typer.Option(
        "--at",
        metavar="WHEN",
        help="As of a revision (1234), a time (2026-05-01T12:00) or an age (10m, 2h, 3d).",
        show_default="now",
    ),
]


def capability_number(text: str) -> int:
    """A capability's number as `atoll caps` prints it (`1.6`), or as JSON has it (one number)."""
    boot, point, count = text.partition(".")
    wrong = f"{text!r} is no capability's number: `atoll caps` prints them, as 1.6"
    if not boot.isdecimal() or (point and not count.isdecimal()) or len(text) > DIGITS:
        raise typer.BadParameter(wrong)
    number = (int(boot) << 32) + int(count) if point else int(boot)
    if number >= 1 << 64 or (point and int(count) >= 1 << 32):
        raise typer.BadParameter(wrong)
    return number


Capability = Annotated[
    int,
    typer.Argument(
        help="A capability's number, as `atoll caps` prints it.", parser=capability_number, metavar="NUMBER"
    ),
]
Rights = Annotated[
    str, typer.Option("--rights", metavar="A,B", help="Rights, by comma.", show_default="all of the parent's")
]
Expires = Annotated[
    float,
    typer.Option(
        "--expires", metavar="SECONDS", help="Life of the capability.", show_default="the parent's", min=0
    ),
]
Deadline = Annotated[
    float, typer.Option("--deadline", metavar="SECONDS", help="Time to finish what is in hand.", min=0)
]
Drain = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        metavar="SECONDS",
        help="Time to finish what is in hand.",
        show_default="the server's `drain`",
        min=0,
    ),
]
Level = Annotated[
    str,
    typer.Option("--level", help="Protection level: process, seccomp, sandbox.", show_default="unchanged"),
]


def rights_of(text: str) -> list[str] | None:
    """The option's value as a list; None where it was not given, which means all."""
    return [right for right in (part.strip() for part in text.split(",")) if right] or None
