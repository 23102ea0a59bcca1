"""What the figures were measured on, and in which mood the machine was."""

import importlib.metadata
import os
import platform
import sqlite3
import statistics
import sys
from pathlib import Path

import msgspec

from . import extras, native
from .placement import available

PACKAGES = ("trio", "msgspec", "cffi", "lmdb", "grpcio", "pyzmq", "numpy")


class Pulse(msgspec.Struct):
    """How dear it is, at one moment, to reach another core: a cache line's way, and waking a thread."""

    before: str
    """The row that followed."""
    line_ns: float
    wake_two_cores_ns: float
    wake_one_core_ns: float


class Machine(msgspec.Struct, kw_only=True):
    """The machine and its software, without anything that names a person, a host or a path."""

    cpu: str
    cores: int
    cores_allowed: int
    virtual: str
    memory_mib: int
    kernel: str
    architecture: str
    python: str
    root: bool
    packages: dict[str, str]
    sqlite: str
    scratch_filesystem: str
    load_at_start: tuple[float, float, float]
    load_at_end: tuple[float, float, float]
    pulses: list[Pulse]


def _field(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _versions() -> dict[str, str]:
    """Of the packages that are here, the benchmark's own folder of peers included."""
    found = importlib.metadata.distributions(path=[*sys.path, str(extras.FOLDER)])
    return {name: made.version for made in found if (name := made.metadata["Name"]) in PACKAGES}


def filesystem(folder: Path) -> str:
    """The type of the file system a folder lies on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    over = [(len(m[1]), m[2]) for m in mounts if folder.resolve().is_relative_to(m[1])]
    return max(over)[1] if over else "unknown"


def describe(scratch: Path) -> Machine:
    """Takes the description; `pulses` and `load_at_end` are the run's to fill."""
    flags = _field("/proc/cpuinfo", "flags").split()
    return Machine(
        cpu=_field("/proc/cpuinfo", "model name"),
        cores=os.cpu_count() or 1,
        cores_allowed=len(available()),
        virtual="virtual machine" if "hypervisor" in flags else "bare metal, or it does not say",
        memory_mib=int(_field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        kernel=platform.release(),
        architecture=platform.machine(),
        python=platform.python_version(),
        root=os.geteuid() == 0,
        packages=_versions(),
        sqlite=sqlite3.sqlite_version,
        scratch_filesystem=filesystem(scratch),
        load_at_start=os.getloadavg(),
        load_at_end=os.getloadavg(),
        pulses=[],
    )


def pulse(before: str) -> Pulse | None:
    """Feels the machine's mode, some 30 ms; None with one core only."""
    cores = available()
    if len(cores) < 2:
        return None
    lib = native.load().lib
    first, last = cores[0], cores[-1]

    def median(one_way: list[float]) -> float:
        return round(statistics.median(one_way) * 1e9, 1)

    return Pulse(
        before=before,
        line_ns=median([lib.line_one_way(first, last, 10_000) for _ in range(5)]),
        wake_two_cores_ns=median([lib.wake_one_way(first, last, 200) for _ in range(3)]),
        wake_one_core_ns=median([lib.wake_one_way(first, first, 500) for _ in range(3)]),
    )


def mood(pulses: list[Pulse]) -> str:
    """One sentence on how far the machine moved during the run."""
    if not pulses:
        return "One core: nothing to reach across."

    def span(values: list[float], unit: float) -> str:
        return f"{min(values) / unit:.2f} to {max(values) / unit:.2f}"

    lines, wakes = [p.line_ns for p in pulses], [p.wake_two_cores_ns for p in pulses]
    same = [p.wake_one_core_ns for p in pulses]
    return (
        f"A cache line between two cores took {span(lines, 1000)} µs one way over the run "
        f"({max(lines) / min(lines):.1f} x apart), waking a thread on the other core {span(wakes, 1000)} µs, "
        f"on the same core {span(same, 1000)} µs."
    )
