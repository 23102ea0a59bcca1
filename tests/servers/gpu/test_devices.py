"""The devices of this very machine."""

import ctypes.util
import os

import pytest

from atoll.servers.gpu.devices import discover
from atoll.servers.gpu.nvml import Nvml, NvmlFailed


def has_nvml() -> bool:
    try:
        Nvml()
    except OSError:
        return False
    return True


def test_the_cpu_is_always_there_and_says_whether_it_stands_in() -> None:
    found = discover()
    cpu = found.devices[-1]
    cuda = [device for device in found.devices if device.kind == "cuda"]
    assert (cpu.id, cpu.kind) == ("cpu", "cpu")
    assert cpu.stand_in == (not cuda) == bool(found.note)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < cpu.memory <= machine
    assert f"({len(os.sched_getaffinity(0))} cores)" in cpu.name


@pytest.mark.skipif(not has_nvml(), reason="no NVIDIA driver here: libnvidia-ml.so.1 is not installed")
def test_cuda_devices_are_listed_with_their_memory() -> None:
    with Nvml() as library:
        devices = library.devices()
    assert devices
    for device in devices:
        assert device.uuid.startswith("GPU-")
        assert 0 <= device.free <= device.memory


def test_a_library_that_lacks_the_functions_is_a_sentence() -> None:
    libc = ctypes.util.find_library("c")
    assert libc is not None
    with pytest.raises(NvmlFailed, match="has no function nvmlErrorString: update the driver"):
        Nvml(libc)
