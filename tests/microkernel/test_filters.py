"""Filters say what their tables mean, as a tree and as libseccomp writes them plainly, judged by the headers' numbers."""

import platform
import sysconfig

import pytest

from atoll.microkernel.__main__ import main
from atoll.microkernel.protection import filters
from tests.fuzz.build import LONG

from .filtered import ROUND, Machine, check_numbers, fuzz

MACHINES = {"x86_64": ("X86_64", 0xC000003E), "aarch64": ("AARCH64", 0xC00000B7)}
THIS = Machine((sysconfig.get_config_var("CC") or "cc").split()[0], *MACHINES[platform.machine()])
GRANTED = [(), *((group,) for group in filters.GROUPS if group != "base"), tuple(filters.GROUPS)]


@pytest.mark.parametrize("seconds", [0.0, pytest.param(LONG, marks=pytest.mark.soak)])
def test_a_program_says_what_its_rows_mean(seconds: float) -> None:
    assert fuzz(THIS, GRANTED, seconds) >= ROUND


@pytest.mark.parametrize("grants", GRANTED)
def test_no_number_passes_that_no_row_names(grants: tuple[str, ...]) -> None:
    check_numbers(THIS, grants)


@pytest.mark.parametrize("grants", GRANTED)
def test_a_person_can_read_what_passes_and_why(
    grants: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["filter", *grants]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    for line, row in zip(lines, filters.rows(grants), strict=True):
        assert line.split()[0] == row.call and line.endswith(row.reason)
        assert line.count("argument ") == len(row.tests) and ("fails with " in line) is bool(row.error)
    assert f"{len(filters.export(grants, 'kill')) // 8} instructions" in last
