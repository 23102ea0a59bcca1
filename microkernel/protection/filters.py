"""System-call filters: a table with a reason a row, built by libseccomp into a program that the C core loads.

What is not in the table is refused. Rows are grouped: `base` is what any Python server needs (CPython,
trio, msgspec, lmdb, numpy with its threads); the other groups are granted by an image, one by one, and each
grant is a weakening.

Arguments are looked at where the number alone says too little, and nowhere else: a rule on an argument
costs the kernel its bitmap of calls known to be allowed. What no filter can look at is memory, so paths are
not its business: files are kept apart by users, mounts and Landlock.
"""

import errno
import functools
import importlib
import os
from collections.abc import Iterable
from typing import Any, Literal

from msgspec import Struct

from atoll.ipc.errors import CallerFault

AF_UNIX = 1
SOCK_STREAM, SOCK_SEQPACKET, SOCK_TYPE_MASK = 1, 5, 0xF
F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS = 1030, 1031, 1032, 1033, 1034
OPEN_FILE_LOCKS = (36, 37, 38)
SIGKILL = 9
CLONE_THREAD = 0x10000
CLONE_NAMESPACES = 0x7E020080
"""CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}: a thread or a worker never gets new ones."""


class UnknownGrant(CallerFault):
    """An image grants a group of system calls that no table has."""

    template = "no group of system calls is called {group!r}; there are {groups}"
    group: str
    groups: str


class Test(Struct, frozen=True):
    """A condition on one argument: after masking, it equals `value`."""

    argument: int
    value: int
    mask: int = 0xFFFF_FFFF_FFFF_FFFF


class Row(Struct, frozen=True):
    """A system call that is let through, if all `tests` hold, or that fails with `error` at once and
    unrecorded."""

    call: str
    reason: str
    tests: tuple[Test, ...] = ()
    error: int = 0


def _rows(reason: str, names: str) -> tuple[Row, ...]:
    return tuple(Row(name, reason) for name in names.split())


def _descriptor_rows(reason: str, commands: Iterable[int]) -> tuple[Row, ...]:
    """fcntl by command: F_SETOWN and F_SETSIG would have the kernel send any signal to any process of the same user."""
    return tuple(Row("fcntl", reason, (Test(1, command, 0xFFFF_FFFF),)) for command in commands)


BASE: tuple[Row, ...] = (
    *_rows(
        "read and write what is open: channels, logs, files",
        "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2",
    ),
    *_rows("find the end of a file and move in it: files, lmdb", "lseek"),
    *_rows("open files that users, mounts and Landlock leave in reach: imports, the store", "open openat"),
    *_rows("close, also what was inherited", "close close_range"),
    *_rows(
        "look at a file: imports, the store", "fstat stat lstat newfstatat statx access faccessat faccessat2"
    ),
    *_rows("look at a file system: free space of the store", "statfs fstatfs"),
    *_rows("read links and folders: imports, blobs", "readlink readlinkat getdents64 getcwd"),
    *_rows("change the folder relative paths start at: tools of the standard library", "chdir fchdir umask"),
    *_descriptor_rows(
        "duplicates, flags and record locks of descriptors", (*range(8), F_DUPFD_CLOEXEC, *OPEN_FILE_LOCKS)
    ),
    *_descriptor_rows("sizes of pipes: the standard library asks", (F_SETPIPE_SZ, F_GETPIPE_SZ)),
    *_descriptor_rows("seals of memfds", (F_ADD_SEALS, F_GET_SEALS)),
    *_rows("whole-file locks: one owner of a folder", "flock"),
    *_rows("give files their size before they are written", "ftruncate truncate fallocate"),
    *_rows("make writes durable before they are acknowledged", "fsync fdatasync sync_file_range msync"),
    *_rows("publish a file under its name at once: blobs", "rename renameat renameat2 link linkat"),
    *_rows("remove files: garbage collection of blobs", "unlink unlinkat"),
    *_rows("make and remove folders in its own file tree", "mkdir mkdirat rmdir"),
    *_rows("modes and times of its own files", "chmod fchmod fchmodat utimensat"),
    *_rows(
        "read attributes: copying with the standard library asks",
        "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr",
    ),
    *_rows(
        "be told when a file was written: readers of the store",
        "inotify_init1 inotify_add_watch inotify_rm_watch",
    ),
    *_rows("tell the page cache what is coming", "fadvise64 readahead"),
    *_rows("copy between files without a round through memory", "sendfile copy_file_range splice"),
    *_rows("duplicate descriptors", "dup dup2 dup3"),
    *_rows(
        "wake-ups inside the process",
        "pipe2 eventfd2 timerfd_create timerfd_settime timerfd_gettime signalfd4",
    ),
    *_rows(
        "wait for channels: trio and the receive loop",
        "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6",
    ),
    *_rows("memory: the allocator, mapped channels, lmdb", "brk mmap munmap mprotect mremap madvise mincore"),
    *_rows("place memory on a node: numpy's BLAS does for its buffers", "mbind"),
    *_rows("keep pages in memory, within RLIMIT_MEMLOCK", "mlock mlock2 mlockall munlock"),
    *_rows("anonymous memory to hand over: state at a swap, buffers", "memfd_create"),
    *_rows("wait inside and between processes that share a channel", "futex membarrier"),
    *_rows(
        "threads: bookkeeping of a new one",
        "set_robust_list get_robust_list rseq set_tid_address gettid sched_yield",
    ),
    *_rows("place threads on cores within the cpuset", "sched_getaffinity sched_setaffinity getcpu"),
    *_rows(
        "signal handling within the process",
        "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack "
        "restart_syscall pause",
    ),
    *_rows("end a thread or the process", "exit exit_group"),
    *_rows("time: what the vDSO does not answer", "clock_gettime clock_getres gettimeofday time times"),
    *_rows("sleep and timers", "nanosleep clock_nanosleep getitimer setitimer alarm"),
    *_rows(
        "who am I",
        "getpid getppid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid getsid "
        "uname",
    ),
    *_rows("what have I used", "getrusage sysinfo getpriority"),
    Row(
        "ioprio_set",
        "the slice's to give: storage asks it for its threads, and goes without",
        (),
        errno.ENOSYS,
    ),
    *_rows("chance", "getrandom"),
    *_rows(
        "talk over sockets that were handed over",
        "sendmsg recvmsg sendto recvfrom sendmmsg recvmmsg shutdown accept accept4",
    ),
    *_rows(
        "ask what a socket is: the standard library does at each one",
        "getsockopt setsockopt getsockname getpeername",
    ),
    Row(
        "clone", "threads, and nothing but threads", (Test(0, CLONE_THREAD, CLONE_THREAD | CLONE_NAMESPACES),)
    ),
    Row(
        "clone3", "its flags lie in memory, out of sight: the C library falls back to clone", (), errno.ENOSYS
    ),
    Row(
        "socketpair",
        "trio wakes its loop through one",
        (Test(0, AF_UNIX), Test(1, SOCK_STREAM, SOCK_TYPE_MASK)),
    ),
    Row(
        "socketpair",
        "packets between workers; datagrams are left out: they can be sent to any name",
        (Test(0, AF_UNIX), Test(1, SOCK_SEQPACKET, SOCK_TYPE_MASK)),
    ),
    Row("prlimit64", "read a limit, of this process only", (Test(0, 0), Test(2, 0))),
    *_rows("read a limit", "getrlimit"),
    Row("prctl", "name a thread", (Test(0, 15),)),
    Row("prctl", "read a thread's name", (Test(0, 16),)),
    Row("prctl", "name memory areas: the C library does where the kernel can", (Test(0, 0x53564D41),)),
    Row("prctl", "read whether it is dumpable", (Test(0, 3),)),
    Row("prctl", "the precision of its sleeps", (Test(0, 29),)),
    Row("ioctl", "is it a terminal: Python asks at each open", (Test(1, 0x5401, 0xFFFF_FFFF),)),
    Row("ioctl", "how much can be read", (Test(1, 0x541B, 0xFFFF_FFFF),)),
    Row("ioctl", "blocking or not", (Test(1, 0x5421, 0xFFFF_FFFF),)),
    Row("ioctl", "close at exec", (Test(1, 0x5451, 0xFFFF_FFFF),)),
    Row("ioctl", "do not close at exec", (Test(1, 0x5450, 0xFFFF_FFFF),)),
)

SPAWN = (
    Row("clone", "worker processes, without new namespaces", (Test(0, 0, CLONE_NAMESPACES),)),
    *_rows("worker processes", "fork vfork execve execveat wait4 waitid setsid setpgid arch_prctl pipe"),
    *_rows("end and watch worker processes", "kill tgkill pidfd_open pidfd_send_signal"),
    Row("prctl", "workers die with their parent, for good", (Test(0, 1), Test(1, SIGKILL))),
)

NETWORK = (
    Row("socket", "IPv4", (Test(0, 2),)),
    Row("socket", "IPv6", (Test(0, 10),)),
    *_rows("network connections", "connect bind listen"),
)

PAGING = (
    *_rows("pages on demand, in user space", "userfaultfd"),
    Row("ioctl", "serve page faults: the userfaultfd calls", (Test(1, 0xAA00, 0xFF00),)),
    *_rows("serve page faults: frames", "process_madvise mlockall"),
)

DEVICES = (
    *_rows("drive a device through its driver", "ioctl"),
    *_rows("memory a device reads", "mlockall set_mempolicy get_mempolicy"),
)

GROUPS: dict[str, tuple[Row, ...]] = {
    "base": BASE,
    "spawn": SPAWN,
    "network": NETWORK,
    "paging": PAGING,
    "devices": DEVICES,
}
"""What an image may grant beside `base`: worker processes, network sockets, user-space paging, device
drivers."""

Refusal = Literal["notify", "kill", "error"]
"""What a call gets that is not in the table: the watcher's answer, the end of the process, or EPERM and no record."""


def rows(grants: Iterable[str] = ()) -> tuple[Row, ...]:
    """The table of `base` and the granted groups. Raises UnknownGrant."""
    chosen = ["base"]
    for group in grants:
        if group not in GROUPS:
            raise UnknownGrant(group, ", ".join(name for name in GROUPS if name != "base"))
        chosen.append(group)
    return tuple(row for group in dict.fromkeys(chosen) for row in GROUPS[group])


def text(grants: tuple[str, ...] = ()) -> str:
    """For a person: a line a row with what it asks of the arguments and its reason, and how long the program is. Raises
    UnknownGrant."""
    lines = [f"{row.call:<24} {_asked(row)}{row.reason}\n" for row in rows(grants)]
    size = len(export(grants, "kill")) // 8
    return "".join(lines) + f"everything else is refused; {size} instructions\n"


def _asked(row: Row) -> str:
    tests = [f"argument {test.argument} & {test.mask:#x} = {test.value:#x}" for test in row.tests]
    fails = [f"fails with {errno.errorcode[row.error]}"] if row.error else []
    return "".join(f"[{said}] " for said in (*tests, *fails))


def _library() -> Any:
    """pyseccomp, which has no types and loads libseccomp: only the kernel needs it."""
    return importlib.import_module("pyseccomp")


@functools.cache
def export(grants: tuple[str, ...] = (), refusal: Refusal = "notify") -> bytes:
    """The program as struct sock_filter rows, for the machine it is built on. Raises UnknownGrant,
    OSError."""
    pyseccomp = _library()

    defaults = {
        "notify": pyseccomp.NOTIFY,
        "kill": pyseccomp.KILL_PROCESS,
        "error": pyseccomp.ERRNO(errno.EPERM),
    }
    table: Any = pyseccomp.SyscallFilter(defaults[refusal])
    table.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    table.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree over the numbers
    fill(table, grants)
    return read_out(table)


def fill(table: Any, grants: Iterable[str]) -> None:
    """Add the rows to a filter of libseccomp, whatever machine it is for. Raises UnknownGrant."""
    pyseccomp = _library()
    unconditional = {row.call for row in rows(grants) if not row.tests}
    for row in rows(grants):
        if row.tests and row.call in unconditional:
            continue  # a group that allows the call as such; libseccomp refuses the narrower rule beside it
        action = pyseccomp.ERRNO(row.error) if row.error else pyseccomp.ALLOW
        tests = [pyseccomp.Arg(t.argument, pyseccomp.MASKED_EQ, t.mask, t.value) for t in row.tests]
        table.add_rule(action, row.call, *tests)


def read_out(table: Any) -> bytes:
    """A filter of libseccomp as struct sock_filter rows."""
    memory = os.memfd_create("filter", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(memory), "wb") as file:
            table.export_bpf(file)
        return os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)


def name_of(number: int) -> str:
    """The system call of this machine that has `number`, or the number itself where libseccomp knows none."""
    pyseccomp = _library()
    try:
        name: bytes = pyseccomp.resolve_syscall(pyseccomp.system_arch(), number)
    except ValueError:
        return str(number)
    return name.decode()
