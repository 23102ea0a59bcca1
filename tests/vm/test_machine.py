"""Debian's default user, in a machine of their own: chosen tests pass there. Software emulates it, so they are few."""

import shutil
import subprocess
import sys

import pytest

from .image import HOUSE, NEEDED
from .machine import EMULATOR, heard, run

CHOSEN = (
    "tests/vm/test_service.py",
    "tests/escape/test_escape.py::test_each_attack_is_stopped_exactly_where_claimed",
    "tests/escape/test_escape.py::test_without_own_users_only_the_sandbox_keeps_files_apart",
    "tests/escape/test_escape.py::test_threads_are_bounded_by_the_slice_and_by_no_level[process-slice]",
    "tests/escape/test_escape.py::test_memory_is_bounded_by_the_slice_and_by_no_level[process-slice]",
    "tests/escape/test_attach.py::test_a_server_does_not_get_in[own-uid-sandbox]",
    "tests/escape/test_attach.py::test_what_a_server_left_behind_does_not_get_in[own-uid-process]",
    "tests/microkernel/test_slices.py::test_a_child_is_in_its_group_before_it_runs",
    "tests/microkernel/test_slices.py::test_what_is_started_in_a_group_that_was_ended_lives",
    "tests/microkernel/test_slices.py::test_limits_are_taken_and_can_be_changed",
    "tests/microkernel/test_slices.py::test_frozen_processes_stand_still_and_go_on",
    "tests/microkernel/test_slices.py::test_a_new_boot_ends_and_removes_what_the_old_one_left",
    "tests/microkernel/test_slices.py::test_two_nodes_do_not_touch_each_other",
    "tests/microkernel/test_node.py::test_a_node_serves_and_ends_in_order",
    "tests/microkernel/test_node.py::test_a_killed_kernel_leaves_no_process_and_loses_nothing",
    "tests/microkernel/test_node.py::test_a_second_boot_is_refused_with_a_sentence",
    "tests/microkernel/test_node.py::test_clean_removes_what_a_dead_node_left",
    "tests/microkernel/test_freeze.py::test_calls_wait_while_frozen_and_go_on_after",
    "tests/microkernel/test_freeze.py::test_freeze_and_thaw_are_rows_when_they_are_answered",
    "tests/microkernel/test_survivors.py::test_a_frozen_server_does_not_outlive_a_killed_kernel",
    "tests/microkernel/test_survivors.py::test_survivors_of_kernel_and_zygote_are_ended_by_the_next_boot",
    "tests/microkernel/test_swap.py::test_a_live_stream_goes_on_where_it_was",
    "tests/conformance/mechanisms/test_groups.py::test_the_frozen_are_ended[real]",
    "tests/conformance/mechanisms/test_groups.py::test_limits_are_taken_and_what_is_not_is_a_sentence[real]",
    "tests/conformance/mechanisms/test_processes.py::test_a_killed_process_lets_go_of_what_it_was_handed_before_its_end_is_seen[real]",
)
"""Levels, slices, boot, kill, freeze: what depends on who boots, and on whose control groups."""
MOST = 30
"""Tests that fit into a quarter of an hour there."""


def test_so_few_are_chosen_and_each_is_there() -> None:
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *CHOSEN]
    found = subprocess.run(collect, cwd=HOUSE, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert len([line for line in found.stdout.splitlines() if "::" in line]) <= MOST


def test_a_machine_that_never_ends_is_ended() -> None:
    assert heard(["sleep", "infinity"], 0.1) == ["it had not ended after 0.1 seconds"]
    assert heard(["echo", "over"], 300) == ["over"]


@pytest.mark.soak
def test_chosen_tests_pass_for_debians_default_user() -> None:
    if lacking := [name for name in (EMULATOR, *NEEDED) if shutil.which(name) is None]:
        pytest.skip(f"the host lacks {', '.join(lacking)}: `sh .ci/host --vm` installs them")
    status, said = run(CHOSEN)
    assert status == 0, "\n".join(said[-60:])
