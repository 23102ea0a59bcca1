"""Level `sandbox`: namespaces of its own, a minimal read-only root, and Landlock over what is left in it.

Booted by root, a server has a uid of its own and no capabilities, and needs no user namespace for the
others. Without root a user namespace is what allows the others; the uid inside it is the user's own.
"""

import os

import msgspec

from .confinement import Bind, Confinement, Landlock, NewRoot, PathRule
from .host import (
    NEW_HOSTNAME,
    NEW_IPC,
    NEW_MOUNTS,
    NEW_NETWORK,
    NEW_PROCESSES,
    NEW_USERS,
    PROC_OPTIONS,
    Host,
    interpreter_paths,
    own_ids,
    staging,
)
from .level import Absence, Level, Mechanism, Subject

DEVICES = tuple(
    Bind(source=f"/dev/{name}", writable=True, device=True) for name in ("null", "zero", "urandom")
)

EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = 1, 2, 4, 8
REFER, TRUNCATE, DEVICE_CONTROL = 1 << 13, 1 << 14, 1 << 15
FILES_BY_ABI = ((1, (1 << 13) - 1), (2, REFER), (3, TRUNCATE), (5, DEVICE_CONTROL))
NETWORK_BY_ABI = ((4, 0b11),)  # bind and connect of TCP
SCOPES_BY_ABI = ((6, 0b11),)  # abstract Unix sockets, signals
READ = READ_FILE | READ_FOLDER
WRITE = (
    ((1 << 13) - 1) & ~EXECUTE & ~(1 << 6) & ~(1 << 11) | REFER | TRUNCATE
)  # no execution, no device nodes
ABI_ADDS = (
    (2, "moving files between folders stays refused"),
    (3, "truncating files is not looked at"),
    (4, "TCP is not looked at"),
    (5, "device control is not looked at"),
    (6, "signals and abstract Unix sockets are not looked at"),
)


def _why(sentence: str) -> Absence | None:
    return Absence(sentence) if sentence else None


def _with(confinement: Confinement, host: Host, flag: int) -> Confinement:
    """One more namespace; not being root, inside a user namespace, whose maker has every capability there: none is
    kept."""
    flags = confinement.namespaces | host.base | flag
    if host.root:
        return msgspec.structs.replace(confinement, namespaces=flags)
    return msgspec.structs.replace(confinement, namespaces=flags, ids=own_ids(), drop_capabilities=True)


def _no_users(host: Host) -> Absence | None:
    if host.root:
        return Absence(
            "root needs none: its own uid and the lack of capabilities do its work",
            fatal=False,
            needless=True,
        )
    return _why(host.users)


def _users(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    return _with(confinement, host, NEW_USERS)


def _mounts(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    read = tuple(Bind(source=path) for path in interpreter_paths())
    return msgspec.structs.replace(
        _with(confinement, host, NEW_MOUNTS),
        root=NewRoot(staging=staging(), scratch=subject.scratch, proc=None),
        covers=(),
        binds=(*read, *DEVICES, *subject.binds),
        drop_capabilities=True,  # who may mount could undo this
    )


def _processes(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    changed = _with(confinement, host, NEW_PROCESSES)
    if changed.root:
        shown = msgspec.structs.replace(changed.root, proc=PROC_OPTIONS)
        changed = msgspec.structs.replace(changed, root=shown)
    return changed


def _network(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    return _with(confinement, host, NEW_NETWORK)


def _ipc(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    return _with(confinement, host, NEW_IPC)


def _hostname(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    return _with(confinement, host, NEW_HOSTNAME)


def _no_landlock(host: Host) -> Absence | None:
    return (
        None
        if host.landlock
        else Absence("this kernel has no Landlock, or it was not enabled at boot (lsm=landlock,...)")
    )


def _landlock_lacks(host: Host) -> str:
    lacks = [sentence for abi, sentence in ABI_ADDS if host.landlock < abi]
    return f"Landlock here is ABI {host.landlock}: {'; '.join(lacks)}" if lacks else ""


def handled(abi: int, table: tuple[tuple[int, int], ...]) -> int:
    """The accesses that a kernel of this ABI can refuse."""
    return sum(bits for since, bits in table if abi >= since)


def _landlock(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    files = handled(host.landlock, FILES_BY_ABI)
    rules = [PathRule(path=path, access=READ) for path in (*interpreter_paths(), "/proc")]
    rules += [PathRule(path=bind.place, access=READ_FILE | WRITE_FILE) for bind in DEVICES]
    rules += [_allow(bind) for bind in subject.binds]
    if confinement.root:
        rules.append(PathRule(path="/tmp", access=WRITE))
    sources = {bind.place: bind.source for bind in (*DEVICES, *subject.binds)}
    ruleset = Landlock(
        files=files,
        network=0 if "network" in subject.grants else handled(host.landlock, NETWORK_BY_ABI),
        scoped=handled(host.landlock, SCOPES_BY_ABI),
        rules=tuple(
            PathRule(path=rule.path, access=rule.access & files & _fitting(sources.get(rule.path, rule.path)))
            for rule in rules
        ),
    )
    return msgspec.structs.replace(confinement, landlock=ruleset, no_new_privileges=True)


def _allow(bind: Bind) -> PathRule:
    device = DEVICE_CONTROL if bind.device else 0
    return PathRule(path=bind.place, access=(WRITE if bind.writable else READ) | device)


def _fitting(source: str) -> int:
    """Landlock refuses rules for a file that name rights only a folder has."""
    on_file = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | DEVICE_CONTROL
    return -1 if os.path.isdir(source) else on_file


LEVEL = Level(
    name="sandbox",
    rank=30,
    mechanisms=(
        Mechanism(name="users", stops="acting as the user outside", absent=_no_users, apply=_users),
        Mechanism(
            name="mounts",
            stops="seeing or changing any file of the host that was not bound in",
            absent=lambda host: _why(host.mounts),
            apply=_mounts,
        ),
        Mechanism(
            name="processes",
            stops="seeing, signalling or debugging any other process",
            absent=lambda host: _why(host.processes),
            apply=_processes,
        ),
        Mechanism(
            name="network",
            stops="any network, and abstract Unix sockets of the host",
            absent=lambda host: _why(host.network),
            apply=_network,
        ),
        Mechanism(
            name="ipc",
            stops="shared memory and queues of System V and POSIX",
            absent=lambda host: _why(host.ipc),
            apply=_ipc,
        ),
        Mechanism(
            name="hostname",
            stops="renaming the host",
            absent=lambda host: _why(host.hostname),
            apply=_hostname,
        ),
        Mechanism(
            name="landlock",
            stops="use of files, TCP, signals and abstract sockets beyond the list",
            absent=_no_landlock,
            apply=_landlock,
            partial=_landlock_lacks,
        ),
    ),
)
