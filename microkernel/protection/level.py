"""What a protection level is: an ordered set of mechanisms, each of which can be probed, applied, added and
dropped.

A level is a module of this package that has a `LEVEL`; adding one touches no other file. Levels are a
ladder: a level brings the mechanisms of all levels of lower rank, then its own, applied in that order. A
level that replaces the lower ones (a virtual machine) says so by `alone`.
"""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from .confinement import Bind, Confinement, Limit
from .filters import Refusal
from .host import Host


class Subject(Struct, frozen=True, kw_only=True):
    """Who is to be confined, as image and kernel say it."""

    name: str
    uid: int | None = None
    """Its own user and group, from the node's range; None without root. Never 0."""
    binds: tuple[Bind, ...] = ()
    """What it needs of the host's files besides the interpreter: its package's folder, folders it was
    given."""
    limits: tuple[Limit, ...] = ()
    """Beside, or in place of, the level's own."""
    scratch: int = 64 << 20
    """Bytes that its /tmp may take."""
    grants: tuple[str, ...] = ()
    """Groups of system calls beside `base` (see `filters.GROUPS`)."""
    refusal: Refusal = "notify"
    start: Literal["zygote", "exec"] = "zygote"
    nice: int | None = None
    io_priority: int | None = None
    oom_score: int | None = None


class Absence(Struct, frozen=True):
    """Why a mechanism is not there. `fatal`: the level may not be claimed without it. `needless`: it would
    add nothing."""

    reason: str
    fatal: bool = True
    needless: bool = False


class Mechanism(Struct, frozen=True, kw_only=True):
    """One thing that protects. `stops` says what, for a person; `apply` puts it into a confinement."""

    name: str
    stops: str
    absent: Callable[[Host], Absence | None]
    apply: Callable[[Confinement, Subject, Host], Confinement]
    partial: Callable[[Host], str] = lambda host: ""
    """What of it this host's kernel lacks, though it works; empty for nothing."""


class Level(Struct, frozen=True, kw_only=True):
    name: str
    rank: int
    mechanisms: tuple[Mechanism, ...]
    alone: bool = False


def always(host: Host) -> Absence | None:
    """For a mechanism that no supported kernel lacks."""
    return None
