"""Compiles the fuzzer (driver.c, targets.c) with the C core: for this machine under AddressSanitizer and
UndefinedBehaviorSanitizer, for ARM64 under the latter, to run in an emulator."""

import os
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "native"
CORPUS = HERE / "corpus"
TARGETS = ("serve", "receive", "table", "bulk", "nesting", "race")
LONG = 600.0
"""Seconds a target of the long form."""
CORE = ("ring", "bulk", "table", "wait", "channel", "client", "loop", "methods", "tape", "told", "nesting")
OWN = ("driver", "targets", "world")
FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", f"-I{HERE}")
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


class Machine(NamedTuple):
    """For what it is built, and how that runs here."""

    compiler: str
    sanitizers: tuple[str, ...]
    runner: tuple[str, ...] = ()


HERE_MACHINE = Machine(
    (sysconfig.get_config_var("CC") or "cc").split()[0],
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)
ARM64 = Machine(
    "aarch64-linux-gnu-gcc",
    # The emulator has no room for AddressSanitizer's shadow, and the cross compiler comes without the other's library.
    ("-static", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
    ("qemu-aarch64",),
)


def build(folder: Path, machine: Machine = HERE_MACHINE) -> Path:
    """The fuzzer, built in `folder`. Only the core's edges are counted, not the fuzzer's own."""

    def compiled(source: Path, *extra: str) -> Path:
        made = folder / f"{source.stem}.o"
        flags = (*FLAGS, *machine.sanitizers, *extra)
        subprocess.run([machine.compiler, *flags, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(max_workers=2) as pool:
        core = [pool.submit(compiled, NATIVE / f"{name}.c", "-fsanitize-coverage=trace-pc") for name in CORE]
        own = [pool.submit(compiled, HERE / f"{name}.c") for name in OWN]
    fuzzer = folder / "fuzz"
    objects = [part.result() for part in (*core, *own)]
    subprocess.run([machine.compiler, *machine.sanitizers, *objects, "-o", fuzzer], check=True)
    return fuzzer


def fuzz(
    fuzzer: Path, target: str, corpus: Path, *,
    runs: int, seconds: float, seed: int, keep: bool, runner: Sequence[str] = (),
) -> str:  # fmt: skip
    """Run one target; what it said. Raises AssertionError with what a sanitizer found, and where the input lies."""
    words: list[str | Path] = [
        *runner,
        fuzzer,
        target,
        corpus,
        str(runs),
        str(seconds),
        str(seed),
        *(["keep"] if keep else []),
    ]
    said = subprocess.run(words, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, f"{target}: the input is {corpus}.last\n{said.stdout}{said.stderr}"
    return str(said.stdout).strip()
