"""What a hostile server would try, one function an attack; each writes `done`, or why it was stopped, to
its descriptor.

They run inside a confined child, so they use the standard library only.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import re
import resource
import socket
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
MS_BIND = 4096
PTRACE_ATTACH = 16
NEW_USER = 0x1000_0000
F_SETSIG = 10
INIT_MODULE = {"x86_64": 175, "aarch64": 105}
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)
REQUEST_KEY = {"x86_64": 249, "aarch64": 218}


def _tell(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode())


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def attempt(descriptor: int, attack: str, target: str) -> None:
    """Run one attack and tell how it ended."""
    try:
        globals()[attack](target)
    except (OSError, ValueError) as error:  # setrlimit raises the latter
        _tell(descriptor, f"stopped: {error}")
    else:
        _tell(descriptor, "done")


def read_file(path: str) -> None:
    with open(path, "rb") as file:
        file.read()


def write_file(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def list_folder(path: str) -> None:
    os.listdir(path)


def open_socket(target: str) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def connect(port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as peer:
        peer.settimeout(20)
        peer.connect(("127.0.0.1", int(port)))


def abstract_socket(name: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect("\0" + name)


def send_signal(pid: str) -> None:
    os.kill(int(pid), 0)


def trace(pid: str) -> None:
    _checked(libc.ptrace(PTRACE_ATTACH, int(pid), 0, 0))


def read_memory(pid: str) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))


def see(pid: str) -> None:
    os.stat(f"/proc/{pid}")


def mount(target: str) -> None:
    _checked(libc.mount(b"/usr", b"/tmp", None, MS_BIND, None))


def load_module(target: str) -> None:
    """An empty module: who may load one is told that it is none."""
    if libc.syscall(INIT_MODULE[os.uname().machine], b"", 0, b"") < 0 and ctypes.get_errno() in REFUSED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def new_user_namespace(target: str) -> None:
    _checked(libc.unshare(NEW_USER))


def rename_host(target: str) -> None:
    _checked(libc.sethostname(b"taken", 5))


def become_root(target: str) -> None:
    os.setuid(0)


def raise_limit(target: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))


def execute(target: str) -> None:
    os.posix_spawn("/bin/true", ["true"], {})


def read_session_key(name: str) -> None:
    """A key in the keyring of the session that booted the node: whoever possesses the keyring may read it."""
    _checked(libc.syscall(REQUEST_KEY[os.uname().machine], b"user", name.encode(), None, 0))


def read_old_environment(pattern: str) -> None:
    """What the fork server was started with still lies in the memory of its clones."""
    wanted = re.compile(pattern.encode())
    with open("/proc/self/maps") as file:
        areas = [line.split() for line in file]
    for where, mode, *_ in areas:
        begin, end = (int(part, 16) for part in where.split("-"))
        if (
            mode.startswith("rw")
            and end - begin <= 256 << 20
            and wanted.search(ctypes.string_at(begin, end - begin))
        ):
            return
    raise OSError("nothing found")


def signal_by_descriptor(pid: str) -> None:
    """Have the kernel send SIGKILL when something can be read."""
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, fcntl.F_SETOWN, int(pid))
    fcntl.fcntl(ours, F_SETSIG, 9)
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    theirs.send(b"!")


def outlive_the_kernel(target: str) -> None:
    """Unset the signal that comes when the kernel dies."""
    _checked(libc.prctl(1, 0, 0, 0, 0))


def exhaust_threads(most: str) -> None:
    gate = threading.Event()
    threads = []
    try:
        for _ in range(int(most)):
            threads.append(threading.Thread(target=gate.wait))
            threads[-1].start()
    except RuntimeError as error:
        raise OSError(11, "no more threads") from error
    finally:
        gate.set()


def exhaust_descriptors(most: str) -> None:
    held = []
    try:
        for _ in range(int(most)):
            held.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for descriptor in held:
            os.close(descriptor)


def write_grant(grant: str) -> None:
    """A descriptor that was handed over for reading, opened again by way of /proc: mapped, or written to."""
    try:
        again = os.open(f"/proc/self/fd/{grant}", os.O_RDWR)
    except PermissionError:
        again = int(grant)
    try:
        mmap.mmap(again, 4096)[:4] = b"mine"
    except PermissionError:
        os.pwrite(again, b"mine", 0)


def exhaust_memory(size: str) -> None:
    room = bytearray(int(size))
    for at in range(0, len(room), 4096):
        room[at] = 1


def who(descriptor: int) -> None:
    """Tell what the process is, for tests of what must hold."""
    with open("/proc/self/status") as file:
        status = file.read()
    wanted = (
        "Uid",
        "Gid",
        "Groups",
        "CapEff",
        "CapPrm",
        "CapBnd",
        "CapInh",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Pid",
        "Umask",
    )
    lines = [line for line in status.splitlines() if line.split(":")[0] in wanted]
    descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    environment = sorted(os.environ)
    _tell(
        descriptor,
        "\n".join(
            [
                *lines,
                f"Open:{descriptors}",
                f"Environment:{environment}",
                f"Argv:{sys.flags.hash_randomization}",
            ]
        ),
    )


def wait(descriptor: int) -> None:
    """Say that it runs, then stay until killed."""
    _tell(descriptor, str(os.getpid()))
    threading.Event().wait()


def refuse(descriptor: int, times: int) -> None:
    """Make a refused call so often, then end."""
    for _ in range(times):
        try:
            socket.socket()
        except OSError as error:
            said = str(error)
    _tell(descriptor, said)


def flood(descriptor: int) -> None:
    """Make refused calls without end."""
    while True:
        try:
            socket.socket()
        except OSError:
            continue


def forge_address(descriptor: int) -> None:
    """Tell where an object lies and what a string hashes to: the same in all clones of a zygote."""
    _tell(descriptor, f"{id(os)} {hash('atoll')}")


def work(descriptor: int, folder: str) -> None:
    """What honest servers do: trio, threads, lmdb, msgspec, numpy; it must pass every filter."""
    import lmdb
    import msgspec
    import numpy
    import trio

    async def loop() -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            return await trio.to_thread.run_sync(
                lambda: int((numpy.ones((64, 64)) @ numpy.ones((64, 64)))[0, 0])
            )

    with lmdb.open(folder, map_size=1 << 20) as store:
        with store.begin(write=True) as transaction:
            transaction.put(b"k", msgspec.msgpack.encode(trio.run(loop)))
        with store.begin() as transaction:
            _tell(descriptor, str(msgspec.msgpack.decode(bytes(transaction.get(b"k")))))


def hold(descriptor: int, folder: str) -> None:
    """Begin to write to a store, and keep its writer's lock until the end."""
    import lmdb

    with lmdb.open(folder, map_size=1 << 20) as store, store.begin(write=True):
        wait(descriptor)


def fail(descriptor: int) -> None:
    raise ValueError("as asked")


def leave(descriptor: int, status: int) -> None:
    sys.exit(status)


def spin(descriptor: int) -> None:
    """Write without end, so that standing still is seen."""
    os.set_blocking(descriptor, False)
    while True:
        try:
            os.write(descriptor, b"x")
        except BlockingIOError:
            continue
