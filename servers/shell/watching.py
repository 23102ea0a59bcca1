"""Commands that look: ps, top, log, refused, caps, protection, versions, image; at what is, and at what was."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from atoll.ipc.attach import connect
from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.system import records
from atoll.ipc.system.kernel import (
    CapabilityRow,
    Kernel,
    LogRow,
    Mechanism,
    ProcessRow,
    Protection,
    Refusal,
    VersionRow,
    written,
)

from . import live, printing
from .options import At, Json, Node, Server, SomeServer
from .printing import Column
from .then import Protected, Was, then
from .when import clock, since

VERSION_DIGITS = 8
"""Of a version's 32: enough to tell those of one node apart; `atoll swap --version` takes any beginning."""


def mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}" if size else "-"


def badge(number: int) -> str:
    """A badge that a person gave is small; one made of a name is a hash, and shown as such."""
    return "-" if not number else str(number) if number < 1 << 32 else f"{number:#x}"


def lasts(row: CapabilityRow) -> str:
    """How long it lives: for good, or with its session; or up to a moment, if that comes first."""
    if row.expires:
        return f"to {clock(row.expires)}"
    return "always" if row.lasting else "session"


PROCESSES: list[Column[ProcessRow]] = [
    Column("SERVER", lambda row: row.server),
    Column("STATE", lambda row: row.state),
    Column("PID", lambda row: row.pid or "-", right=True),
    Column("LEVEL", lambda row: row.level),
    Column("VERSION", lambda row: row.version[:VERSION_DIGITS], spare=4),
    Column("UP", lambda row: since(row.started) if row.pid else "-", right=True),
    Column("RESTARTS", lambda row: row.restarts, right=True, spare=2),
    Column("MIB", lambda row: mebibytes(row.memory), right=True),
    Column("CPU S", lambda row: f"{row.cpu:.1f}", right=True, spare=3),
    Column("CALLS", lambda row: row.calls, right=True),
    Column("LATE", lambda row: row.late, right=True, spare=5),
    Column("REFUSED", lambda row: row.refused, right=True, spare=1),
]

THEN: list[Column[Was]] = [
    Column("SERVER", lambda row: row.server),
    Column("STATE", lambda row: row.state),
    Column("PID", lambda row: row.pid or "-", right=True),
    Column("LEVEL", lambda row: row.level),
    Column("VERSION", lambda row: row.version[:VERSION_DIGITS], spare=1),
    Column("STARTED", lambda row: clock(row.started) if row.started else "-"),
    Column("CRASHES", lambda row: row.crashes, right=True),
]

CAPABILITIES: list[Column[CapabilityRow]] = [
    Column("NUMBER", lambda row: written(row.number), right=True),
    Column("FROM", lambda row: written(row.parent) if row.parent else "-", right=True),
    Column("HOLDER", lambda row: row.holder),
    Column("SERVER", lambda row: row.server),
    Column("INTERFACE", lambda row: row.interface, spare=1),
    Column("BADGE", lambda row: badge(row.badge), right=True),
    Column("RIGHTS", lambda row: ", ".join(row.rights) or "none", fold=True),
    Column("LASTS", lasts),
]

REFUSALS: list[Column[Refusal]] = [
    Column("SERVER", lambda row: row.server),
    Column("BY", lambda row: row.by),
    Column("WHAT", lambda row: row.what, fold=True),
    Column("COUNT", lambda row: row.count, right=True),
    Column("FIRST", lambda row: clock(row.first), spare=1),
    Column("LAST", lambda row: clock(row.last)),
]

MECHANISMS: list[Column[Mechanism]] = [
    Column("MECHANISM", lambda row: row.name),
    Column("IN FORCE", lambda row: "yes" if row.in_force else "no"),
    Column("STOPS, OR WHY NOT", lambda row: row.stops, fold=True),
]

VERSIONS: list[Column[VersionRow]] = [
    Column("VERSION", lambda row: row.version[:VERSION_DIGITS]),
    Column("SERVER", lambda row: row.server),
    Column("PACKAGE", lambda row: row.package, fold=True),
    Column("LOADED", lambda row: clock(row.loaded) if row.loaded else "-"),
    Column("RUNNING", lambda row: "yes" if row.running else ""),
]


def ps(at: At = "", node: Node = "", as_json: Json = False) -> None:
    """List the node's servers: state, process, protection level, version; now or as of a moment."""
    if at:
        with then(node, at) as past:
            was = past.servers()
        printing.rows(was, THEN, as_json, "no servers")
        reasons(was, as_json)
        return
    with connect(node=node or None) as attached:
        rows = attached.kernel.ps.now()
    printing.rows(rows, PROCESSES, as_json, "no servers: the image names none")
    reasons(rows, as_json)


def reasons(rows: Sequence[ProcessRow | Was], as_json: bool) -> None:
    """Why a server is in its state, where that is not plain."""
    for row in rows:
        if row.reason and not as_json:
            printing.say(f"{row.server} is {row.state}: {row.reason}")


def top(
    node: Node = "",
    as_json: Json = False,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", help="Between two looks.", min=0.1)
    ] = 1.0,
    count: Annotated[
        int,
        typer.Option("--count", help="End after so many looks.", show_default="until Ctrl-C; into a pipe 1"),
    ] = 0,
) -> None:
    """Show calls a second, processor and memory of each server, live."""
    with connect(node=node or None) as attached:
        live.show(attached.kernel, every, count, as_json)


def log(
    server: SomeServer = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    after: Annotated[
        int, typer.Option("--after", help="Only lines after this position.", min=0, max=(1 << 63) - 1)
    ] = 0,
    at: At = "",
    limit: Annotated[
        int, typer.Option("--limit", help="With --at: at most so many, the last ones.", min=1)
    ] = 100,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Print what servers wrote: their log lines, stdout and stderr; with `--at` the last lines up to then, of earlier
    boots as well."""
    if at:
        if follow or after:
            raise BadRequest(where="--at", expected="neither --follow nor --after", got="both")
        with then(node, at) as past:
            lines = past.lines(server, limit)
        for was in lines:
            print(printing.json(was) if as_json else line(was))
        if not lines and not as_json:
            print(f"no lines{' of ' + server if server else ''} up to {at}")
        return
    with connect(node=node or None) as attached:
        count = 0
        if follow:
            printing.end_with_reader()
        for row in attached.kernel.logs.now(after, server, follow):
            print(printing.json(row) if as_json else line(row), flush=True)
            count += 1
        if not count:
            known(attached.kernel, server)
            if not as_json:
                since = f"after {after}" if after else "since the node's boot"
                print(f"no lines{' of ' + server if server else ''} {since}")


def known(kernel: Kernel, server: str) -> None:
    """Of what is gone there may still be rows; where there are none, a name must be right. Raises `NotFound`."""
    names = [row.server for row in kernel.ps.now()]
    if server and server not in names:
        raise NotFound.among("server", server, names)


def line(row: LogRow | records.LogRow) -> str:
    fields = "".join(f" {name}={value}" for name, value in row.fields.items())
    return f"{clock(row.time)} {row.server:<12} {row.level:<7} {row.text}{fields}"


def refused(server: SomeServer = "", at: At = "", node: Node = "", as_json: Json = False) -> None:
    """List what servers tried and were not allowed, with counts; now, or in the boot of a moment up to then."""
    if at:
        with then(node, at) as past:
            rows = past.refusals(server)
    else:
        with connect(node=node or None) as attached:
            rows = all_refused(attached.kernel, server)
            if not rows:
                known(attached.kernel, server)
    printing.rows(rows, REFUSALS, as_json, "nothing was refused")


def all_refused(kernel: Kernel, server: str = "") -> list[Refusal]:
    """However many replies it takes, latest first."""
    rows = kernel.refused.now(server)
    while rows and (more := kernel.refused.now(server, len(rows))):
        rows += more
    return sorted(rows, key=lambda row: row.last, reverse=True)


def caps(server: SomeServer = "", at: At = "", node: Node = "", as_json: Json = False) -> None:
    """List capabilities: who holds which rights on what, and from which it was derived; now or as of a moment."""
    if at:
        with then(node, at) as past:
            rows = past.capabilities(server)
    else:
        with connect(node=node or None) as attached:
            rows = attached.kernel.caps.now(server)
            while rows and (more := attached.kernel.caps.now(server, rows[-1].number)):
                rows += more
    printing.rows(rows, CAPABILITIES, as_json, "no capabilities")


def versions(server: SomeServer = "", at: At = "", node: Node = "", as_json: Json = False) -> None:
    """List packages in the node's folder: what `swap --version` can go back to; now or as of a moment."""
    if at:
        with then(node, at) as past:
            rows = past.versions(server)
    else:
        with connect(node=node or None) as attached:
            rows = attached.kernel.versions.now(server)
            if not rows:
                known(attached.kernel, server)
    printing.rows(rows, VERSIONS, as_json, "no packages were loaded")


def show(server: Server, at: At = "", node: Node = "", as_json: Json = False) -> None:
    """Show what keeps a server in: mechanisms in force, and each weakening with its reason; now or as of a moment."""
    protection: Protection | Protected
    if at:
        with then(node, at) as past:
            protection = past.protection(server)
    else:
        with connect(node=node or None) as attached:
            protection = attached.kernel.protection.now(server)
    if as_json:
        print(printing.json(protection))
        return
    wanted = "" if protection.level == protection.wanted else f" (the image wants {protection.wanted})"
    print(f"{server}: level {protection.level}{wanted}")
    if isinstance(protection, Protection):
        printing.draw(protection.mechanisms, MECHANISMS)
    else:
        printing.say(f"in force: {', '.join(protection.mechanisms) or 'nothing'}")
    for weakening in protection.weakenings:
        printing.say(f"weakened: no {weakening.mechanism}: {weakening.reason}")
    sys.stdout.flush()


def image(at: At = "", node: Node = "", as_json: Json = False) -> None:
    """Print the image that the node was booted from; with `--at`, the one that it had been booted from then."""
    if at:
        with then(node, at) as past:
            row = past.image()
            boot, text, file = past.boot.epoch, row.text, row.file
    else:
        with connect(node=node or None) as attached:
            now = attached.kernel.node.now()
            boot, text, file = now.boot, now.image, now.image_path
    printing.answer({"boot": boot, "file": file, "text": text}, text.rstrip("\n"), as_json)
