"""The kernel is killed at each named step of a system call, under load: the next boot finds the call done, or not begun, all
that was acknowledged, and nothing of the boot before."""

import math
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import NodeDown
from atoll.ipc.system.kernel import Load, ServerBinding, Swap
from atoll.microkernel.failpoints import STEPS

from .left import ORPHANED_MOST, Held, checked, last_gone, no_more_than, nothing_left, own_memory
from .nodes import IMAGE, PACKAGES, RealNode, booted, interface, wait_for_end
from .writers import Writers, writing

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")

SECOND = Load(
    server="second", package=str(PACKAGES / "teller"), needs={"counter": ServerBinding(server="counter")}
)
SECOND_IN_IMAGE = f"""
[server.second]
package = "{PACKAGES}/teller"
needs = {{ counter = {{ server = "counter", rights = ["read", "write"] }} }}
"""
STARTED_AT_BOOT = 3
"""Servers of the image: every boot comes to the steps of a start so often."""
OFTEN = {
    "start: spawned",
    "load: committed",
    "stop: committed",
    "revoke: cleared",
    "revoke: committed",
    "swap: committed",
}
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
    ("step", "within"),
    [
        *((step, math.inf) for step in STEPS if step in OFTEN),
        *(pytest.param(step, ORPHANED_MOST, marks=pytest.mark.soak) for step in STEPS),
    ],
)
def test_a_kernel_that_dies_there_leaves_the_call_done_or_not_begun(
    tmp_path: Path, step: str, within: float
) -> None:
    """`within`: seconds that a process of the node may outlive it."""
    before = own_memory()
    with booted(tmp_path, more=SECOND_IN_IMAGE if step.startswith("load: ") else "") as node:
        with writing(node, tmp_path / "acknowledged") as writers:
            writers.goes_on()
            most = Held.by(node)  # of the writers and whatever servers there may be at the end
            node.image.write_text(IMAGE.format(level="process", packages=PACKAGES, counter="", more=""))
            orphaned = die_at(step, node, writers)
            writers.node_is(True)
            writers.goes_on()
            no_more_than(most, node)
        writers.compare()
        node.stop()
        nothing_left(node)
    assert own_memory() <= before
    print(f"the last process was gone {orphaned:.3f} s after the kernel")
    assert orphaned < within


def die_at(step: str, node: RealNode, writers: Writers) -> float:
    """The kernel dies there, and the next boot is whole. How many seconds processes outlived it."""
    call, _, point = step.partition(": ")
    with node.attach() as attached:
        capability = granted(attached) if call == "revoke" else 0
    boot_again(node, writers, f"{step}@{STARTED_AT_BOOT + 1}" if call == "start" else step)
    writers.goes_on()
    writers.node_is(False)
    gone = outliving(node)
    with pytest.raises(NodeDown), node.attach() as attached:
        act(attached, call, capability)
    node.died()
    orphaned = gone.result()
    checked(node)
    node.boot()
    with node.attach() as attached:
        whole(attached, call, point, capability)
    return orphaned


def outliving(node: RealNode) -> "Future[float]":
    """The seconds from the death of its kernel, which is to come, to that of the last process. By a thread that sees it:
    whoever waits for an answer hears of it up to a second later."""
    assert node.kernel is not None
    pid, seconds = node.kernel.pid, Future[float]()

    def look() -> None:
        wait_for_end(pid)
        died = time.monotonic()
        seconds.set_result(last_gone(node) - died)

    Thread(target=look, daemon=True).start()
    return seconds


def boot_again(node: RealNode, writers: Writers, fail_at: str = "") -> None:
    writers.node_is(False)
    assert node.stop() == 0
    node.boot(fail_at=fail_at)
    writers.node_is(True)


@pytest.mark.soak
@pytest.mark.parametrize("step", [step for step in STEPS if step.startswith("start: ")])
def test_a_boot_that_dies_as_it_starts_the_store_is_followed_by_one_that_serves(
    tmp_path: Path, step: str
) -> None:
    with booted(tmp_path) as node:
        with writing(node, tmp_path / "acknowledged") as writers:
            writers.goes_on()
            most = Held.by(node)
            with pytest.raises(AssertionError, match="it did not boot"):
                boot_again(node, writers, step)
            last_gone(node)
            checked(node)
            node.boot()
            writers.node_is(True)
            writers.goes_on()
            no_more_than(most, node)
        writers.compare()


def whole(attached: Attached, call: str, point: str, capability: int) -> None:
    """What was acknowledged is compared by the load."""
    states = {row.server: row.state for row in attached.kernel.ps.now()}
    stopped = (call, point) == ("stop", "committed")
    assert states.pop("counter") == ("stopped" if stopped else "serving")
    if call == "load":
        assert states.pop("second") == "serving"
        assert attached.open("second", Teller).total.now("a.1") == 1
    assert states == {"state": "serving", "teller": "serving"}
    if stopped:
        attached.kernel.restart.now("counter")
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
