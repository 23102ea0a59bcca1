"""From a level's name to what holds for one server, with everything that is weaker than the name says."""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from msgspec import Struct

from atoll.ipc.errors import CallerFault

from .confinement import Confinement
from .host import Host
from .level import Level, Mechanism, Subject
from .process import shared_uid


class NoSuchLevel(CallerFault):
    template = "no protection level is called {name!r}; there are {known}"
    name: str
    known: str


class NoSuchMechanism(CallerFault):
    template = "no protection mechanism is called {name!r}; there are {known}"
    name: str
    known: str


class NotDropped(CallerFault):
    template = "{level} does not have the mechanism {name!r}, so it cannot be dropped; it has {known}"
    level: str
    name: str
    known: str


class Unprotected(CallerFault):
    """The host lacks what the level claims, and no lower level was allowed to stand in."""

    template = "{server} cannot run at level {level}: {reasons}; choose a lower level, or boot with --degrade"
    server: str
    level: str
    reasons: str


class Weakening(Struct, frozen=True):
    """Something the level's name promises and this server does not have, with the reason."""

    mechanism: str
    reason: str

    def __str__(self) -> str:
        return f"{self.mechanism}: {self.reason}"


def together(weakenings: Iterable[Weakening]) -> str:
    """Several as one sentence, each reason once."""
    whom: dict[str, list[str]] = {}
    for weakening in weakenings:
        whom.setdefault(weakening.reason, []).append(weakening.mechanism)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in whom.items())


class Plan(Struct, frozen=True, kw_only=True):
    level: str
    wanted: str
    """The level asked for; another than `level` after a degradation."""
    in_force: tuple[str, ...]
    weakenings: tuple[Weakening, ...]
    missing: tuple[Weakening, ...]
    """What the level cannot be claimed without. Not empty: nothing may be started by this plan."""
    confinement: Confinement

    def require(self) -> Confinement:
        """The confinement. Raises Unprotected, which names what is missing."""
        if self.missing:
            raise Unprotected(self.confinement.name, self.level, together(self.missing))
        return self.confinement


@cache
def levels() -> dict[str, Level]:
    """Every level there is, lowest first: the modules of this package that have a `LEVEL`."""
    package: Any = importlib.import_module(__package__)
    names = [found.name for found in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    found = [module.LEVEL for module in modules if hasattr(module, "LEVEL")]
    return {level.name: level for level in sorted(found, key=lambda level: level.rank)}


@cache
def mechanisms() -> dict[str, Mechanism]:
    """Every mechanism of every level, by name."""
    return {mechanism.name: mechanism for level in levels().values() for mechanism in level.mechanisms}


def ladder(name: str) -> tuple[Mechanism, ...]:
    """The mechanisms that a level brings, in the order they are applied. Raises NoSuchLevel."""
    if name not in levels():
        raise NoSuchLevel(name, ", ".join(levels()))
    level = levels()[name]
    if level.alone:
        return level.mechanisms
    below = [other for other in levels().values() if other.rank < level.rank and not other.alone]
    return tuple(mechanism for each in (*below, level) for mechanism in each.mechanisms)


def plan(
    level: str,
    subject: Subject,
    host: Host,
    *,
    add: tuple[str, ...] = (),
    drop: Mapping[str, str] = {},
    unfit: Mapping[str, str] = {},
    degrade: bool = False,
) -> Plan:
    """What holds for `subject` at `level`, with single mechanisms added, and dropped for a reason.

    `unfit`: mechanisms under which this subject cannot run at all, whatever the image says, each with the reason.

    With `degrade` the nearest lower level that this host has stands in, and a weakening records it. Raises
    NoSuchLevel, NoSuchMechanism, NotDropped, filters.UnknownGrant.
    """
    made = _plan(level, subject, host, add, drop, unfit)
    if not made.missing or not degrade:
        return made
    lower = [name for name, other in levels().items() if other.rank < levels()[level].rank]
    for name in reversed(lower):
        reasons = together(made.missing)
        note = Weakening("level", f"{name} stands in for {level} ({reasons})")
        fitting = {gone: why for gone, why in drop.items() if gone in {m.name for m in ladder(name)}}
        instead = _plan(name, subject, host, add, fitting, unfit, (note,), level)
        if not instead.missing:
            return instead
    return made


def _plan(
    level: str,
    subject: Subject,
    host: Host,
    add: tuple[str, ...],
    drop: Mapping[str, str],
    unfit: Mapping[str, str],
    notes: tuple[Weakening, ...] = (),
    wanted: str = "",
) -> Plan:
    wanting = _chosen(level, add, drop)
    chosen = [mechanism for mechanism in wanting if mechanism.name not in unfit]
    weakenings = [*notes]
    missing: list[Weakening] = []
    in_force: list[str] = []
    weakenings += [Weakening(name, f"dropped by the image: {reason}") for name, reason in drop.items()]
    weakenings += [Weakening(each.name, unfit[each.name]) for each in wanting if each.name in unfit]
    weakenings += [Weakening("system-calls", f"the image grants {grant!r}") for grant in subject.grants]
    confinement = _plain(subject)
    if host.root and "own-uid" in drop:
        confinement = shared_uid(confinement, subject)
    for mechanism in chosen:
        absence = mechanism.absent(host)
        if absence and not absence.needless:
            (missing if absence.fatal else weakenings).append(Weakening(mechanism.name, absence.reason))
        if absence:
            continue
        confinement = mechanism.apply(confinement, subject, host)
        in_force.append(mechanism.name)
        lacks = mechanism.partial(host)
        if lacks:
            weakenings.append(Weakening(mechanism.name, lacks))
    return Plan(
        level=level,
        wanted=wanted or level,
        in_force=tuple(in_force),
        weakenings=tuple(weakenings),
        missing=tuple(missing),
        confinement=confinement,
    )


def _plain(subject: Subject) -> Confinement:
    return Confinement(
        name=subject.name,
        start=subject.start,
        nice=subject.nice,
        io_priority=subject.io_priority,
        oom_score=subject.oom_score,
    )


def _chosen(level: str, add: tuple[str, ...], drop: Mapping[str, str]) -> list[Mechanism]:
    """The level's mechanisms and the added ones, in the order of the ladder, without the dropped."""
    has = [mechanism.name for mechanism in ladder(level)]
    for name in (*add, *drop):
        if name not in mechanisms():
            raise NoSuchMechanism(name, ", ".join(mechanisms()))
    for name in drop:
        if name not in has:
            raise NotDropped(level, name, ", ".join(has))
    wanted = {*has, *add} - set(drop)
    return [mechanism for name, mechanism in mechanisms().items() if name in wanted]
