from pathlib import Path

from .frame import Row


def rows(scratch: Path) -> list[Row]:
    return []
