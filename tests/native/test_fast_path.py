"""What a call costs the system while both ends are awake: no allocation, no system call."""

import socket
import subprocess
import sysconfig
from pathlib import Path

from atoll.ipc.system.control import Shape
from tests.kit.memory import Memory

from .core import NATIVE

HERE = Path(__file__).parent
WRAPPED = ("malloc", "calloc", "realloc", "aligned_alloc", "mmap", "send", "recv", "syscall")
SOURCES = (
    "ring.c",
    "bulk.c",
    "channel.c",
    "client.c",
    "loop.c",
    "methods.c",
    "table.c",
    "wait.c",
)


def test_ten_thousand_calls_allocate_nothing_and_make_no_system_call(tmp_path: Path) -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    program = tmp_path / "fast_path"
    sources = [NATIVE / name for name in SOURCES]
    wraps = [f"-Wl,--wrap={name}" for name in WRAPPED]
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", *wraps]
    subprocess.run([compiler, *flags, HERE / "fast_path.c", *sources, "-o", program], check=True)
    memory = Memory(7, Shape(), 0)
    bell, other = socket.socketpair()
    with bell, other:
        given = [memory.descriptor, bell.fileno()]
        said = subprocess.run(
            [program, *map(str, given)], pass_fds=given, capture_output=True, text=True, check=True
        )
    memory.close()
    assert said.stdout.split() == ["0", "0"], "allocations, system calls"
