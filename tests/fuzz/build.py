"""Compiles the fuzzer (driver.c, targets.c) with the C core, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "native"
CORPUS = HERE / "corpus"
TARGETS = ("serve", "receive", "table", "bulk", "race")
CORE = ("ring", "bulk", "table", "wait", "channel", "client", "loop", "methods")
OWN = ("driver", "targets", "world")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *SANITIZERS, f"-I{NATIVE}", f"-I{HERE}")
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def build(folder: Path) -> Path:
    """The fuzzer, built in `folder`. Only the core's edges are counted, not the fuzzer's own."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]

    def compiled(source: Path, *extra: str) -> Path:
        made = folder / f"{source.stem}.o"
        subprocess.run([compiler, *FLAGS, *extra, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(max_workers=2) as pool:
        core = [pool.submit(compiled, NATIVE / f"{name}.c", "-fsanitize-coverage=trace-pc") for name in CORE]
        own = [pool.submit(compiled, HERE / f"{name}.c") for name in OWN]
    fuzzer = folder / "fuzz"
    objects = [part.result() for part in (*core, *own)]
    subprocess.run([compiler, *SANITIZERS, *objects, "-o", fuzzer], check=True)
    return fuzzer


def fuzz(fuzzer: Path, target: str, corpus: Path, *, runs: int, seconds: float, seed: int, keep: bool) -> str:
    """Run one target; what it said. Raises AssertionError with what a sanitizer found, and where the input lies."""
    words: list[str | Path] = [
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
