"""`atoll replay CALL`: a recorded call, run again in a process of its own against the state of then.

What was is read here, through capabilities that can do no more; the process that replays has none, and asks over a socket.
"""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from msgspec import Struct

from atoll.ipc import errors
from atoll.ipc.attach import Node as Attached
from atoll.ipc.attach import connect
from atoll.ipc.bound import transport_of
from atoll.ipc.errors import AtollError, BadRequest, NotFound
from atoll.ipc.replay.effects import BY_LABEL, arguments_of
from atoll.ipc.replay.messages import Answer, Ask, Case, Ended, Played, framed, from_process, received
from atoll.ipc.replay.needs import PAST
from atoll.ipc.system.calls import Recorded
from atoll.ipc.system.records import ProcessRow, decode
from atoll.ipc.system.state import State
from atoll.ipc.transport import DEFAULTS

from . import exits, jobs, printing
from .options import Json, Node
from .printing import Column
from .recorded import Records
from .rows import latest

VERSIONS = "versions"
"""Where a node's folder has the packages that ran there, by hash."""
BEFORE_MOST = 2000
"""Calls that are run before the one in question, at most."""

Verdict = Literal["same", "different", "not replayable"]


class Difference(Struct, frozen=True, kw_only=True):
    where: str
    """`reply.total`, `rows a`, `rates Rates.rate`."""
    then: Any
    now: Any


class Report(Struct, frozen=True, kw_only=True):
    call: str
    method: str
    server: str
    version: str
    """That ran then."""
    package: str
    """The folder that ran now; empty: that version's."""
    revision: int
    """The keyspaces were as of it."""
    before: int
    """Calls that were run first, since the handler leans on what they left in memory."""
    verdict: Verdict
    reasons: list[str]
    """Why it cannot be replayed."""
    remarks: list[str]
    differences: list[Difference]
    log: list[tuple[str, str]]


ROWS: list[Column[Difference]] = [
    Column("WHERE", lambda row: safe(row.where), fold=True),
    Column("THEN", lambda row: shown(row.then), fold=True),
    Column("NOW", lambda row: shown(row.now), fold=True),
]
NOTHING = "-"


def shown(value: Any) -> str:
    return value if value == NOTHING else printing.json(value)


def replay(
    call: Annotated[str, typer.Argument(metavar="CALL", help="A call's id, as `atoll calls` prints it.")],
    server: Annotated[
        Path | None,
        typer.Option(
            "--server", metavar="PATH", help="Run this package in place of the version that ran then."
        ),
    ] = None,
    pdb: Annotated[
        bool, typer.Option("--pdb", help="Stop in the debugger where the handler begins.")
    ] = False,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Run a recorded call again, as of then, in a process that can change nothing; print whether reply and writes are the
    same."""
    if pdb and as_json:
        raise BadRequest(where="--pdb", expected="a terminal", got="--json")
    with connect(node=node or None) as attached:
        again = Again(attached, call, server)
        report = again.report(again.run())
        if report.reasons and again.remember():
            report = again.report(again.run())
        if pdb:
            again.run(debug=True)
    tell(report, as_json)
    raise typer.Exit(exits.OK if report.verdict == "same" else exits.FINDINGS)


class Again:
    """One recorded call, with what is needed to run it again. Raises `NotFound` for what is not there (any more), and what
    the kernel says where this program may not read the past of the server's keyspaces."""

    def __init__(self, attached: Attached, id: str, package: Path | None) -> None:
        self._records = Records(attached)
        self._process, self._call = self._records.find(id)
        opening = self._opening = self._process.opening
        self._server = self._process.server
        self._keyspaces: dict[str, State] = {
            need: attached.keyspace(name, ["read", "history"]) for need, name in opening.keyspaces.items()
        }
        self._given = package
        self._check()
        self._package = package or attached.folder / VERSIONS / opening.version / opening.package
        if not (self._package / "server.py").is_file():
            if package is not None:
                raise NotFound("package with a server.py", str(package))
            raise NotFound(
                f"version of {opening.package} in the node's folder", opening.version, see="atoll versions"
            )
        self._start = self._process.start()
        self._before: list[Recorded] = []
        self._remembers = False
        self._revision = self._as_of(self._call)

    def _check(self) -> None:
        """What a process says of itself is held against the kernel's row of it. Raises `BadRequest`."""
        opening = self._opening
        row = latest(self._records.kernel, ProcessRow.key_of(opening.boot, opening.process))
        process = None if row is None else decode(ProcessRow, row.value or b"")
        if process is None or (process.server, process.version) != (self._server, opening.version):
            raise BadRequest(
                where=f"the record of {self._server}",
                expected="a process of that server",
                got="another one's, by its own word",
            )
        if not opening.package.isidentifier():
            raise BadRequest(
                where=f"the record of {self._server}", expected="a package's name", got=opening.package
            )

    def _as_of(self, call: Recorded) -> int:
        """The revision at which it began: what its views had seen, or what had been committed by then."""
        seen = [*call.views.values(), *(own.revision for own in call.ahead)]
        for state in self._keyspaces.values():
            seen.append(state.revision_at.now(call.time / 1e9))
            break
        return max(seen, default=0)

    def remember(self) -> bool:
        """Run all calls of its process before it, too; False: they are not all there, or too many, or they are run."""
        if self._remembers:
            return False
        before: list[Recorded] = []
        for call in self._process.calls():
            if (call.channel, call.request) == (self._call.channel, self._call.request):
                break
            before.append(call)
        chunks = list(self._process.chunks())
        whole = bool(chunks) and chunks[0].position == 0 and chunks[-1].dropped == 0
        if not whole or len(before) > BEFORE_MOST:
            return False
        if any(self._hindrance(call) or call.beside for call in before):
            return False
        self._before, self._remembers = sorted(before, key=lambda call: call.time), True
        return True

    def _hindrance(self, call: Recorded) -> str:
        """Why a call cannot be replayed, as far as the recording says so; empty: it can."""
        method = next((each for each in self._opening.methods if each.number == call.method), None)
        if call.arguments is None:
            return "it was recorded without its arguments: its server has no `record`, or they were too long"
        if method is None or method.kind != "call":
            return (
                f"it is a {method.kind if method else 'call of no method'}: what passes there is not recorded"
            )
        if self._opening.left_out:
            return (
                f"its process took over {self._opening.left_out} bytes from the one before it, more than is recorded: "
                f"what it remembered is not known"
            )
        if method.durable:
            return "it is about a workflow: `atoll flow show` has its steps"
        return ""

    # a process of its own ------------------------------------------------------------------------------------------

    def run(self, *, debug: bool = False) -> Played | Ended:
        """Run it; what came of it, or how its process ended."""
        hindrance = self._hindrance(self._call)
        if hindrance:
            return Played(hindrances=[hindrance])
        case = Case(
            opening=self._opening, start=self._start, before=self._before, call=self._call,
            revisions={-1: self._revision} | {place: self._as_of(call) for place, call in enumerate(self._before)},
            debug=debug,
        )  # fmt: skip
        ours, theirs = socket.socketpair()
        version = [] if self._given is not None else [f"--version={self._opening.version}"]
        command = jobs.python(
            "atoll.microkernel",
            "replay",
            str(self._package),
            *version,
            f"--socket={theirs.fileno()}",
            *(["--terminal"] if debug else []),
        )
        terminal = None if debug else subprocess.DEVNULL
        output = None if debug else sys.stderr  # what the server prints is no answer of ours
        with (
            ours,
            subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=terminal, stdout=output) as confined,
        ):
            theirs.close()
            try:
                return self._converse(ours, case)
            except (ConnectionError, ValueError) as error:
                return Ended(how=f"did not speak as a replay does: {error}", clean=False)
            finally:
                ours.shutdown(socket.SHUT_RDWR)
                if confined.wait():
                    raise typer.Exit(exits.WRONG_INPUT)  # it has said why

    def _converse(self, ours: socket.socket, case: Case) -> Played | Ended:
        """Give the case, answer questions, take the report. The process may say anything: it gets reads, and no more."""
        ours.sendall(framed(case))
        played: Played | None = None
        with ours.makefile("rb") as told:
            while packed := received(told.read):
                match from_process.decode(packed):
                    case Ask() as asked:
                        ours.sendall(framed(self._answer(asked)))
                    case Played() as played:
                        pass
                    case Ended() as ended:
                        return played or ended
        return played or Ended(how="ended before its replay did", clean=False)

    def _bound(self, asked: Ask) -> bytes:
        """Its arguments, as of then at the latest, whatever the process says. Raises `BadRequest` for what is none."""
        try:
            given = arguments_of(asked.method, asked.arguments)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(asked.method, "its arguments", str(error)) from None
        if hasattr(given, "as_of"):
            latest = max(self._revision, *(own.revision for own in self._call.ahead), 0, 0)
            given.as_of = min(given.as_of, latest) if isinstance(given.as_of, int) else latest
        if hasattr(given, "least"):
            given.least = 0
        return msgspec.msgpack.encode(given)

    def _answer(self, asked: Ask) -> Answer:
        state = self._keyspaces.get(asked.need)
        if state is None or asked.method not in PAST:
            fault = NotFound.among("keyspace that was bound to the need", asked.need, self._keyspaces)
            return Answer(fault=errors.encode(fault))
        try:
            reply = transport_of(state).call_now(BY_LABEL[asked.method], self._bound(asked), DEFAULTS)
        except AtollError as error:
            return Answer(fault=errors.encode(error))
        return Answer(reply=bytes(reply))

    def _ended_then(self) -> str:
        """How the process ended that was given the call, if it did so without an answer: by the kernel's own row."""
        if self._call.answered or self._call.cast:
            return ""
        row = latest(self._records.kernel, ProcessRow.key_of(self._call.boot, self._call.process))
        return "" if row is None else decode(ProcessRow, row.value or b"").exit

    # what it comes to ----------------------------------------------------------------------------------------------

    def report(self, came: Played | Ended) -> Report:
        reasons: list[str] = []
        remarks: list[str] = []
        if isinstance(came, Ended):
            then = self._ended_then()
            same = bool(then) and then == came.how
            remarks = [f"its process {came.how}, as it did then"] if same else []
            differences = [] if same else [Difference(where="process", then=then or NOTHING, now=came.how)]
            log: list[tuple[str, str]] = []
        else:
            reasons, remarks, differences, log = self._judged(came)
        verdict: Verdict = "not replayable" if reasons else "different" if differences else "same"
        opening = self._opening
        return Report(
            call=self._call.id, method=self._process.method(self._call), server=opening.server,
            version=opening.version, package="" if self._given is None else str(self._given), revision=self._revision,
            before=len(self._before), verdict=verdict, reasons=reasons, remarks=remarks, differences=differences, log=log,
        )  # fmt: skip

    def _judged(self, played: Played) -> tuple[list[str], list[str], list[Difference], list[tuple[str, str]]]:
        differences = different(played)
        why = list(played.moved)
        if played.leaned and not self._remembers:
            why.append(
                f"its handler read {', '.join(f'self.{name}' for name in played.leaned)}, which calls before it may have set"
            )
        if self._call.beside and differences:
            why.append(f"{self._call.beside} other calls were in hand while it was")
        reasons = list(played.hindrances)
        if differences and self._given is None:
            reasons += why
            why = []
        if not played.answered and not played.hindrances:
            why.append("then it was not answered: its process ended, or its record was full")
        return reasons, why, differences, played.log


def different(played: Played) -> list[Difference]:
    """What is not the same, field by field."""
    found: list[Difference] = []
    if not played.answered:
        if not played.hindrances:
            found.append(Difference(where="reply", then=NOTHING, now=played.now))
    elif not played.same_answer:
        then = "fault" if played.then_failed else "reply"
        now = "fault" if played.now_failed else "reply"
        if then != now:
            found.append(Difference(where=then, then=played.then, now=NOTHING))
            found.append(Difference(where=now, then=NOTHING, now=played.now))
        else:
            found += fields(then, played.then, played.now)
    for change in played.changes:
        if not change.same:
            where = f"{change.need} {change.key}"
            then, now = value(change.then, change.deleted_then), value(change.now, change.deleted_now)
            found += fields(where, then, now) or [Difference(where=where, then=then, now=now)]
    for question in played.questions:
        there = {"then" if question.then else "now": question.arguments}
        where = f"{question.need} {question.method}"
        found.append(Difference(where=where, **{"then": NOTHING, "now": NOTHING} | there))
    return found


def value(written: Any, deleted: bool) -> Any:
    return "(deleted)" if deleted else NOTHING if written is None else written


def fields(where: str, then: Any, now: Any) -> list[Difference]:
    """The least parts of two values that are not the same."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            each
            for name in {**then, **now}
            if then.get(name, NOTHING) != now.get(name, NOTHING)
            for each in fields(f"{where}.{name}", then.get(name, NOTHING), now.get(name, NOTHING))
        ]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [
            each
            for place, pair in enumerate(zip(then, now, strict=True))
            if pair[0] != pair[1]
            for each in fields(f"{where}[{place}]", *pair)
        ]
    return [Difference(where=where, then=then, now=now)] if then != now else []


def safe(text: str) -> str:
    """What a replayed server says, with nothing in it that a terminal would act upon."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def tell(report: Report, as_json: bool) -> None:
    if as_json:
        print(printing.json(report))
        return
    ran = f"the package {report.package}" if report.package else f"version {report.version[:8]}"
    first = f", after the {report.before} calls before it" if report.before else ""
    print(
        f"{report.call} {report.method}, by {ran}, as of revision {report.revision}{first}: {report.verdict}"
    )
    for sentence in report.reasons:
        print(f"  since {safe(sentence)}")
    for sentence in report.remarks:
        print(f"  {safe(sentence)}")
    if report.differences:
        printing.draw(report.differences, ROWS)
    for level, line in report.log:
        print(f"  {safe(level)}: {safe(line)}")
