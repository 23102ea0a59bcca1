"""The C core's inner parts, which Python never calls: compiled into a library of their own for these tests.

`ATOLL_CFLAGS` is honoured, so that a sanitized run (sanitized.py) covers them too.
"""

import ctypes
import os
import subprocess
import sysconfig
import tempfile
from ctypes import POINTER, c_char_p, c_int, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[2] / "native"
SOURCES = ("ring.c", "bulk.c", "table.c", "wait.c")
LINE = 64
NONE = 2**64 - 1

DONE, NOTHING, FULL, FAULT = range(4)
FLAG_BULK, FLAG_CONTEXT = 1, 2


class Header(ctypes.Structure):
    _fields_ = (
        ("commit", c_uint64),
        ("length", c_uint32),
        ("method", c_uint32),
        ("request", c_uint64),
        ("slot", c_uint32),
        ("generation", c_uint32),
        ("epoch", c_uint32),
        ("flags", c_uint16),
        ("kind", c_uint8),
        ("lane", c_uint8),
        ("deadline", c_uint64),
        ("trace", c_uint64),
        ("bulk", c_uint64),
    )


class Consumed(ctypes.Structure):
    _fields_ = (("position", c_uint64), ("reserved", c_uint64 * 7))


class Producer(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("consumed", POINTER(Consumed)),
        ("size", c_uint64),
        ("position", c_uint64),
        ("seen", c_uint64),
        ("stale", c_uint64),
    )


class Consumer(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("consumed", POINTER(Consumed)),
        ("size", c_uint64),
        ("position", c_uint64),
    )


class BulkRecord(ctypes.Structure):
    _fields_ = (("offset", c_uint64), ("length", c_uint64), ("end", c_uint64), ("lane", c_uint32))


class Bulk(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("size", c_uint64), ("count", c_uint32), ("records", BulkRecord * 128))


class TableEntry(ctypes.Structure):
    _fields_ = (
        ("sequence", c_uint64),
        ("channel", c_uint32),
        ("generation", c_uint32),
        ("rights", c_uint64),
        ("badge", c_uint64),
        ("expiry", c_uint64),
        ("interface", c_uint32),
        ("service", c_uint32),
        ("capability", c_uint64),
        ("reserved", c_uint64),
    )


class Table(ctypes.Structure):
    _fields_ = (("segments", c_void_p * 64),)


_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "ring_producer_begin": (None, (POINTER(Producer), c_void_p, POINTER(Consumed), c_uint64, c_uint64)),
    "ring_consumer_begin": (None, (POINTER(Consumer), c_void_p, POINTER(Consumed), c_uint64, c_uint64)),
    "ring_observe": (c_int, (POINTER(Producer),)),
    "ring_produce": (c_int, (POINTER(Producer), POINTER(Header), c_char_p, c_char_p, c_uint32)),
    "ring_peek": (c_int, (POINTER(Consumer), POINTER(Header))),
    "ring_copy": (None, (POINTER(Consumer), c_uint64, c_void_p, c_uint64)),
    "ring_finish": (None, (POINTER(Consumer), c_uint64)),
    "bulk_begin": (None, (POINTER(Bulk), c_void_p, c_uint64)),
    "bulk_reclaim": (None, (POINTER(Bulk), POINTER(c_uint64))),
    "bulk_find": (c_uint64, (POINTER(Bulk), c_uint64)),
    "bulk_hold": (None, (POINTER(Bulk), c_uint64, c_uint64, c_uint32, c_uint64)),
    "table_check": (c_int, (POINTER(Table), c_uint32, c_uint32, c_uint32, POINTER(TableEntry))),
}


@cache
def core() -> ctypes.CDLL:
    """The compiled library; what is wrong with it fails the test that asks first."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    folder = tempfile.mkdtemp(prefix="atoll-core-")
    library = Path(folder) / "core.so"
    flags = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    flags += os.environ.get("ATOLL_CFLAGS", "").split()
    sources = [str(NATIVE / source) for source in SOURCES]
    subprocess.run([compiler, *flags, f"-I{NATIVE}", *sources, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    library.unlink()
    Path(folder).rmdir()
    return loaded


def lines(length: int) -> int:
    """Bytes rounded up to whole lines."""
    return (length + LINE - 1) // LINE * LINE
