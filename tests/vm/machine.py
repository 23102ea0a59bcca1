"""The machine, emulated by software alone: this checkout is on its second disk, what it says comes over a serial line."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from .image import HOUSE, image

EMULATOR = "qemu-system-x86_64"
CORES, MEMORY = 2, "3G"
UNITS = ("serial-getty@ttyS0.service", "apt-daily.timer", "apt-daily-upgrade.timer")
"""Nobody logs in there, and nothing is to be fetched."""
ENDED = "ended: "
LONGEST = 2700.0
"""Seconds after which a machine is ended that has not switched itself off. With two cores to itself it takes a quarter of
an hour; a host that does other work may give it a third of that time, and at less it would fail for nothing. A single
test that hangs is ended inside, after 200 seconds."""


def run(tests: Sequence[str]) -> tuple[int, list[str]]:
    """The status that pytest ended with in there, and all lines that were said. What is said is passed on at once."""
    made = image()
    with tempfile.TemporaryDirectory(prefix="atoll-vm-") as scratch:
        checkout = _checkout(Path(scratch), tests)
        command = [
            EMULATOR, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(CORES), "-m", MEMORY,
            "-kernel", str(made.kernel), "-initrd", str(made.start),
            "-append", f"root=/dev/vda rw console=ttyS0 quiet {' '.join(f'systemd.mask={unit}' for unit in UNITS)}",
            "-drive", f"file={made.disk},format=raw,if=virtio,snapshot=on",
            "-drive", f"file={checkout},format=raw,if=virtio,readonly=on",
            "-nic", "none", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
        ]  # fmt: skip
        said = heard(command, LONGEST)
    ended = [line for line in said if line.startswith(ENDED)]
    return int(ended[-1].removeprefix(ENDED)) if ended else -1, said


def heard(command: Sequence[str], longest: float) -> list[str]:
    """The lines that a program says until it ends, or is ended after so many seconds: that is its last line then."""
    said, late = [], threading.Event()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as program:
        assert program.stdout is not None

        def end() -> None:
            late.set()
            program.kill()

        patience = threading.Timer(longest, end)
        patience.start()
        try:
            for line in program.stdout:
                said.append(line.strip())
                print(line, end="", flush=True)
        finally:
            patience.cancel()
            patience.join()
    if late.is_set():
        said.append(f"it had not ended after {longest:g} seconds")
    return said


def _checkout(scratch: Path, tests: Sequence[str]) -> Path:
    """A disk with the tracked files, a wheel of them, and what is to be run."""
    given = scratch / "given"
    given.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=HOUSE, check=True, capture_output=True).stdout
    with tarfile.open(given / "checkout.tar", "w") as archive:
        for name in tracked.decode().split("\0"):
            if name:
                archive.add(HOUSE / name, name)
    with tempfile.TemporaryDirectory(prefix="atoll-wheel-") as source:
        with tarfile.open(given / "checkout.tar") as archive:
            archive.extractall(source, filter="data")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(given), source]
        subprocess.run(wheel, check=True)
    (given / "tests").write_text("\n".join(tests))
    shutil.copy(Path(__file__).with_name("inside"), given)
    disk = scratch / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(given), str(disk), "64M"], check=True)
    return disk
