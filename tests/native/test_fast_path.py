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
    "tape.c",
    "told.c",
    "table.c",
    "wait.c",
)


def compiled(folder: Path, compiler: str, *flags: str) -> Path:
    """The program that plays both ends of a channel, with what must not be called replaced by counters."""
    program = folder / "fast_path"
    sources = [NATIVE / name for name in SOURCES]
    wraps = [f"-Wl,--wrap={name}" for name in WRAPPED]
    all_flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", *wraps, *flags]
    subprocess.run([compiler, *all_flags, HERE / "fast_path.c", *sources, "-o", program], check=True)
    return program


def answered(command: list[str]) -> list[str]:
    """How often ten thousand calls allocated, and how often they asked the system."""
    memory = Memory(7, Shape(), 0)
    bell, other = socket.socketpair()
    with bell, other:
        given = [memory.descriptor, bell.fileno()]
        said = subprocess.run(
            [*command, *map(str, given)], pass_fds=given, capture_output=True, text=True, check=True
        )
    memory.close()
    return said.stdout.split()


def test_ten_thousand_calls_allocate_nothing_and_make_no_system_call(tmp_path: Path) -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    assert answered([str(compiled(tmp_path, compiler))]) == ["0", "0"], "allocations, system calls"
