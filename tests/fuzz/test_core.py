"""The fuzzers in their short form, the kept corpus and some thousand mutations of it from a fixed seed; and for ten
minutes a target, from a new one."""

import random
import shutil
from pathlib import Path

import pytest

from .build import CORPUS, LONG, TARGETS, build, fuzz
from .grants import fuzz_grants

RUNS = {
    "serve": 3000,
    "receive": 4000,
    "table": 3000,
    "bulk": 3000,
    "nesting": 3000,
    "race": 25,
    "grants": 100,
}
LENGTHS = [0.0, pytest.param(LONG, marks=pytest.mark.soak)]


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fuzz"))


def length(target: str, seconds: float) -> tuple[int, int]:
    """Runs and seed."""
    return (0, random.SystemRandom().randrange(1 << 32)) if seconds else (RUNS[target], 1)


@pytest.mark.parametrize("seconds", LENGTHS)
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_nor_near_it_breaks_the_core(
    fuzzer: Path, target: str, seconds: float, tmp_path: Path
) -> None:
    corpus = shutil.copytree(CORPUS / target, tmp_path / target)
    runs, seed = length(target, seconds)
    said = fuzz(fuzzer, target, corpus, runs=runs, seconds=seconds, seed=seed, keep=False)
    print(said, f"(seed {seed})")
    kept, edges = len(list(corpus.iterdir())), int(said.split()[-2])
    assert kept
    assert edges > 20, f"the fuzzer sees no edges: {said}"


@pytest.mark.parametrize("seconds", LENGTHS)
def test_no_input_of_the_corpus_nor_near_it_breaks_the_mapping_of_grants(
    seconds: float, tmp_path: Path
) -> None:
    corpus = shutil.copytree(CORPUS / "grants", tmp_path / "grants")
    assert list(corpus.iterdir())
    runs, seed = length("grants", seconds)
    print(fuzz_grants(corpus, seconds=seconds, runs=runs, seed=seed, keep=False), f"(seed {seed})")
