"""The fuzzer in its short form: the kept corpus, and some thousand mutations of it from a fixed seed."""

import shutil
from pathlib import Path

import pytest

from .build import CORPUS, TARGETS, build, fuzz
from .grants import fuzz_grants

RUNS = {"serve": 3000, "receive": 4000, "table": 3000, "bulk": 3000, "nesting": 3000, "race": 25}
SOAK = 120.0
"""Seconds a target of the long form."""


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_nor_near_it_breaks_the_core(
    fuzzer: Path, target: str, tmp_path: Path
) -> None:
    corpus = shutil.copytree(CORPUS / target, tmp_path / target)
    said = fuzz(fuzzer, target, corpus, runs=RUNS[target], seconds=0, seed=1, keep=False)
    kept, edges = len(list(corpus.iterdir())), int(said.split()[-2])
    assert kept
    assert edges > 20, f"the fuzzer sees no edges: {said}"


def test_no_input_of_the_corpus_breaks_the_mapping_of_grants(tmp_path: Path) -> None:
    corpus = shutil.copytree(CORPUS / "grants", tmp_path / "grants")
    assert list(corpus.iterdir())
    fuzz_grants(corpus, seconds=0, runs=100, seed=1, keep=False)


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_the_core_for_long(fuzzer: Path, target: str, tmp_path: Path) -> None:
    corpus = shutil.copytree(CORPUS / target, tmp_path / target)
    fuzz(fuzzer, target, corpus, runs=0, seconds=SOAK, seed=2, keep=False)
