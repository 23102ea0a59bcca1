"""CUDA devices through NVML, NVIDIA's management library, if the driver is on this machine.

Called by ctypes: the driver brings the library, and Atoll needs seven functions of it. Nothing here opens
a CUDA context, so listing devices takes no device memory. The figures are NVML's own, in bytes.
"""

import ctypes
from typing import Any, NamedTuple

_LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
_NAME_BYTES = 96
_handle = ctypes.c_void_p


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class CudaDevice(NamedTuple):
    number: int
    name: str
    uuid: str
    memory: int
    free: int


class NvmlFailed(Exception):
    """The library is there and refuses: a driver that is being replaced, a device that fell off the bus."""


class Nvml:
    """The library, opened and initialised. Use as a context."""

    def __init__(self, library: str = _LIBRARY) -> None:
        """Raises OSError if the machine has no such library, NvmlFailed if it is too old."""
        self._library = ctypes.CDLL(library)
        self._name = library
        self._function("nvmlErrorString").restype = ctypes.c_char_p

    def __enter__(self) -> "Nvml":
        self._do("nvmlInit_v2")
        return self

    def __exit__(self, *_: object) -> None:
        self._do("nvmlShutdown")

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._library, name)
        except AttributeError:
            raise NvmlFailed(f"{self._name} has no function {name}: update the driver") from None

    def _do(self, function: str, *args: object) -> None:
        code = self._function(function)(*args)
        if code != _SUCCESS:
            told = self._function("nvmlErrorString")(code)
            sentence = told.decode(errors="replace") if told else f"error {code}"
            raise NvmlFailed(f"{function} said {sentence!r}: see `nvidia-smi` for the driver's state")

    def _text(self, function: str, device: ctypes.c_void_p) -> str:
        buffer = ctypes.create_string_buffer(_NAME_BYTES)
        self._do(function, device, buffer, ctypes.c_uint(_NAME_BYTES))
        return buffer.value.decode(errors="replace")

    def devices(self) -> list[CudaDevice]:
        """Every device that the driver shows. Raises NvmlFailed."""
        count = ctypes.c_uint()
        self._do("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return [self._device(index) for index in range(count.value)]

    def _device(self, index: int) -> CudaDevice:
        device = _handle()
        self._do("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
        memory = _Memory()
        self._do("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        name = self._text("nvmlDeviceGetName", device)
        return CudaDevice(index, name, self._text("nvmlDeviceGetUUID", device), memory.total, memory.free)
