"""The devices of this machine: CUDA where NVML shows any, and the CPU always.

Where there is no accelerator the CPU stands in for one, and says so (`stand_in`): a program asks for kind
`accelerator` and runs on either. What keeps NVML from answering is a sentence for `doctor`, never an
error: a machine without a driver is a machine without a GPU.
"""

import os
import platform
from pathlib import Path
from typing import NamedTuple

from .interface import Device
from .nvml import Nvml, NvmlFailed

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Found(NamedTuple):
    devices: list[Device]
    note: str
    """Why there is no CUDA device, or empty."""


def discover() -> Found:
    """The devices, accelerators first."""
    cuda, note = _cuda()
    return Found([*cuda, _cpu(stand_in=not cuda)], note)


def _cuda() -> tuple[list[Device], str]:
    try:
        with Nvml() as library:
            found = library.devices()
    except OSError:
        return [], "no NVIDIA driver on this machine (libnvidia-ml.so.1 is not there): the CPU stands in"
    except NvmlFailed as failure:
        return [], f"the NVIDIA driver does not answer ({failure}): the CPU stands in"
    if not found:
        return [], "the NVIDIA driver shows no device: the CPU stands in"
    return [
        Device(
            id=f"cuda:{each.number}",
            kind="cuda",
            name=each.name,
            uuid=each.uuid,
            memory=each.memory,
            stand_in=False,
        )
        for each in found
    ], ""


def _cpu(stand_in: bool) -> Device:
    return Device(
        id="cpu",
        kind="cpu",
        name=_cpu_name(),
        uuid=f"cpu-{platform.machine()}",
        memory=_memory(),
        stand_in=stand_in,
    )


def _cpu_name() -> str:
    cores = len(os.sched_getaffinity(0))
    described = Path("/proc/cpuinfo")  # a sandbox's /proc shows its processes and nothing of the host
    for line in described.read_text(errors="replace").splitlines() if described.exists() else ():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} ({cores} cores)"
    return f"{platform.machine()} ({cores} cores)"


def _memory() -> int:
    """Bytes of memory that this process may have: the machine's, or its cgroup's limit if that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _LIMIT_FILES:
        path = Path(name)
        if path.is_file():
            limit = path.read_text().strip()
            if limit.isdigit():
                memory = min(memory, int(limit))
    return memory
