"""A filter for one machine, written twice, and what its rows say of a call: for machines other than this one, too."""

import importlib
import time
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.microkernel.protection import filters
from tests.kit import bpf

MOST = (1 << 64) - 1
ROUND = 600
"""Calls between two looks at the clock."""
LOOKED_AT = sorted({test.value for group in filters.GROUPS.values() for row in group for test in row.tests})
NEAR = st.sampled_from(LOOKED_AT)
FLIPPED = st.builds(lambda value, shift: value ^ 1 << shift, NEAR, st.integers(0, 63))
ARGUMENT = st.one_of(NEAR, FLIPPED, st.integers(0, MOST), st.just(filters.CLONE_THREAD))


class Machine(NamedTuple):
    compiler: str
    """Whose headers say the numbers."""
    arch: str
    """By libseccomp's name."""
    audit: int
    """AUDIT_ARCH_*: what the kernel tells a filter."""


@cache
def numbers(machine: Machine) -> dict[str, int]:
    return bpf.numbers(machine.compiler)


@cache
def programs(machine: Machine, grants: tuple[str, ...]) -> tuple[bytes, bytes]:
    """As the kernel gets it, a tree over the numbers; and as libseccomp writes it plainly, row after row."""
    pyseccomp = importlib.import_module("pyseccomp")
    made = []
    for optimize in (2, 1):
        table = pyseccomp.SyscallFilter(pyseccomp.KILL_PROCESS)
        arch = getattr(pyseccomp.Arch, machine.arch)
        if arch != pyseccomp.system_arch():
            table.remove_arch(pyseccomp.system_arch())
            table.add_arch(arch)
        table.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        table.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, optimize)
        filters.fill(table, grants)
        made.append(filters.read_out(table))
    return made[0], made[1]


def meant(grants: tuple[str, ...], name: str, arguments: tuple[int, ...]) -> int:
    """What the rows say of a call."""
    rows = [row for row in filters.rows(grants) if row.call == name]
    plain = [row for row in rows if not row.tests]
    for row in plain or rows:
        if all(arguments[test.argument] & test.mask == test.value for test in row.tests):
            return bpf.ERRNO | row.error if row.error else bpf.ALLOW
    return bpf.KILL_PROCESS


def calls(machine: Machine) -> st.SearchStrategy[tuple[str, bpf.Call]]:
    """Calls of the machine by name, with arguments near those that rows look at."""

    named = st.sampled_from(sorted(numbers(machine).items()))
    return st.builds(
        lambda called, arguments: (called[0], bpf.Call(called[1], machine.audit, arguments)),
        named,
        st.tuples(*[ARGUMENT] * 6),
    )


def check(machine: Machine, grants: tuple[str, ...], name: str, call: bpf.Call) -> None:
    """Both programs say what the rows mean."""
    tree, plain = programs(machine, grants)
    expected = meant(grants, name, call.arguments)
    assert bpf.verdict(tree, call) == expected, (name, call)
    assert bpf.verdict(plain, call) == expected, (name, call)


def fuzz(machine: Machine, granted: Sequence[tuple[str, ...]], seconds: float) -> int:
    """A round of calls against filters of these grants, and more until the time is over; the number of calls."""
    tried = 0

    @settings(max_examples=ROUND, deadline=None, derandomize=False)
    @given(st.sampled_from(granted), calls(machine))
    def holds(grants: tuple[str, ...], called: tuple[str, bpf.Call]) -> None:
        nonlocal tried
        tried += 1
        check(machine, grants, *called)

    until = time.monotonic() + seconds
    while True:
        holds()
        if time.monotonic() >= until:
            return tried


def check_numbers(machine: Machine, grants: tuple[str, ...]) -> None:
    """With no argument set, and for every number, also those that nobody has; and for other machines' calls none passes."""
    names = {number: name for name, number in numbers(machine).items()}
    tree, plain = programs(machine, grants)
    for number in (*range(1024), *range(1 << 30, (1 << 30) + 600), -1 & 0xFFFFFFFF):
        call = bpf.Call(number - (1 << 32) if number >= 1 << 31 else number, machine.audit)
        expected = meant(grants, names.get(number, ""), call.arguments)
        assert bpf.verdict(tree, call) == bpf.verdict(plain, call) == expected, (names.get(number), number)
        assert bpf.verdict(tree, call._replace(machine=machine.audit ^ 1)) == bpf.KILL_PROCESS
