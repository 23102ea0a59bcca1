"""The node as it was: what the kernel's rows say as of one revision, in the form in which the kernel tells what is."""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from msgspec import Struct

from atoll.ipc.attach import connect
from atoll.ipc.errors import NotFound
from atoll.ipc.system import kernel as calls
from atoll.ipc.system.records import (
    KEYSPACE,
    LOG,
    BootRow,
    CapabilityRow,
    CrashRow,
    EventRow,
    ImageRow,
    KeyPart,
    LogRow,
    ProcessRow,
    ProtectionRow,
    RefusalRow,
    Row,
    ServerRow,
    SessionRow,
    VersionRow,
    after,
    decode,
)
from atoll.ipc.system.state import State

from .rows import pages, revision
from .when import moment

AnyRow = TypeVar("AnyRow", bound=Row)


class Was(Struct, frozen=True, kw_only=True):
    """A server and its process at a moment. What a process used is no row, and known of now only."""

    server: str
    state: Literal["serving", "frozen", "stopped", "restarting", "failed", "down"]
    pid: int
    level: str
    version: str
    started: int
    crashes: int
    """In the boot, up to then."""
    reason: str = ""


class Protected(Struct, frozen=True, kw_only=True):
    """What kept a server in: mechanisms in force, and what was missing with the reason."""

    server: str
    wanted: str
    level: str
    mechanisms: list[str]
    weakenings: list[calls.Weakening]


class Then:
    """Reads the rows as of a revision, and of the boot that it was in."""

    def __init__(self, kernel: State, log: State, revision: int) -> None:
        self._kernel = kernel
        self._log = log
        self._revision = revision
        boots = self._last(BootRow, 1)
        if not boots:
            raise NotFound(what=f"boot up to revision {revision} in the keyspace", name=KEYSPACE)
        self.boot = boots[0]

    def rows(self, table: type[AnyRow], *key: KeyPart) -> Iterator[AnyRow]:
        """The rows whose key begins so, in order."""
        start = table.key_of(*key)
        for items in pages(self._kernel, start, after(start), self._revision):
            yield from (decode(table, item.value or b"") for item in items)

    def _last(self, table: type[AnyRow], count: int, *key: KeyPart) -> list[AnyRow]:
        """The last rows whose key begins so, the last first."""
        start = table.key_of(*key)
        page = self._kernel.range.now(start, after(start), count, self._revision, reverse=True)
        return [decode(table, item.value or b"") for item in page.items]

    def image(self) -> ImageRow:
        return next(self.rows(ImageRow, self.boot.image))

    def servers(self) -> list[Was]:
        boot = self.boot.epoch
        lives: dict[str, ProcessRow] = {}
        if not self.boot.ended:
            lives = {row.server: row for row in self.rows(ProcessRow, boot) if not row.ended}
        events = list(self.rows(EventRow, boot))
        levels = {row.server: row.level for row in self.rows(ProtectionRow)}
        return [self._server(spec, lives.get(spec.server), events, levels) for spec in self.rows(ServerRow)]

    def _server(
        self, spec: ServerRow, process: ProcessRow | None, events: list[EventRow], levels: dict[str, str]
    ) -> Was:
        crashes = list(self.rows(CrashRow, spec.server, self.boot.epoch))
        state: Literal["serving", "frozen", "stopped", "restarting", "failed", "down"] = "serving"
        reason = ""
        if spec.stopped:
            state, process = "stopped", None  # the row of its end is written a little later
        elif process is not None:
            frozen = [each for each in events if each.who == spec.server and each.kind in ("freeze", "thaw")]
            if frozen and frozen[-1].kind == "freeze" and frozen[-1].time > process.started:
                state, reason = "frozen", frozen[-1].sentence
        elif crashes and not self.boot.ended:
            state, reason = ("restarting" if crashes[-1].again else "failed"), crashes[-1].how
        else:
            state = "down"
        return Was(
            server=spec.server, state=state, pid=process.pid if process else 0,
            level=levels.get(spec.server, spec.level), version=process.version if process else spec.version,
            started=process.started if process else 0, crashes=len(crashes), reason=reason,
        )  # fmt: skip

    def capabilities(self, server: str) -> list[calls.CapabilityRow]:
        """Of all servers, or those that a server held or that were on it."""
        found = {row.id: (row, True) for row in self.rows(CapabilityRow)}
        for session in self.rows(SessionRow, self.boot.epoch):
            found |= {row.id: (row, False) for row in session.began}
            for ended in session.ended:
                found.pop(ended, None)
        return [
            calls.CapabilityRow(
                number=row.id, parent=row.parent, holder=row.holder, server=row.server, interface=row.interface,
                badge=row.badge, rights=sorted(row.rights), lasting=lasting, made=row.id >> 32, expires=row.expiry,
            )
            for _, (row, lasting) in sorted(found.items())
            if server in ("", row.holder, row.server)
        ]  # fmt: skip

    def protection(self, server: str) -> Protected:
        row = next(self.rows(ProtectionRow, server), None)
        if row is None:
            known = [each.server for each in self.rows(ProtectionRow)]
            raise NotFound.among(f"server that had been started by revision {self._revision}", server, known)
        return Protected(
            server=row.server, wanted=row.asked, level=row.level, mechanisms=list(row.mechanisms),
            weakenings=[
                calls.Weakening(server=row.server, mechanism=mechanism, reason=reason)
                for mechanism, reason in row.weakenings
            ],
        )  # fmt: skip

    def refusals(self, server: str) -> list[calls.Refusal]:
        """Latest first."""
        rows = [row for row in self.rows(RefusalRow, self.boot.epoch) if server in ("", row.who)]
        return [
            calls.Refusal(
                server=row.who, by=row.by, what=row.what, count=row.count, first=row.first, last=row.last
            )
            for row in sorted(rows, key=lambda row: row.last, reverse=True)
        ]

    def versions(self, server: str) -> list[calls.VersionRow]:
        """Latest first."""
        specs = [spec for spec in self.rows(ServerRow) if server in ("", spec.server)]
        found = [
            calls.VersionRow(
                version=row.hash, server=spec.server, package=row.package, loaded=row.added,
                running=row.hash == spec.version,
            )
            for row in self.rows(VersionRow)
            for spec in specs
            if spec.package == row.package
        ]  # fmt: skip
        return sorted(found, key=lambda version: version.loaded, reverse=True)

    def lines(self, server: str, count: int) -> list[LogRow]:
        """The last lines, of earlier boots as well; the last of them last."""
        each = [self._last_lines(name, count) for name in ([server] if server else self._writers())]
        return heapq.nlargest(count, (row for rows in each for row in rows), key=lambda row: row.time)[::-1]

    def _last_lines(self, server: str, count: int) -> list[LogRow]:
        """Of one server. A line is never written again: what is there now was there then, if it was written by then."""
        start, found = LogRow.key_of(server), list[LogRow]()
        end = after(start)
        while len(found) < count:
            page = self._log.range.now(start, end, 1000, None, reverse=True)
            found += [
                decode(LogRow, item.value or b"") for item in page.items if item.revision <= self._revision
            ]
            if not page.more:
                break
            end = page.items[-1].key
        return found[:count]

    def _writers(self) -> Iterator[str]:
        """Whoever has lines; of each only one is read."""
        start, end = LogRow.key_of(), after(LogRow.key_of())
        while found := self._log.range.now(start, end, 1).items:
            name = decode(LogRow, found[0].value or b"").server
            yield name
            start = after(LogRow.key_of(name))


@contextmanager
def then(node: str, at: str) -> Iterator[Then]:
    """A node as of a moment, as `--at` has it."""
    when = moment(at)
    with connect(node=node or None) as attached:
        kernel = attached.keyspace(KEYSPACE, ["read", "history"])
        yield Then(kernel, attached.keyspace(LOG, ["read"]), revision(kernel, when))
