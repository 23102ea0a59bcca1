"""The kernel dies at a step of a swap, while every kind of client calls: the next boot has all that they were told, and of
what was in hand each part once or not at all."""

from pathlib import Path

import pytest

from atoll.ipc.errors import NodeDown
from atoll.ipc.system.kernel import Swap
from atoll.microkernel.failpoints import STEPS

from .callers import REPEATABLE, Steady, called, called_steadily, called_until_death
from .left import Held, checked, last_gone, no_more_than
from .nodes import booted

KINDS = (*REPEATABLE, "long")
OF_A_SWAP = [step for step in STEPS if step.startswith("swap: ")]


@pytest.mark.parametrize(
    "steps",
    [["swap: handed over"], pytest.param(OF_A_SWAP, marks=pytest.mark.soak)],
    ids=["handed over", "each step"],
)
def test_a_kernel_that_dies_in_a_swap_under_load_loses_and_doubles_nothing(
    tmp_path: Path, steps: list[str]
) -> None:
    before: Steady | None = None
    with booted(tmp_path) as node:
        plain = Held.by(node)
        assert node.stop() == 0
        for step in steps:
            node.boot(fail_at=step)
            with (
                called_until_death(node, KINDS) as callers,
                called_steadily(node, mortal=True, after=before) as told,
                pytest.raises(NodeDown),
                node.attach() as attached,
            ):
                attached.kernel.swap.now(Swap(server="counter"))
            (before,) = told
            node.died()
            last_gone(node)
            checked(node)
            node.boot()
            callers.compare()
            no_more_than(plain, node)
            with called(node, KINDS), called_steadily(node, after=before) as told:
                pass
            (before,) = told
            assert node.stop() == 0
