"""A server with workflows in hand is swapped: they go on under the new version if it says so, else they wait for theirs."""

from pathlib import Path

from atoll.ipc.durable import Start
from atoll.ipc.system.kernel import Swap
from tests.microkernel.nodes import RealNode

from .conftest import InNode, effects, until
from .nodes import edited, hold

LONG = 60.0
"""Seconds that a drain may take; no test here waits for it."""
MAY_GO_ON = """
    def may_go_on(self, method: str, version: str) -> bool:
        return method == "Stages.limited"
"""


def test_workflows_go_on_under_a_version_that_says_so(
    real_node: RealNode, tmp_path: Path, label: str
) -> None:
    with real_node.attach() as attached:
        running = InNode(attached, real_node)
        hold(running.folder, f"{label} after 2")
        running.stages.limited.begin.now(Start(id=label), label, 4, 9)
        running.stages.reached.now(f"{label} after 2")
        waiting = running.stages.limited.result.start(label)
        hold(running.folder, "")
        done = attached.kernel.swap.now(
            Swap(server="stages", package=edited(tmp_path, MAY_GO_ON), deadline=LONG)
        )
        assert waiting.result() == 4
        attached.kernel.swap.now(Swap(server="stages", version=done.old, deadline=LONG))
        assert effects(running, label) == {"1": 1, "2": 1, "3": 1, "4": 1}


def test_workflows_wait_for_their_version_under_another(
    real_node: RealNode, tmp_path: Path, label: str
) -> None:
    with real_node.attach() as attached:
        running = InNode(attached, real_node)
        hold(running.folder, f"{label} after 2")
        running.stages.limited.begin.now(Start(id=label), label, 4, 9)
        running.stages.reached.now(f"{label} after 2")
        hold(running.folder, "")
        done = attached.kernel.swap.now(
            Swap(server="stages", package=edited(tmp_path, "# another\n"), deadline=LONG)
        )
        row = until(running, label, "waiting")
        assert row.version == done.old
        assert f"version {done.new} does not say that it goes on with that" in row.reason
        assert effects(running, label) == {"1": 1, "2": 1}
        attached.kernel.swap.now(Swap(server="stages", version=done.old, deadline=LONG))
        assert running.stages.limited.result.now(label) == 4
        assert effects(running, label) == {"1": 1, "2": 1, "3": 1, "4": 1}


def test_a_step_that_runs_is_let_finish(real_node: RealNode, label: str) -> None:
    with real_node.attach() as attached:
        running = InNode(attached, real_node)
        running.stages.wait.begin.now(Start(id=label), label)
        waiting = running.stages.wait.result.start(label)
        swapping = attached.kernel.swap.start(Swap(server="stages", deadline=5.0))
        running.stages.release.now(label)
        swapping.result()
        running.stages.release.now(label)
        assert waiting.result() == label
