"""The filters as ARM64 gets them: built by libseccomp for that machine, judged by the numbers of its kernel's headers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.build import ARM64
from tests.microkernel.filtered import Machine, calls, check, check_numbers
from tests.microkernel.test_filters import GRANTED

MACHINE = Machine(ARM64.compiler, "AARCH64", 0xC00000B7)


@settings(max_examples=600)
@given(st.data())
def test_a_program_says_what_its_rows_mean(data: st.DataObject) -> None:
    check(MACHINE, data.draw(st.sampled_from(GRANTED)), *data.draw(calls(MACHINE)))


@pytest.mark.parametrize("grants", GRANTED)
def test_no_number_passes_that_no_row_names(grants: tuple[str, ...]) -> None:
    check_numbers(MACHINE, grants)
