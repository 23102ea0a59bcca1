"""How one process is confined: plain data, made by the levels, read by the zygote, carried out by the C
core."""

from typing import Literal

from msgspec import Struct


class Bind(Struct, frozen=True, kw_only=True):
    """A file or folder of the host that the process shall find at `target` (by default where it is)."""

    source: str
    target: str = ""
    writable: bool = False
    device: bool = False
    """Device nodes under it may be opened."""

    @property
    def place(self) -> str:
        return self.target or self.source


class Limit(Struct, frozen=True, kw_only=True):
    """A resource limit: a `resource.RLIMIT_*` number and its bounds, in that resource's unit."""

    resource: int
    soft: int
    hard: int


class PathRule(Struct, frozen=True, kw_only=True):
    """What Landlock allows beneath a path (LANDLOCK_ACCESS_FS_* bits). A path that does not exist is passed
    over."""

    path: str
    access: int


class Landlock(Struct, frozen=True, kw_only=True):
    """A Landlock ruleset: the accesses it handles, and the paths where some are allowed. Network and scopes
    get no exception."""

    files: int
    network: int
    scoped: int
    rules: tuple[PathRule, ...]


class IdMap(Struct, frozen=True, kw_only=True):
    """The lines for uid_map and gid_map of a user namespace."""

    uid: str
    gid: str


class NewRoot(Struct, frozen=True, kw_only=True):
    """A read-only root of its own, holding nothing but the binds, /tmp and /proc."""

    staging: str
    """A folder of the host to build it on; what the host has there is out of sight of the child only."""
    scratch: int
    """Bytes that /tmp may take; they count as memory of the group."""
    proc: str | None
    """Mount options of /proc; None where the process gets no pid namespace to show."""


class Confinement(Struct, frozen=True, kw_only=True):
    """All that holds for one process. None means: as the zygote has it."""

    name: str
    start: Literal["zygote", "exec"] = "zygote"
    namespaces: int = 0
    ids: IdMap | None = None
    uid: int | None = None
    gid: int | None = None
    root: NewRoot | None = None
    covers: tuple[str, ...] = ()
    """Without a root of its own: folders of the host to hide behind an empty one, in which binds may
    stand."""
    binds: tuple[Bind, ...] = ()
    limits: tuple[Limit, ...] = ()
    oom_score: int | None = None
    nice: int | None = None
    io_priority: int | None = None
    drop_capabilities: bool = False
    undumpable: bool = False
    no_new_privileges: bool = False
    landlock: Landlock | None = None
    filter: bytes = b""
    """A seccomp program as `filters.export` gives it."""
    notify: bool = False
    """A refused system call waits for the watcher's answer; else the filter itself decides."""
