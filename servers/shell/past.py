"""Commands on how much of the past is kept: horizons, pins."""

import msgspec

from atoll.ipc.attach import connect
from atoll.ipc.system.state import Horizon, Pin, Retention

from . import printing
from .options import At, Json, Node, SomeKeyspace
from .printing import Column
from .when import UNITS, clock, moment


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One keyspace's past."""

    keyspace: str
    horizon: Horizon
    pins: int


def kept_for(retention: Retention) -> str:
    """A retention in words."""
    age = "" if retention.age is None else duration(retention.age)
    versions = "" if retention.versions is None else f"{retention.versions} versions"
    return ", ".join(filter(None, (age, versions))) or "for ever"


def duration(seconds: float) -> str:
    """In the largest unit that leaves no rest, as an image has it."""
    for unit, size in sorted(UNITS.items(), key=lambda each: -each[1]):
        if unit != "w" and seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


HORIZONS: list[Column[Kept]] = [
    Column("KEYSPACE", lambda row: row.keyspace),
    Column("KEPT", lambda row: kept_for(row.horizon.retention)),
    Column("HORIZON", lambda row: row.horizon.revision or "-", right=True),
    Column("SINCE", lambda row: clock(row.horizon.time) if row.horizon.time else "-"),
    Column("PINS", lambda row: row.pins, right=True),
    Column("REMOVED", lambda row: row.horizon.versions, right=True, spare=1),
    Column("FREED", lambda row: printing.size(row.horizon.size), right=True, spare=2),
    Column("COMPACTED", lambda row: clock(row.horizon.compacted) if row.horizon.compacted else "-", spare=3),
]

PINS: list[Column[Pin]] = [
    Column("KEYSPACE", lambda pin: pin.keyspace),
    Column("PIN", lambda pin: pin.name, fold=True),
    Column("REVISION", lambda pin: pin.revision, right=True),
    Column("MADE", lambda pin: clock(pin.time)),
    Column("BY CALL", lambda pin: pin.call, spare=1),
    Column("WHY", lambda pin: pin.why, fold=True),
]


def horizons(keyspace: SomeKeyspace = "", node: Node = "", as_json: Json = False) -> None:
    """Print how far back each keyspace can be read, and what was removed of its past."""
    with connect(node=node or None) as attached:
        kept = []
        for name in [keyspace] if keyspace else attached.kernel.keyspaces.now():
            state = attached.keyspace(name, ["read", "history"])
            kept.append(Kept(keyspace=name, horizon=state.horizon.now(), pins=len(state.pins.now())))
    printing.rows(kept, HORIZONS, as_json, "")


def pins(keyspace: SomeKeyspace = "", at: At = "", node: Node = "", as_json: Json = False) -> None:
    """Print which revisions are held, or were, by whom and why."""
    when = moment(at)
    with connect(node=node or None) as attached:
        found: dict[tuple[str, str], Pin] = {}
        for name in [keyspace] if keyspace else attached.kernel.keyspaces.now():
            for pin in attached.keyspace(name, ["history"]).pins.now(when):
                found[pin.keyspace, pin.name] = pin
    printing.rows(list(found.values()), PINS, as_json, "nothing is pinned")
