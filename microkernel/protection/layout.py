"""A confinement as the C core reads it: everything between clone and Python is laid out here, beforehand."""

from collections.abc import Sequence
from typing import Any

from atoll.native import _core

from .confinement import Bind, Confinement

ffi: Any = _core.ffi
lib: Any = _core.lib

READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC = 0x1, 0x2, 0x4, 0x8
NO_OOM_SCORE, NO_NICE = -1001, 100

STEPS = {
    lib.ATOLL_STEP_CLONE: "making the process",
    lib.ATOLL_STEP_DESCRIPTORS: "handing over descriptors",
    lib.ATOLL_STEP_SESSION: "starting a session",
    lib.ATOLL_STEP_GROUPS: "joining its cgroup",
    lib.ATOLL_STEP_LIMITS: "setting resource limits",
    lib.ATOLL_STEP_PRIORITY: "setting priorities",
    lib.ATOLL_STEP_MAPS: "mapping ids into the user namespace",
    lib.ATOLL_STEP_HOSTNAME: "naming the host",
    lib.ATOLL_STEP_PRIVATE: "making mounts private",
    lib.ATOLL_STEP_BINDS: "binding files into its root",
    lib.ATOLL_STEP_ROOT: "mounting its root",
    lib.ATOLL_STEP_SCRATCH: "mounting /tmp",
    lib.ATOLL_STEP_PROC: "mounting /proc",
    lib.ATOLL_STEP_PIVOT: "entering its root",
    lib.ATOLL_STEP_BOUNDING: "dropping the bounding set",
    lib.ATOLL_STEP_IDENTITY: "taking its user and group",
    lib.ATOLL_STEP_CAPABILITIES: "dropping capabilities",
    lib.ATOLL_STEP_KEYRING: "leaving the session keyring",
    lib.ATOLL_STEP_UNDUMPABLE: "becoming undumpable",
    lib.ATOLL_STEP_PARENT: "binding its life to the kernel's",
    lib.ATOLL_STEP_PRIVILEGES: "giving up new privileges",
    lib.ATOLL_STEP_LANDLOCK: "applying Landlock",
    lib.ATOLL_STEP_FILTER: "loading the system-call filter",
    lib.ATOLL_STEP_LISTENER: "passing on the filter's listener",
    lib.ATOLL_STEP_EXEC: "executing the interpreter",
}


class Layout:
    """The C plan of a confinement and all it points to, which lives as long as this object does."""

    def __init__(
        self,
        confinement: Confinement,
        *,
        status: int = -1,
        guardian: int = -1,
        groups: Sequence[int] = (),
        born: bool = True,
        descriptors: Sequence[tuple[int, int]] | None = (),
        ids_done: bool = False,
    ) -> None:
        """`descriptors` are (source, target) pairs in ascending order of target; None leaves the table as
        it is.

        `ids_done`: the user namespace was mapped before the exec that brought us here.
        """
        self._held: list[Any] = []
        self.plan: Any = ffi.new("struct atoll_plan *")
        plan, c = self.plan, confinement
        plan.namespaces = c.namespaces
        plan.name = self._text(c.name[:63])
        plan.uid = -1 if c.uid is None else c.uid
        plan.gid = -1 if c.gid is None else c.gid
        if c.ids and not ids_done:
            plan.uid_map, plan.gid_map = self._text(c.ids.uid), self._text(c.ids.gid)
        plan.root_options = self._text("size=1m,nr_inodes=16k,mode=0755")
        if c.root:
            plan.staging = self._text(c.root.staging)
            plan.scratch_options = self._text(f"size={c.root.scratch},nr_inodes=16k,mode=1777")
            plan.proc_options = self._text(c.root.proc) if c.root.proc is not None else ffi.NULL
        plan.covers = self._array("char *[]", [self._text(cover) for cover in c.covers])
        plan.cover_count = len(c.covers)
        plan.binds = self._array(
            "struct atoll_bind[]",
            [(self._text(b.source), self._text(b.place), _attributes(b)) for b in c.binds],
        )
        plan.bind_count = len(c.binds)
        plan.limits = self._array(
            "struct atoll_limit[]",
            [(each.resource, _bound(each.soft), _bound(each.hard)) for each in c.limits],
        )
        plan.limit_count = len(c.limits)
        plan.groups = self._array("int[]", list(groups))
        plan.group_count, plan.born = len(groups), born
        plan.oom_score = NO_OOM_SCORE if c.oom_score is None else c.oom_score
        plan.nice = NO_NICE if c.nice is None else c.nice
        plan.io_priority = -1 if c.io_priority is None else c.io_priority
        plan.drop_capabilities = c.drop_capabilities
        plan.undumpable = c.undumpable
        plan.no_new_privileges = c.no_new_privileges
        if c.landlock:
            plan.landlock_fs, plan.landlock_net = c.landlock.files, c.landlock.network
            plan.landlock_scoped = c.landlock.scoped
            rules = [(self._text(rule.path), rule.access) for rule in c.landlock.rules]
            plan.rules, plan.rule_count = self._array("struct atoll_path_rule[]", rules), len(rules)
        plan.filter_length = len(c.filter) // 8
        if c.filter:
            program = self._keep(ffi.from_buffer(c.filter))
            plan.filter = ffi.cast("struct atoll_filter_instruction *", program)
        plan.filter_notify = c.notify
        plan.descriptor_count = -1 if descriptors is None else len(descriptors)
        plan.sources = self._array("int[]", [source for source, _ in descriptors or ()])
        plan.targets = self._array("int[]", [target for _, target in descriptors or ()])
        plan.status, plan.guardian = status, guardian

    def _keep(self, value: Any) -> Any:
        self._held.append(value)
        return value

    def _text(self, text: str) -> Any:
        return self._keep(ffi.new("char[]", text.encode()))

    def _array(self, kind: str, rows: list[Any]) -> Any:
        return self._keep(ffi.new(kind, rows)) if rows else ffi.NULL

    def strings(self, texts: Sequence[str]) -> Any:
        """A null-terminated array of strings, as execve takes it."""
        return self._keep(ffi.new("char *[]", [*(self._text(text) for text in texts), ffi.NULL]))


def _attributes(bind: Bind) -> int:
    return NO_SUID | (0 if bind.writable else READ_ONLY) | (0 if bind.device else NO_DEVICES)


def _bound(value: int) -> int:
    return value & 0xFFFF_FFFF_FFFF_FFFF  # RLIM_INFINITY is -1 in Python
