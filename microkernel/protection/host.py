"""What this host can do for protection, found out by doing it: each probe confines a child that exits at
once."""

import errno
import importlib
import os
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from msgspec import Struct

from .confinement import Bind, Confinement, IdMap, NewRoot
from .layout import STEPS, Layout, ffi, lib

NEW_MOUNTS, NEW_HOSTNAME, NEW_IPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x1000_0000, 0x2000_0000, 0x4000_0000
PROC_OPTIONS = "hidepid=invisible,subset=pid"


class Host(Struct, frozen=True, kw_only=True):
    """What the probes found. An empty string means that it works, any other is the sentence that says why
    not."""

    root: bool
    uid: int
    users: str
    """A user namespace, mapped to this user."""
    mounts: str
    """A root of its own, in a mount namespace (inside a user namespace where not root)."""
    processes: str
    """A pid namespace with its own /proc."""
    network: str
    ipc: str
    hostname: str
    landlock: int
    """ABI; 0 for none."""
    filters: str
    """System-call filters: the kernel's side and libseccomp."""
    notify: str
    """Filters whose refusals a watcher answers."""
    closed: tuple[str, ...]
    """Folders on the way to the interpreter or to Atoll that another user cannot pass."""

    @property
    def base(self) -> int:
        """Namespaces that must come along for the others to be allowed."""
        return 0 if self.root else NEW_USERS


NAMESPACES_REFUSED = {
    errno.ENOSPC: "namespaces may not be made here: their number is spent or 0 (sysctl user.max_user_namespaces)",
    errno.EPERM: "namespaces may not be made here: not permitted (a container, or sysctl kernel.unprivileged_userns_clone)",
}
"""What the commonest refusals of a clone mean; a confinement's clone asks for nothing else that can be refused so."""


def attempt(confinement: Confinement) -> str:
    """Confine a child and let it exit. Empty if it worked, else the sentence that says at which step it did
    not."""
    status = ffi.new("struct atoll_status *")
    layout = Layout(confinement)
    failed = lib.atoll_sandbox_try(layout.plan, status)
    if failed:
        told = f"{STEPS[lib.ATOLL_STEP_CLONE]} failed: {os.strerror(-failed)}"
        return NAMESPACES_REFUSED.get(-failed, told)
    if status.error:
        return f"{STEPS.get(status.step, 'an unknown step')} failed: {os.strerror(status.error)}"
    return ""


def own_ids() -> IdMap:
    """The caller's user and group, mapped to themselves: all that an ordinary user may map."""
    uid, gid = os.geteuid(), os.getegid()
    return IdMap(uid=f"{uid} {uid} 1\n", gid=f"{gid} {gid} 1\n")


@cache
def staging() -> str:
    """A folder to build a new root on. /proc will not do: a covered /proc cannot be mounted again by a
    user."""
    return next((folder for folder in ("/tmp", "/mnt", "/run", "/var/tmp") if os.path.isdir(folder)), "/")


@cache
def interpreter_paths() -> tuple[str, ...]:
    """What a running interpreter with the SDK imported may still load: modules and shared libraries,
    outermost folders only.

    Of the import path only what belongs to the interpreter or its virtual environment counts: the folder a
    program was started in stands there too, and is nobody's business.
    """
    places = sysconfig.get_paths()
    wanted = [places["stdlib"], places["platstdlib"], places["purelib"], places["platlib"]]
    wanted += [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    wanted += [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/etc/ld.so.cache",
        "/etc/localtime",
    ]
    wanted += [sysconfig.get_config_var("LIBDIR") or "", *_package_folders()]
    return outermost({os.path.abspath(path) for path in wanted if path and os.path.exists(path)})


def _package_folders() -> list[str]:
    """Where the SDK's packages lie, both as they were found and as they are: a checkout is reached by
    links."""
    folders: list[str] = []
    for name in ("atoll.ipc", "atoll.native"):
        for path in importlib.import_module(name).__path__:
            folders += [path, os.path.realpath(path)]
    return folders


def outermost(paths: set[str]) -> tuple[str, ...]:
    """The paths that lie in no other of them, sorted."""
    kept: list[str] = []
    for path in sorted(paths):
        if not kept or not Path(path).is_relative_to(kept[-1]):
            kept.append(path)
    return tuple(kept)


def closed_above(paths: Iterable[str]) -> list[str]:
    """For each path the outermost folder above it that a user who neither owns it nor is in its group cannot pass; empty
    where there is none."""
    closed: dict[Path, bool] = {}

    def is_closed(folder: Path) -> bool:
        if folder not in closed:
            closed[folder] = not os.stat(folder).st_mode & 0o001
        return closed[folder]

    above = (reversed(Path(os.path.realpath(path)).parents) for path in paths)
    return [next((str(folder) for folder in folders if is_closed(folder)), "") for folders in above]


def closed_folders(paths: Iterable[str]) -> tuple[str, ...]:
    """The outermost of all these folders."""
    return outermost({folder for folder in closed_above(paths) if folder})


def _filters() -> str:
    try:
        from . import filters

        program = filters.export((), "kill")
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return f"libseccomp cannot be used ({error}): install libseccomp2"
    return attempt(Confinement(name="probe", no_new_privileges=True, filter=program))


def _notify() -> str:
    from . import filters

    program = filters.export((), "notify")
    return attempt(Confinement(name="probe", no_new_privileges=True, filter=program, notify=True))


@cache
def probe() -> Host:
    """Try everything once. Each probe takes about a millisecond."""
    root = os.geteuid() == 0
    ids = None if root else own_ids()
    base = 0 if root else NEW_USERS

    def namespace(flag: int) -> str:
        return attempt(Confinement(name="probe", namespaces=base | flag, ids=ids))

    library = (Bind(source="/usr/lib"),)
    bare = NewRoot(staging=staging(), scratch=1 << 20, proc=None)
    shown = NewRoot(staging=staging(), scratch=1 << 20, proc=PROC_OPTIONS)
    filters = _filters()
    return Host(
        root=root,
        uid=os.geteuid(),
        users=attempt(Confinement(name="probe", namespaces=NEW_USERS, ids=own_ids())),
        mounts=attempt(
            Confinement(name="probe", namespaces=base | NEW_MOUNTS, ids=ids, root=bare, binds=library)
        ),
        processes=attempt(
            Confinement(
                name="probe", namespaces=base | NEW_MOUNTS | NEW_PROCESSES, ids=ids, root=shown, binds=library
            )
        ),
        network=namespace(NEW_NETWORK),
        ipc=namespace(NEW_IPC),
        hostname=namespace(NEW_HOSTNAME),
        landlock=lib.atoll_landlock_version(),
        filters=filters,
        notify=filters or _notify(),
        closed=closed_folders(interpreter_paths()),
    )
