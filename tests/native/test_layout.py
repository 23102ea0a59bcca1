"""Geometry, and the numbers that C and Python must agree on."""

import re
from enum import IntEnum

import pytest

from atoll.native import Kind, Op, Refusal, Result, ffi, lib

from .core import NATIVE, Bulk, Header, TableEntry

PAGE = 4096


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("ring_bits", [12, 16, 20])
@pytest.mark.parametrize("bulk_bits", [18, 20])
def test_a_channel_is_its_first_page_its_rings_and_its_halves(
    lanes: int, ring_bits: int, bulk_bits: int
) -> None:
    size = lib.atoll_channel_size(lanes, ring_bits, bulk_bits)
    assert size == PAGE + 2 * lanes * (1 << ring_bits) + 2 * (1 << bulk_bits)


@pytest.mark.parametrize(
    ("lanes", "ring_bits", "bulk_bits"),
    [(0, 16, 20), (4, 16, 20), (3, 11, 20), (3, 25, 20), (3, 16, 11), (3, 16, 31), (3, 16, 13), (3, 24, 20)],
)
def test_a_geometry_that_cannot_be_is_refused(lanes: int, ring_bits: int, bulk_bits: int) -> None:
    """The last two: a record in the ring (a quarter of it at most) would not fit the buffer that receives it."""
    assert lib.atoll_channel_size(lanes, ring_bits, bulk_bits) == 0
    assert lib.atoll_channel_open(0, 0, 0, lanes, ring_bits, bulk_bits, 1, 0, ffi.NULL) == ffi.NULL


def test_structs_have_the_sizes_that_both_sides_count_on() -> None:
    import ctypes

    assert ctypes.sizeof(Header) == ctypes.sizeof(TableEntry) == 64
    assert ctypes.sizeof(Bulk) == 24 + 128 * 32


def _enum(file: str, name: str, prefix: str) -> dict[str, int]:
    text = (NATIVE / file).read_text()
    body = re.search(rf"enum {name} \{{(.*?)\}};", text, re.DOTALL)
    assert body is not None
    found: dict[str, int] = {}
    value = -1
    for member in re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL).split(","):
        if not (words := member.replace("=", " ").split()):
            continue
        value = int(words[1]) if len(words) > 1 else value + 1
        found[words[0].removeprefix(prefix)] = value
    return found


@pytest.mark.parametrize(
    ("mirror", "file", "name", "prefix"),
    [
        (Kind, "layout.h", "kind", "KIND_"),
        (Op, "loop.h", "op", "OP_"),
        (Refusal, "table.h", "refusal", "REFUSED_"),
        (Result, "channel.h", "result", "R_"),
    ],
)
def test_python_mirrors_the_numbers_of_c(mirror: type[IntEnum], file: str, name: str, prefix: str) -> None:
    assert {member.name: int(member) for member in mirror} == _enum(file, name, prefix)
