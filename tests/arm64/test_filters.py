"""The filters as ARM64 gets them: built by libseccomp for that machine, judged by the numbers of its kernel's headers."""

import pytest

from tests.fuzz.build import ARM64, LONG
from tests.microkernel.filtered import ROUND, Machine, check_numbers, fuzz
from tests.microkernel.test_filters import GRANTED

MACHINE = Machine(ARM64.compiler, "AARCH64", 0xC00000B7)


@pytest.mark.parametrize("seconds", [0.0, pytest.param(LONG, marks=pytest.mark.soak)])
def test_a_program_says_what_its_rows_mean(seconds: float) -> None:
    assert fuzz(MACHINE, GRANTED, seconds) >= ROUND


@pytest.mark.parametrize("grants", GRANTED)
def test_no_number_passes_that_no_row_names(grants: tuple[str, ...]) -> None:
    check_numbers(MACHINE, grants)
