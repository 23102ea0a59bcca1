"""Level `process`: a process of its own, that cannot be looked into, gain rights or use without bound."""

import resource

import msgspec

from .confinement import Bind, Confinement, Limit
from .host import NEW_MOUNTS, Host, closed_above, interpreter_paths, outermost
from .level import Absence, Level, Mechanism, Subject, always

SHARED_UID = 65534
"""Whom root runs a server as that was denied a uid of its own: nobody. A server is never uid 0."""

LIMITS = (
    Limit(resource=resource.RLIMIT_CORE, soft=0, hard=0),
    Limit(resource=resource.RLIMIT_NOFILE, soft=4096, hard=4096),
    Limit(resource=resource.RLIMIT_MEMLOCK, soft=8 << 20, hard=8 << 20),
    Limit(resource=resource.RLIMIT_MSGQUEUE, soft=0, hard=0),
    Limit(resource=resource.RLIMIT_RTPRIO, soft=0, hard=0),
)


RESIDENT = Limit(resource=resource.RLIMIT_MEMLOCK, soft=resource.RLIM_INFINITY, hard=resource.RLIM_INFINITY)
"""For who keeps secrets: it locks all of its memory, within what its slice gives it (ipc/runtime/resident.py)."""


def may_lock() -> bool:
    """Whether this process may give `RESIDENT`, which it then has itself."""
    try:
        resource.setrlimit(RESIDENT.resource, (RESIDENT.soft, RESIDENT.hard))
    except (ValueError, OSError):
        return False
    return True


def _no_own_uid(host: Host) -> Absence | None:
    if host.root and host.closed and host.mounts:
        return Absence(
            f"{', '.join(host.closed)} is closed to other users, and what servers load from it cannot be shown to them "
            f"elsewhere ({host.mounts}): open it (chmod o+x), or use an interpreter that lies elsewhere"
        )
    if host.root:
        return None
    return Absence(
        "only root can give users away: the server runs as you, like your other programs", fatal=False
    )


def _own_uid(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    uid = SHARED_UID if subject.uid is None else subject.uid
    changed = msgspec.structs.replace(confinement, uid=uid, gid=uid)
    return _open_the_way(changed, subject)


def shared_uid(confinement: Confinement, subject: Subject) -> Confinement:
    """What stands in when root drops `own-uid`: a uid shared with others like it."""
    return _open_the_way(msgspec.structs.replace(confinement, uid=SHARED_UID, gid=SHARED_UID), subject)


def _open_the_way(confinement: Confinement, subject: Subject) -> Confinement:
    """Let another user reach the interpreter and its folders though a folder above them is closed (a home,
    say).

    The closed folders are hidden behind empty ones that hold only what is needed; nothing else in them is
    exposed.
    """
    needed = [*(Bind(source=path) for path in interpreter_paths()), *subject.binds]
    above = closed_above(bind.source for bind in needed)
    closed = outermost({folder for folder in above if folder})
    if not closed:
        return confinement
    inside = tuple(bind for bind, folder in zip(needed, above, strict=True) if folder)
    return msgspec.structs.replace(
        confinement, namespaces=confinement.namespaces | NEW_MOUNTS, covers=closed, binds=inside
    )


def _undumpable(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    return msgspec.structs.replace(confinement, undumpable=True)


def _no_new_privileges(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    return msgspec.structs.replace(confinement, no_new_privileges=True)


def _limits(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    chosen = {limit.resource: limit for limit in (*LIMITS, *subject.limits)}
    lowered = tuple(_within(limit) for limit in chosen.values())
    return msgspec.structs.replace(confinement, limits=lowered)


def _within(limit: Limit) -> Limit:
    """Limits are only ever lowered: what this process may have itself is the most it can give."""
    most = resource.getrlimit(limit.resource)[1]
    if most == resource.RLIM_INFINITY:
        return limit
    hard = most if limit.hard == resource.RLIM_INFINITY else min(limit.hard, most)
    soft = hard if limit.soft == resource.RLIM_INFINITY else min(limit.soft, hard)
    return Limit(resource=limit.resource, soft=soft, hard=hard)


LEVEL = Level(
    name="process",
    rank=10,
    mechanisms=(
        Mechanism(
            name="own-uid",
            stops="reading, signalling and debugging other servers and the user's programs",
            absent=_no_own_uid,
            apply=_own_uid,
        ),
        Mechanism(
            name="undumpable",
            stops="being debugged by processes of the same user",
            absent=always,
            apply=_undumpable,
        ),
        Mechanism(
            name="no-new-privileges",
            stops="gaining rights by executing a set-user-id program",
            absent=always,
            apply=_no_new_privileges,
        ),
        Mechanism(
            name="limits",
            stops="runaway use of descriptors, locked memory and core files",
            absent=always,
            apply=_limits,
        ),
    ),
)
