"""The store's endpoint: who asks decides what is seen, and when a group is committed.

Plain handlers throughout. A commit is admitted at once and answered by a Deferred; the receive loop calls
`idle` when it has drained its rings, and that is where a group is committed. Without such a loop (no one ever
called `idle`) each commit is a group of its own. All members of a group are settled in one go, so their
replies are put without a wake-up each.
"""

from collections.abc import AsyncIterator
from typing import Final

import trio

from atoll.ipc import clock
from atoll.ipc.context import current
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import BadRequest, NotAllowed, NotFound, QuotaExceeded
from atoll.ipc.serve import Serves
from atoll.ipc.system.state import (
    NEVER,
    Ahead,
    AsOf,
    Change,
    Committed,
    Expect,
    Horizon,
    Item,
    Only,
    Outline,
    Page,
    Pin,
    PinExists,
    Provenance,
    Range,
    Retention,
    State,
    Stretch,
    Write,
)

from . import appending, export, layout, pins, scope
from .compaction import Compactor, horizon_of
from .engine import Broken
from .gather import Gather
from .group import Group, Transaction, committed_before, told
from .history import History, moment
from .keyspaces import Keyspaces
from .notice import changes_of_file
from .opening import Settings, open_engine
from .ownership import Disowned, Ownership
from .passes import Passes
from .pins import OWN
from .transactions import ID_SIZE, Transactions, led_back
from .versions import time_of
from .watchers import Watchers

RANGE_LIMIT: Final = 10_000
CHANGES_AT_ONCE: Final = 64
"""Read of the feed in one go."""


class Server(Serves[State]):
    config: Settings
    open_engine = staticmethod(open_engine)

    def __init__(self) -> None:
        self._handed_over = b""
        self._reads = 0
        self._gather = Gather()
        self._began = 0.0
        # Whether a receive loop calls `idle`.
        self._looped = False

    async def start(self) -> None:
        self._engine, sentence = self.open_engine(self.config)
        self._keyspaces = Keyspaces(self._engine)
        self._history = History(self._engine, self._keyspaces.name)
        self._watchers = Watchers(self._history)
        ownership = Ownership(self._engine, self.config.boot)
        self._group = Group(self._history, ownership, self._watchers.announce)
        compactor = Compactor(
            self._engine,
            self._keyspaces,
            ownership,
            grace=self.config.grace,
            remember=self.config.remember,
        )
        self._transactions = Transactions(self._history)
        self._passes = Passes(compactor, self._group, self._transactions, self._admit)
        if self._handed_over:
            self._transactions.take_over(self._handed_over)
        self._opened = sentence

    async def run(self) -> None:
        """A reader learns from the file itself that the writer has committed; a writer removes what is no longer
        kept."""
        if self.config.role == "reader":
            async for _ in changes_of_file(self.config.folder):
                while self._watchers.follow():
                    await trio.lowlevel.checkpoint()
            return
        while True:
            await trio.sleep(self.config.compact_every)
            await self._passes.make()

    async def stop(self) -> None:
        self._flush_all()
        self._passes.end()
        self._engine.close()

    def hand_over(self) -> bytes:
        self._flush_all()
        self._passes.rest()
        return self._transactions.hand_over()

    def take_over(self, state: bytes) -> None:
        self._handed_over = state

    def client_gone(self, channel: int) -> None:
        self._transactions.end_of(channel.__eq__)

    def clients_present(self, channels: frozenset[int]) -> None:
        self._transactions.end_of(lambda client: client not in channels)

    def idle(self) -> float | None:
        """The loop has drained its rings. Commits, or says in how many seconds to come again if nothing
        arrives before."""
        self._looped = True
        size = len(self._group)
        if not size:
            return None
        wait = self._gather.wait(size, clock.monotonic() - self._began)
        if wait > 0 and not self._group.full:
            return wait
        self._flush()
        return 0.0 if len(self._group) else None

    # reading

    @State.get.serve
    def get(self, key: bytes, as_of: AsOf = None, least: int = 0) -> Item | None:
        badge, as_of = self._reading(as_of)
        return scope.bare(badge, self._history.get(scope.inside(badge, key), as_of, least))

    @State.range.serve
    def range(
        self,
        start: bytes,
        end: bytes = b"",
        limit: int = 1000,
        as_of: AsOf = None,
        reverse: bool = False,
        least: int = 0,
    ) -> Page:
        badge, as_of = self._reading(as_of)
        first, stop = scope.span(badge, start, end)
        page = self._history.range(first, stop, _limit(limit), as_of, reverse, least)
        return scope.bare_page(badge, page)

    @State.history.serve
    def history(self, key: bytes, limit: int = 100, least: int = 0) -> list[Item]:
        self._reads += 1
        badge = current().badge
        items = self._history.history(scope.inside(badge, key), _limit(limit), least)
        return [scope.bare_item(badge, item) for item in items]

    @State.watch.serve
    async def watch(self, after: int, prefix: bytes = b"", only: Only = "all") -> AsyncIterator[Change]:
        call = current()
        badge, past = call.badge, "history" in call.rights
        scope.revision("watch: after", after)
        within = scope.within(badge, prefix)
        async for change in self._watchers.watch(after, within, past=past, only=only):
            yield scope.bare_change(badge, change)

    @State.changes.serve
    async def changes(self, after: int, upto: int, prefix: bytes = b"") -> AsyncIterator[Change]:
        self._reads += 1
        badge = current().badge
        scope.revision("changes: after", after)
        if upto > (head := self._history.head()):
            raise Ahead(revision=upto, head=head)
        within = scope.within(badge, prefix)
        more = after < upto
        while more:
            found, after, more = self._history.changes(after, within, CHANGES_AT_ONCE)
            for change in found:
                if change.revision > upto:
                    break
                for part in self._history.parts(change.revision, within) if change.more else (change,):
                    yield scope.bare_change(badge, part)
                    await trio.lowlevel.checkpoint()
            more = more and after < upto
            await trio.lowlevel.checkpoint()

    @State.head.serve
    def head(self) -> int:
        return self._history.head()

    @State.revision_at.serve
    def revision_at(self, time: float) -> int:
        seconds = self._certain(scope.seconds("revision_at", time))
        return self._history.revision_at(seconds, current().badge)

    @State.who.serve
    def who(self, revision: int) -> Provenance | None:
        self._reads += 1
        badge = current().badge
        return self._history.who(scope.revision("who", revision), None if badge == OWN else badge)

    @State.pins.serve
    def pins(self, as_of: AsOf = None) -> list[Pin]:
        badge, as_of = self._reading(as_of)
        with self._engine.snapshot() as snapshot:
            return pins.all_on(snapshot, badge, moment(snapshot, as_of, 0, *pins.SPAN))

    @State.horizon.serve
    def horizon(self) -> Horizon:
        badge = current().badge
        self._keyspaces.refresh()
        with self._engine.snapshot() as snapshot:
            return horizon_of(snapshot, badge, self._keyspaces.retention(badge))

    @State.outline.serve
    def outline(self) -> Outline:
        self._unbadged("outline", current().badge)
        # What waits bears the time at which it was asked for, and who backs up says up to which time he has all.
        self._flush_all()
        return export.outline(self._engine)

    @State.export.serve
    async def export(
        self,
        upto: int,
        down_to: int = 0,
        keyspaces: list[int] = [],  # noqa: B006 (as the interface has it; never changed)
    ) -> AsyncIterator[Stretch]:
        self._unbadged("export", current().badge)
        blocks = export.blocks(self._engine, upto, down_to, frozenset(keyspaces))
        for piece in export.pieces(upto, blocks):
            yield piece
            await trio.lowlevel.checkpoint()

    @State.statistics.serve
    def statistics(self) -> dict[str, int]:
        return self._engine.statistics() | {
            "revision": self._history.head(),
            "groups": self._group.groups,
            "committed": self._group.committed,
            "reads": self._reads,
            "watchers": len(self._watchers),
            "transactions": len(self._transactions),
        }

    # writing

    @State.commit.serve
    def commit(
        self,
        writes: list[Write],
        expects: list[Expect | Range] = [],  # noqa: B006 (as the interface has it; never changed)
        id: bytes = b"",
        reply: bytes = b"",
        note: str = "",
        transaction: bytes = b"",
    ) -> Deferred[Committed]:
        badge = self._writing("commit", current().badge)
        checks = [scope.check(badge, expect) for expect in expects]
        return self._commit(badge, self._rows(badge, writes), checks, id, reply, note, transaction)

    @State.append.serve
    def append(
        self,
        writes: list[Write],
        id: bytes = b"",
        reply: bytes = b"",
        note: str = "",
        transaction: bytes = b"",
    ) -> Deferred[Committed]:
        badge, id = self._writing("append", current().badge), appending.id_of(id)
        rows = self._rows(badge, writes)
        new: list[Expect | Range] = [Expect(key, NEVER) for key in appending.keys(rows)]
        if any(self._group.holds(key) for key, _ in rows):
            self._flush_all()
        done = self._committed(badge, id, reply) if id else None
        # Of a transaction that was committed before nothing is written: what it has appended then is no hindrance.
        if done is None and not (transaction and self._transactions.is_repeated(transaction)):
            with self._engine.snapshot() as snapshot:
                if there := appending.there(snapshot, rows, self._keyspaces.name):
                    done = appending.appended(snapshot, there)
            if there and transaction:
                self._transactions.meet(transaction, there)
        if done is not None:
            return Deferred.resolved(done)
        return self._commit(badge, rows, new, id, reply, note, transaction)

    def _rows(self, badge: int, writes: list[Write]) -> list[tuple[bytes, bytes | None]]:
        """What is written, under absolute keys."""
        if badge == OWN:
            return [(self._owned(write.key), write.value) for write in writes]
        prefix = layout.prefix(badge)
        return [(prefix + write.key, write.value) for write in writes]

    def _commit(
        self,
        badge: int,
        rows: list[tuple[bytes, bytes | None]],
        checks: list[Expect | Range],
        id: bytes,
        reply: bytes,
        note: str,
        transaction: bytes,
    ) -> Deferred[Committed]:
        call = current()
        if transaction:
            self._transactions.write(transaction, rows, checks)
            return Deferred.resolved(Committed(0, 0))
        return self._admit(
            Transaction(
                badge,
                rows,
                checks,
                layout.prefix(badge) + id if id else b"",
                reply,
                note,
                f"{call.client}:{call.request}",
                call.trace,
                (),
                self._keyspaces.reserved(badge),
                int(call.now() * 1e9),
                call.service == "bulk",
                "read" in call.rights,
            )
        )

    @State.begin.serve
    def begin(self, deadline: float, id: bytes = b"", transaction: bytes = b"") -> bytes:
        call = current()
        badge = self._writing("begin", call.badge)
        if id and self._group.knows(layout.prefix(badge) + id):
            self._flush_all()
        done = self._committed(badge, id) if id else None
        before = led_back(done, call.rights, int(call.now() * 1e9))
        return self._transactions.begin(badge, call.client, deadline, before, transaction)

    @State.read.serve
    def read(self, transaction: bytes, key: bytes) -> Item | None:
        badge = _reading_too("read")
        return scope.bare(badge, self._transactions.read(transaction, scope.inside(badge, key)))

    @State.scan.serve
    def scan(self, transaction: bytes, start: bytes, end: bytes = b"", limit: int = 1000) -> Page:
        badge = _reading_too("scan")
        first, stop = scope.span(badge, start, end)
        return scope.bare_page(badge, self._transactions.scan(transaction, first, stop, _limit(limit)))

    @State.savepoint.serve
    def savepoint(self, transaction: bytes) -> int:
        return self._transactions.savepoint(transaction)

    @State.undo.serve
    def undo(self, transaction: bytes, savepoint: int) -> None:
        self._transactions.undo(transaction, savepoint)

    @State.share.serve
    def share(self, transaction: bytes) -> bytes:
        call = current()
        return self._transactions.share(transaction, call.badge, call.client)

    @State.join.serve
    def join(self, part: bytes) -> None:
        call = current()
        self._transactions.join(part, call.badge, call.client)

    @State.retract.serve
    def retract(self, part: bytes) -> None:
        call = current()
        self._transactions.retract(part, call.badge, call.client)

    @State.finish.serve
    def finish(
        self, transaction: bytes, reply: bytes = b"", note: str = "", id: bytes = b""
    ) -> Deferred[Committed]:
        call = current()
        badge = self._writing("finish", call.badge)
        known = layout.prefix(badge) + (id or transaction)
        if len(transaction) == ID_SIZE:
            done = self._committed(badge, id or transaction, reply)
            if done is not None:
                self._transactions.forget(transaction, badge, call.client)
                return Deferred.resolved(done)
        taken = self._transactions.take(transaction, badge, call.client)
        if taken.only_read and not reply:
            with self._engine.snapshot() as snapshot:
                return Deferred.resolved(Committed(taken.began, time_of(snapshot, taken.began)))
        expects = [Expect(key, revision) for key, revision in taken.reads.items()]
        return self._admit(
            Transaction(
                badge,
                taken.writes,
                [*expects, *taken.ranges],
                known,
                reply,
                note,
                f"{call.client}:{call.request}",
                call.trace,
                taken.parties(),
                self._keyspaces.reserved(badge),
                int(call.now() * 1e9),
                call.service == "bulk",
                "read" in call.rights,
            )
        )

    def _committed(self, badge: int, id: bytes, reply: bytes = b"") -> Committed | None:
        """What the commit with that id of a keyspace came to, if it is durable."""
        with self._engine.snapshot() as snapshot:
            before = committed_before(snapshot, layout.prefix(badge) + id)
        return None if before is None else told(before, reply, "read" in current().rights)

    @State.abort.serve
    def abort(self, transaction: bytes) -> None:
        call = current()
        self._transactions.forget(transaction, call.badge, call.client)

    @State.pin.serve
    def pin(self, name: str, revision: int = 0, why: str = "") -> Pin:
        call = current()
        badge = self._writing("pin", call.badge)
        scope.revision("pin", revision)
        if not name or len(name) > pins.NAME_LIMIT or not name.isprintable():
            raise BadRequest("pin: name", f"1 to {pins.NAME_LIMIT} printable characters", repr(name))
        if len(why) > pins.WHY_LIMIT:
            raise BadRequest("pin: why", f"at most {pins.WHY_LIMIT} characters", str(len(why)))
        # Nobody compacts between here and the end: what is kept now is kept when the pin is durable.
        self._flush()
        with self._engine.snapshot() as snapshot:
            known = pins.of_keyspace(snapshot, badge)
            if name in known:
                if revision not in (0, known[name].revision):
                    raise PinExists(name, known[name].revision)
                return known[name]
            if len(known) >= pins.LIMIT:
                raise QuotaExceeded(self._keyspaces.name(badge), "pins", pins.LIMIT)
            revision = moment(snapshot, revision or None, 0, *scope.span(badge, b"", b""))
        now = int(call.now() * 1e9)
        made = Pin(name, revision, why, self._keyspaces.name(badge), f"{call.client}:{call.request}", now)
        self._write_pin(badge, name, pins.encode(made), f"pin {name}")
        return made

    @State.unpin.serve
    def unpin(self, name: str) -> None:
        badge = self._writing("unpin", current().badge)
        self._flush()
        with self._engine.snapshot() as snapshot:
            if name not in pins.of_keyspace(snapshot, badge):
                return
        self._write_pin(badge, name, None, f"unpin {name}")

    def _write_pin(self, badge: int, name: str, value: bytes | None, note: str) -> None:
        call = current()
        self._durably(
            Transaction(
                badge,
                [(pins.key_of(badge, name), value)],
                [],
                note=note,
                call=f"{call.client}:{call.request}",
                trace=call.trace,
                others=(OWN,) if badge else (),
                reserved=self._keyspaces.reserved(badge),
                time=int(call.now() * 1e9),
            )
        )

    @State.make_keyspace.serve
    def make_keyspace(self, name: str, retention: Retention = Retention(), reserved: bool = False) -> int:  # noqa: B008
        call = current()
        self._unbadged("make_keyspace", call.badge)
        # What is waiting goes first: a keyspace of that name may be among it.
        self._flush()
        known = self._keyspaces.by_name().get(name)
        expects: list[Expect | Range] = []
        if known is None:
            number, write, expect = self._keyspaces.rows_for(name, retention, reserved)
            expects.append(expect)
        elif self._keyspaces.retention(known) == retention or known == OWN:
            return known
        else:
            number, write = known, self._keyspaces.row_with(known, retention)
        self._durably(
            Transaction(
                OWN,
                [(write.key, write.value)],
                expects,
                note=f"make_keyspace {name}",
                call=f"{call.client}:{call.request}",
                trace=call.trace,
                reserved=True,
                time=int(call.now() * 1e9),
            )
        )
        self._keyspaces.refresh()
        return number

    @State.keyspaces.serve
    def keyspaces(self) -> dict[str, int]:
        self._unbadged("keyspaces", current().badge)
        return self._keyspaces.by_name()

    # what the handlers share

    def _admit(self, transaction: Transaction) -> Deferred[Committed]:
        """Into the group; commits at once if nobody else will, or if the group is full."""
        done: Deferred[Committed] = Deferred()
        if not len(self._group):
            self._began = clock.monotonic()
        self._group.admit(transaction, done)
        if not self._looped or self._group.full:
            self._flush()
        return done

    def _durably(self, transaction: Transaction) -> None:
        """Returns when it is durable: behind all that waits, of which one group may not have room for both."""
        done = self._admit(transaction)
        self._flush_all()
        done.result()

    def _flush(self) -> None:
        """Makes the group durable and answers it. A store that cannot be trusted or is no longer ours ends
        the process: nothing is answered, so its clients learn that the outcome is unknown, and the next
        process recovers."""
        size = len(self._group)
        if not size:
            return
        began = clock.monotonic()
        try:
            self._group.flush()
        except (Broken, Disowned) as fault:
            raise SystemExit(f"state: {fault}") from fault
        self._began = clock.monotonic()
        self._gather.committed(size, self._began - began)

    def _flush_all(self) -> None:
        while len(self._group):
            self._flush()

    def _reading(self, as_of: AsOf) -> tuple[int, AsOf]:
        """Whose keyspace is read, and as of which moment."""
        self._reads += 1
        call = current()
        if as_of is not None and "history" not in call.rights:
            raise NotAllowed("State.get/range with as_of", "history", tuple(sorted(call.rights)))
        as_of = scope.moment(as_of)
        return call.badge, self._certain(as_of) if isinstance(as_of, float) else as_of

    def _certain(self, time: float) -> float:
        """A time as of which is read, in seconds. What waits bears the time at which it was asked for: where it is no later
        it is made durable first, or who reads as of then once more would find more."""
        if self._group.reaches(int(time * 1e9)):
            self._flush_all()
        return time

    def _writing(self, method: str, badge: int) -> int:
        if self.config.role == "reader":
            raise BadRequest(
                f"State.{method}", "a capability on the writer", "one on a reader process, which only reads"
            )
        if not self._keyspaces.exists(badge):
            raise NotFound("keyspace", str(badge))
        return badge

    def _owned(self, key: bytes) -> bytes:
        """A key as the unbadged capability names it: absolute already, but it must be one."""
        if len(key) < layout.KEYSPACE_SIZE or not self._keyspaces.exists(layout.keyspace_of(key)):
            raise BadRequest(
                "commit: key", "the number of a keyspace in 4 bytes, then the key (`absolute`)", repr(key[:8])
            )
        return key

    def _unbadged(self, method: str, badge: int) -> None:
        if badge != OWN:
            raise NotAllowed(f"State.{method}", "the unbadged capability", tuple(sorted(current().rights)))


def _reading_too(method: str) -> int:
    """The badge of a call in a transaction, which has the right `write`, and needs `read` as well."""
    call = current()
    if "read" not in call.rights:
        raise NotAllowed(f"State.{method}", "read", tuple(sorted(call.rights)))
    return call.badge


def _limit(limit: int) -> int:
    if not 1 <= limit <= RANGE_LIMIT:
        raise BadRequest("limit", f"1 to {RANGE_LIMIT}", str(limit))
    return limit
