"""How segments add up to a store, although compaction went on between them.

Each segment has what was written since the one before it, as far as it was still kept. What an earlier segment has, and
compaction removed since, does no harm: the backup then knows more of the past than the store. But a *deletion* that was
written and removed between two segments would be seen by neither, and its key would come back. A keyspace to which that may
have happened begins *afresh*: the segment also has all that is left of it from earlier revisions, and what earlier segments
say of it no longer counts.

`Standing` is the outcome for one keyspace. A segment's trailer has those of all that were ever compacted; any other counts
from the first segment on, whole.
"""

from collections.abc import Mapping

import msgspec

from .. import horizons
from ..horizons import NONE, Progress


class Standing(msgspec.Struct, array_like=True, frozen=True):
    keyspace: int
    base: int
    """Where the segment begins from which on the keyspace's rows count: its `after`."""
    removed: int
    """Versions that had been removed of the keyspace when that segment was begun."""
    progress: Progress
    """What the restored store may say of the keyspace's past."""


Table = Mapping[int, Progress]


def decoded(compacted: Mapping[int, bytes]) -> dict[int, Progress]:
    return {keyspace: horizons.decode(raw) for keyspace, raw in compacted.items()}


def lost(after: int, before: list[Standing] | None, now: Table) -> list[int]:
    """Keyspaces of which a deletion after a revision may have gone unseen. `before`: how they stood there, None: nothing
    was copied yet; `now`: how far they are compacted, once everything after it has been read."""
    if before is None:
        return []
    removed = {standing.keyspace: standing.removed for standing in before}
    return [
        keyspace
        for keyspace, progress in now.items()
        if progress.buried > after and progress.versions != removed.get(keyspace, 0)
    ]


def stand(
    after: int, before: list[Standing] | None, afresh: list[int], begun: Table, ended: Table
) -> list[Standing]:
    """How keyspaces stand with one more segment. `begun` and `ended`: how far they were compacted before it was read,
    and after."""
    earlier = {standing.keyspace: standing for standing in before or []}
    found = []
    for keyspace, now in sorted(ended.items()):
        was = earlier.get(keyspace)
        if before is None or keyspace in afresh:
            first = begun.get(keyspace, NONE)
            found.append(Standing(keyspace, after, first.versions, _together(0, first, now)))
            continue
        if was is None:
            was = Standing(keyspace, 0, 0, NONE)
        found.append(msgspec.structs.replace(was, progress=_together(after, was.progress, now)))
    return found


def _together(after: int, was: Progress, now: Progress) -> Progress:
    """What may be said of a past that was copied as it `was` up to a revision, and from there on as it is now.

    The copy was swept no further than it was when it was begun. Where the horizon lies at or before `after`, nothing had
    gone of what was read last."""
    horizon, time = (now.horizon, now.time) if now.horizon > after else (was.horizon, was.time)
    return msgspec.structs.replace(
        now, horizon=horizon, time=time, aged=was.aged, counted=was.counted, most=was.most, held=was.held
    )


def floor(standing: list[Standing]) -> int:
    """Above this revision all keyspaces can be read, of those that the segments have."""
    return max((each.progress.horizon for each in standing), default=0)


def as_of(standing: Standing, revision: int) -> Progress:
    """What a store that ends at a revision says of a keyspace's past."""
    progress, most = standing.progress, revision - 1
    return msgspec.structs.replace(
        progress,
        aged=min(progress.aged, most),
        counted=min(progress.counted, most),
        forgotten=min(progress.forgotten, most),
        buried=min(progress.buried, most),
    )
