"""Swaps of a server while it is called."""

from pathlib import Path

from .frame import Row, Survey
from .node import swaps


def rows(scratch: Path) -> list[Row]:
    return [Survey("swap", swaps.ROW, lambda: swaps.measure(scratch))]
