"""The kernel is killed at each named step of a system call: the next boot finds the call done, or not begun."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import NodeDown
from atoll.ipc.system.kernel import Load, ServerBinding, Swap
from atoll.microkernel.failpoints import STEPS

from .nodes import PACKAGES, booted, interface, wait_for_end

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")

SECOND = Load(
    server="second", package=str(PACKAGES / "teller"), needs={"counter": ServerBinding(server="counter")}
)
OFTEN = {"load: committed", "stop: committed", "revoke: cleared", "revoke: committed", "swap: committed"}
"""The steps of the short form: right behind a row, and the one effect that comes before its row."""


def granted(attached: Attached) -> int:
    root = next(row for row in attached.kernel.caps.now("counter") if row.parent == 0)
    number: int = attached.kernel.grant.now(root.number, "teller", ["read"])
    return number


def act(attached: Attached, call: str, capability: int) -> None:
    kernel = attached.kernel
    acts: dict[str, Callable[[], object]] = {
        "start": lambda: kernel.restart.now("counter"),
        "load": lambda: kernel.load.now(SECOND),
        "stop": lambda: kernel.stop.now("counter"),
        "freeze": lambda: kernel.freeze.now("counter"),
        "grant": lambda: granted(attached),
        "revoke": lambda: kernel.revoke.now(capability),
        "swap": lambda: kernel.swap.now(Swap(server="counter", level="seccomp")),
    }
    acts[call]()


def test_every_step_stands_in_the_kernel_once() -> None:
    house = Path(__file__).parents[2] / "microkernel"
    named = [
        step for path in house.glob("*.py") for step in re.findall(r'reach\("([^"]+)"\)', path.read_text())
    ]
    assert sorted(named) == sorted(STEPS)


@pytest.mark.parametrize(
    "step", [step if step in OFTEN else pytest.param(step, marks=pytest.mark.soak) for step in STEPS]
)
def test_a_kernel_that_dies_there_leaves_the_call_done_or_not_begun(tmp_path: Path, step: str) -> None:
    call, _, point = step.partition(": ")
    with booted(tmp_path) as node:
        with node.attach() as attached:
            assert attached.open("counter", Counter).add.now("x", 5) == 5
            capability = granted(attached) if call == "revoke" else 0
        assert node.stop() == 0
        if call == "start":
            node.boot()  # every start comes to its steps, that of the store first
            node.stop()
            with pytest.raises(AssertionError, match="it did not boot"):
                node.boot(fail_at=step)
        else:
            node.boot(fail_at=step)
            with pytest.raises(NodeDown), node.attach() as attached:
                act(attached, call, capability)
            processes = node.processes()
            node.died()
            for pid in processes:
                wait_for_end(pid)
        check = [sys.executable, "-m", "atoll.servers.state.check", str(node.folder / "data" / "state")]
        checked = subprocess.run(check, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
        node.boot()
        with node.attach() as attached:
            whole(attached, call, point, capability)


def whole(attached: Attached, call: str, point: str, capability: int) -> None:
    states = {row.server: row.state for row in attached.kernel.ps.now()}
    stopped = (call, point) == ("stop", "committed")
    assert states.pop("counter") == ("stopped" if stopped else "serving")
    if call == "load":
        assert states.pop("second") == "serving"
        assert attached.open("second", Teller).total.now("x") == 5
    assert states == {"state": "serving", "teller": "serving"}
    if stopped:
        attached.kernel.restart.now("counter")
    assert attached.open("counter", Counter).get.now("x") == 5
    readers = {
        row.number for row in attached.kernel.caps.now()
        if row.lasting and (row.holder, row.server, row.rights) == ("teller", "counter", ["read"])
    }  # fmt: skip
    if call == "revoke":
        assert (capability in readers) is (point == "cleared")
    else:
        assert len(readers) == (call == "grant")


def test_a_loaded_server_that_no_longer_starts_does_not_keep_the_node_from_booting(tmp_path: Path) -> None:
    """The kernel dies between the load's row and its start, and the package cannot start."""
    broken = tmp_path / "broken" / "teller"
    broken.mkdir(parents=True)
    for path in (PACKAGES / "teller").glob("*.py"):
        text = path.read_text()
        if path.name == "server.py":
            text += "\n    async def start(self) -> None:\n        raise ValueError('no')\n"
        (broken / path.name).write_text(text)
    with booted(tmp_path) as node:
        node.stop()
        node.boot(fail_at="load: committed")
        what = Load(server="second", package=str(broken), needs={"counter": ServerBinding(server="counter")})
        with pytest.raises(NodeDown), node.attach() as attached:
            attached.kernel.load.now(what)
        node.died()
        node.boot()
        assert any("second stays down" in line for line in node.said), node.said
        with node.attach() as attached:
            row = next(row for row in attached.kernel.ps.now() if row.server == "second")
            assert row.state == "failed" and "no" in row.reason
            assert attached.open("counter", Counter).get.now("x") == 0


def test_a_loaded_server_whose_needs_are_gone_does_not_keep_the_node_from_booting(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            attached.kernel.load.now(SECOND)
        node.stop()
        text = node.image.read_text()
        start, end = text.index("[server.counter]"), text.index("[server.teller]")
        without = text[:start] + text[end:]
        without = without[: without.index("[server.teller]")]
        node.image.write_text(without)
        node.boot()
        assert any("second is left out" in line for line in node.said), node.said
        with node.attach() as attached:
            assert {row.server for row in attached.kernel.ps.now()} == {"state"}
        node.stop()
        node.image.write_text(text)
        node.boot()
        with node.attach() as attached:
            assert attached.open("second", Teller).total.now("x") == 0
