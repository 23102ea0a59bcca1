"""Rings, tables, allocator and receive path as ARM64 code: the fuzzer's corpus and mutations of it, some hundred or for
ten minutes a target, and calls that allocate nothing. The sandbox is compiled only: the emulator has no seccomp, no
Landlock and no namespaces."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.build import ARM64, CORPUS, LONG, NATIVE, TARGETS, build, fuzz
from tests.native.test_fast_path import answered, compiled

RUNS = {"serve": 300, "receive": 400, "table": 300, "bulk": 300, "nesting": 300, "race": 5}


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("arm64"), ARM64)


@pytest.mark.parametrize("seconds", [0.0, pytest.param(LONG, marks=pytest.mark.soak)])
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_nor_near_it_breaks_the_core(
    fuzzer: Path, target: str, seconds: float, tmp_path: Path
) -> None:
    corpus = shutil.copytree(CORPUS / target, tmp_path / target)
    runs, seed = (0, random.SystemRandom().randrange(1 << 32)) if seconds else (RUNS[target], 1)
    said = fuzz(
        fuzzer, target, corpus, runs=runs, seconds=seconds, seed=seed, keep=False, runner=ARM64.runner
    )
    print(said, f"(seed {seed})")
    assert int(said.split()[-2]) > 20, f"the fuzzer sees no edges: {said}"


def test_calls_between_both_ends_allocate_nothing_and_make_no_system_call(tmp_path: Path) -> None:
    program = compiled(tmp_path, ARM64.compiler, "-static")
    assert answered([*ARM64.runner, str(program)]) == ["0", "0"]


@pytest.mark.parametrize("source", sorted(path.name for path in NATIVE.glob("*.c") if path.name != "_core.c"))
def test_every_source_compiles_without_a_warning(source: str, tmp_path: Path) -> None:
    flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong")
    subprocess.run(
        [ARM64.compiler, *flags, f"-I{NATIVE}", "-c", NATIVE / source, "-o", tmp_path / "object"], check=True
    )
