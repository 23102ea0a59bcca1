"""Retention acted upon: what no keyspace promises any more is removed, a little at a time, beside the writers.

A *pass* fixes for each keyspace up to where the feed may be swept, by its retention, and then takes *steps*
(`sweep.py`). A step is one small batch of the engine: the rows that go, and the keyspace's progress with the horizon
that this makes (`horizons.py`). It is atomic and takes no revision. So a pass can be cut at any step, by a death too:
what was removed is recorded with it, and the next pass goes on from there. What was removed is told in a row of keyspace
0 as well, with its history: at the end of a pass, but no more than once in `RECORDED` seconds for a keyspace, since
these rows are kept for ever.

Never removed: the newest version of a key; what is younger than `grace`; what an open transaction still reads; what a
pin holds; anything of a keyspace without retention; the commit ids of the last `remember` seconds, and all of the
unbadged capability, whose holder may repeat a commit after any time.
"""

from typing import Final, Literal, NamedTuple

import msgspec

from atoll.ipc.system.state import Horizon, Retention

from . import horizons, layout, pins
from .engine import Batch, ConditionFailed, Engine, Full, Snapshot
from .horizons import Progress
from .keyspaces import Keyspaces
from .ownership import CLAIM, Disowned, Ownership
from .pins import OWN
from .sweep import WORK, Places, Sweep
from .versions import newest, time_of

KEEP_PLACE: Final = 4096
"""Revisions swept in vain after which the place is written down all the same."""


RECORDED: Final = 3600.0


class Removed(msgspec.Struct, array_like=True, frozen=True):
    """The row of some passes over one keyspace. Counts are of these; `sums` of all there were."""

    keyspace: str
    horizon: int
    horizon_time: int
    versions: int
    ids: int
    size: int
    sums: tuple[int, int, int]


class _Job(NamedTuple):
    """A keyspace's feed is to be swept up to a revision, by one of its rules, for as long as its retention is this one."""

    keyspace: int
    rule: Literal["aged", "counted", "forgotten"]
    target: int
    retention: Retention


_START: Final = layout.prefix(OWN) + b"compaction/"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Removed).decode


class Compactor:
    def __init__(
        self, engine: Engine, keyspaces: Keyspaces, ownership: Ownership, *, grace: float, remember: float
    ) -> None:
        """Durations in seconds."""
        self._engine = engine
        self._keyspaces = keyspaces
        self._ownership = ownership
        self._grace = grace
        self._remember = remember
        self.work = WORK
        self._most = engine.maximum_operations - CLAIM - 1
        """Operations of a step, besides the claim and the keyspace's progress."""
        self.rows_at_once = self._most // 2
        """Of what `records` gives, so many fit into one transaction."""
        self._progress: dict[int, Progress] = {}
        """As far as this process came, which may be further than what is written down."""
        self._jobs: list[_Job] = []
        self._places = Places()

    def begin(self, now: int, least: int | None = None) -> bool:
        """Plans a pass, at a time in ns; `least`: the oldest revision that an open transaction reads. Whether there
        is anything to do."""
        self._engine.forget_the_dead()
        self._keyspaces.refresh()
        self._jobs = []
        self._places = Places()
        with self._engine.snapshot() as snapshot:
            # The last event tells which revisions were given out, so it stays, and all that it wrote.
            ceiling = snapshot.bounds()[1] - 1
            if least is not None:
                ceiling = min(ceiling, least)
            for keyspace, retention in self._keyspaces.retentions():
                self._plan(snapshot, keyspace, retention, now, ceiling)
        return bool(self._jobs)

    def _plan(self, snapshot: Snapshot, keyspace: int, retention: Retention, now: int, ceiling: int) -> None:
        def before(*seconds: float) -> int:
            return min(ceiling, horizons.last_event(snapshot, now - int(max(self._grace, *seconds) * 1e9)))

        progress = self._standing(snapshot, keyspace, retention)
        if retention.age is not None and (target := before(retention.age)) > progress.aged:
            self._jobs.append(_Job(keyspace, "aged", target, retention))
        if retention.versions is not None and (target := before(0.0)) > progress.counted:
            self._jobs.append(_Job(keyspace, "counted", target, retention))
        if keyspace != OWN and (target := before(self._remember)) > progress.forgotten:
            self._jobs.append(_Job(keyspace, "forgotten", target, retention))

    def _standing(self, snapshot: Snapshot, keyspace: int, retention: Retention) -> Progress:
        """How far a keyspace was swept, by the rules that hold now and but for what is pinned now."""
        progress = self._progress.get(keyspace) or horizons.progress_of(snapshot, keyspace)
        most = retention.versions or 0
        if most and (not progress.most or most < progress.most):
            progress = msgspec.structs.replace(progress, counted=0)
        pinned = pins.held(snapshot, keyspace)
        dropped = [revision for revision in progress.held if revision not in pinned]
        if dropped:
            first = min(dropped)
            progress = msgspec.structs.replace(
                progress, aged=min(progress.aged, first), counted=min(progress.counted, first)
            )
        self._progress[keyspace] = msgspec.structs.replace(progress, held=pinned, most=most or progress.most)
        return self._progress[keyspace]

    def step(self) -> bool:
        """One small batch at most. Whether the pass has more to do. Of a keyspace whose retention is another by now it
        removes nothing more: the next pass goes by that.

        Raises `Disowned` or `Broken`: the process must end. Where there is no room even for this, the pass ends.
        """
        in_hand = self._jobs[:1]
        self._jobs = [job for job in self._jobs if self._keyspaces.retention(job.keyspace) == job.retention]
        if not self._jobs:
            return False
        if self._jobs[:1] != in_hand:
            self._places.stand(
                0, 0
            )  # the next one is not half way through the event at which that one was given up
        job = self._jobs[0]
        batch = Batch()
        with self._engine.snapshot() as snapshot:
            before = self._progress[job.keyspace]
            after, done = self._sweep(snapshot, job, before, batch)
        try:
            if batch.deletes or batch.drops or (done and self._stale(job, after)):
                horizons.put(batch, job.keyspace, after)
                self._ownership.bind(batch)
                self._engine.commit(batch, reserved=True)
                self._ownership.bound()
        except ConditionFailed as failed:
            raise Disowned(self._ownership.sentence(failed.found)) from None
        except Full:
            self._jobs = []
            return False
        self._progress[job.keyspace] = after
        if done:
            self._jobs.pop(0)
        return bool(self._jobs)

    def _sweep(
        self, snapshot: Snapshot, job: _Job, progress: Progress, batch: Batch
    ) -> tuple[Progress, bool]:
        pinned = pins.held(snapshot, job.keyspace)
        sweep = Sweep(snapshot, job.keyspace, pinned, self._places, self.work, self._most)
        from_ = getattr(progress, job.rule)
        if job.rule == "forgotten":
            to = sweep.ids_of(from_, job.target)
        else:
            to = sweep.versions_beyond(from_, job.target, 1 if job.rule == "aged" else progress.most)
        sweep.into(batch)
        horizon, time = progress.horizon, progress.time
        if sweep.horizon > horizon:
            horizon, time = sweep.horizon, time_of(snapshot, sweep.horizon)
        # A pin may have come since the pass began: what it spares from here on is remembered with it.
        held = tuple(sorted({*progress.held, *pinned}))
        return msgspec.structs.replace(
            progress,
            horizon=horizon,
            time=time,
            held=held,
            versions=progress.versions + sweep.versions,
            ids=progress.ids + sweep.ids,
            size=progress.size + sweep.size,
            buried=max(progress.buried, sweep.buried),
            **{job.rule: to},
        ), to >= job.target

    def _stale(self, job: _Job, progress: Progress) -> bool:
        """Whether what is written down of a keyspace would have the next process do much of this again."""
        with self._engine.snapshot() as snapshot:
            written = horizons.progress_of(snapshot, job.keyspace)
        if (written.held, written.most) != (progress.held, progress.most):
            return True
        return abs(int(getattr(progress, job.rule)) - int(getattr(written, job.rule))) >= KEEP_PLACE

    def records(self, now: int) -> list[tuple[bytes, bytes]]:
        """The rows that say what was removed and is not recorded yet, by absolute key, at a time in ns."""
        rows = []
        with self._engine.snapshot() as snapshot:
            for keyspace, progress in horizons.all_of(snapshot):
                sums = (progress.versions, progress.ids, progress.size)
                recorded = _recorded(snapshot, keyspace)
                before = (0, 0, 0) if recorded is None else recorded[0].sums
                # What the store's own rows lose is not recorded: each record would call for the next.
                due = recorded is None or now >= recorded[1] + int(RECORDED * 1e9)
                if sums != before and due and keyspace != OWN:
                    versions, ids, size = (now - then for now, then in zip(sums, before, strict=True))
                    name = self._keyspaces.name(keyspace)
                    removed = Removed(name, progress.horizon, progress.time, versions, ids, size, sums)
                    rows.append((_START + layout.prefix(keyspace), _encode(removed)))
        return rows


def horizon_of(snapshot: Snapshot, keyspace: int, retention: Retention) -> Horizon:
    """What is told of a keyspace's past."""
    progress = horizons.progress_of(snapshot, keyspace)
    recorded = _recorded(snapshot, keyspace)
    return Horizon(
        progress.horizon,
        progress.time,
        retention,
        progress.versions,
        progress.ids,
        progress.size,
        0 if recorded is None else recorded[1],
    )


def _recorded(snapshot: Snapshot, keyspace: int) -> tuple[Removed, int] | None:
    """The record of a keyspace's last pass that removed something, and when it was written."""
    row = newest(snapshot, _START + layout.prefix(keyspace), layout.LAST)
    value = None if row is None else layout.value_of(snapshot, *row)
    if row is None or value is None:
        return None
    return _decode(value), time_of(snapshot, layout.revision_of(row[0]))
