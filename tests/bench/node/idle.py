"""What a node costs when nobody asks anything of it: processor time and memory of all its processes."""

import time
from pathlib import Path

from ..frame import Figure
from .booted import Booted

IMAGES = Path(__file__).resolve().parents[3] / "images"
SETTLE = 3.0
SECONDS = 15.0
SHARE = 0.5
KIB = 1024


def measure(scratch: Path, profile: str, goal: bool) -> list[Figure]:
    """The node of `images/PROFILE.toml`, from its booting to its standing idle."""
    booted = Booted(scratch, (IMAGES / f"{profile}.toml").read_text(), f"idle-{profile}")
    with booted.lease():
        time.sleep(SETTLE)
        processes = booted.processes()
        before, start = _nanoseconds(processes), time.perf_counter()
        time.sleep(SECONDS)
        share = (_nanoseconds(processes) - before) / 1e9 / (time.perf_counter() - start) * 100
        memory = _memory(processes)
    row = f"idle node, images/{profile}.toml"
    return [
        Figure(
            name=f"{row}: share of one core",
            value=share,
            unit="%",
            goal=f"<= {SHARE}" if goal else None,
            holds=share <= SHARE if goal else None,
            note=f"All {len(processes)} processes of the node over {SECONDS:g} s, nobody attached.",
        ),
        Figure(name=f"{row}: memory, shared pages counted once", value=memory["Pss"] / KIB, unit="MiB"),
        Figure(name=f"{row}: memory of its own", value=memory["Private"] / KIB, unit="MiB"),
        Figure(name=f"{row}: resident sizes added up", value=memory["Rss"] / KIB, unit="MiB"),
        Figure(name=f"{row}: processes", value=len(processes), unit="count"),
    ]


def _nanoseconds(processes: list[int]) -> int:
    """Time on a processor of every thread, from the scheduler: ticks of a hundredth of a second are too coarse."""
    total = 0
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total


def _memory(processes: list[int]) -> dict[str, int]:
    """KiB of all processes together."""
    total = {"Rss": 0, "Pss": 0, "Private": 0}
    for process in processes:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split()[:2]
            kind = name.rstrip(":").partition("_")[0]
            if name.rstrip(":") in ("Rss", "Pss") or kind == "Private":
                total[kind] += int(value)
    return total
