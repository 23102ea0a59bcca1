"""Where this host writes memory that it has no room for."""

from pathlib import Path

from .hierarchy import lines_of

SWAPS = Path("/proc/swaps")


def devices() -> list[str]:
    """Files and partitions that take swapped memory now."""
    lines = lines_of(SWAPS)[1:] if SWAPS.exists() else []
    return [line.split()[0] for line in lines]
