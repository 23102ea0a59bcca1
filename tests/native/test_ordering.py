"""Every ordered access of the C core names its partner, and no file but atomics.h reaches for the compiler's own."""

import re
from pathlib import Path

import pytest

from .core import NATIVE

ORDERED = re.compile(r"\b(load_acquire|store_release|exchange|fence_\w+)\(")
SOURCES = sorted([*NATIVE.glob("*.c"), *NATIVE.glob("*.h")])
PAIRED = re.compile(r"[Pp]airs? with")
ABOVE = 6
"""Lines of code and comment above an access within which its comment stands."""


@pytest.mark.parametrize(
    "path", [s for s in SOURCES if s.name not in ("atomics.h", "_core.c")], ids=lambda p: p.name
)
def test_each_ordered_access_names_its_partner(path: Path) -> None:
    lines = path.read_text().splitlines()
    silent = [
        f"{number + 1}: {line.strip()}"
        for number, line in enumerate(lines)
        if ORDERED.search(line) and not PAIRED.search(" ".join(lines[max(0, number - ABOVE) : number + 2]))
    ]
    assert not silent


@pytest.mark.parametrize(
    "path", [s for s in SOURCES if s.name not in ("atomics.h", "_core.c")], ids=lambda p: p.name
)
def test_atomics_are_in_one_header(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"__atomic_|__sync_|\bvolatile\b|stdatomic", text)


def test_every_struct_in_shared_memory_has_its_size_asserted() -> None:
    layout = (NATIVE / "layout.h").read_text()
    structs = re.findall(r"^struct (\w+) \{", layout, re.MULTILINE)
    assert structs
    assert not [name for name in structs if f"_Static_assert(sizeof(struct {name})" not in layout]
