"""A workflow of twenty steps is killed at each of them: each effect in the store and at another server happens once."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.durable import Start
from atoll.ipc.system.kernel import Swap
from tests.microkernel.nodes import RealNode, booted

from .nodes import IMAGE, folder_of, hold, kill_server, outside
from .packages.register.interface import Register
from .packages.stages.interface import Stages

STEPS = 20
CALLED = ("before noted", "after noted", "before entered", "after entered")
"""Where the other server is in one of a step's calls: before and after what it does, which it commits in `noted`, and is the
step's to commit in `entered`."""
Way = Callable[[Attached], None]
"""How a server ends."""
POINTS = [f"{where} {number}" for number in range(1, STEPS + 1) for where in ("in", "after")]


def held_to_one_effect(node: RealNode) -> None:
    """Of each step there is one effect in the server's own rows, one by a call and one in a transaction at the other server;
    and whatever it did outside bears one key."""
    with node.attach() as attached:
        own = attached.open("stages", Stages).counts.now()
        theirs = attached.open("register", Register).counts.now()
    assert own == {f"{number}": 1 for number in range(1, STEPS + 1)}
    assert theirs == {f"{did} {number}": 1 for number in range(1, STEPS + 1) for did in ("noted", "entered")}
    keys = outside(node)
    assert sorted(keys) == list(range(1, STEPS + 1))
    assert all(len(by_key) == 1 for by_key in keys.values())
    assert len({key for by_key in keys.values() for key in by_key}) == STEPS


def kill(attached: Attached) -> None:
    kill_server(attached, "register")


def force(attached: Attached) -> None:
    attached.kernel.swap.now(Swap(server="register", deadline=0.1, force=True))


def test_a_server_killed_at_each_step_leaves_one_effect_of_each(tmp_path: Path) -> None:
    with booted(tmp_path, text=IMAGE) as node:
        with node.attach() as attached:
            stages = attached.open("stages", Stages)
            hold(folder_of(node), POINTS[0])
            stages.run.begin.now(Start(id="twenty"), STEPS)
            for point, following in pairwise([*POINTS, ""]):
                stages.reached.now(point)
                hold(folder_of(node), following)
                kill_server(attached, "stages")
            assert stages.run.result.now("twenty") == [number**2 for number in range(1, STEPS + 1)]
        held_to_one_effect(node)
        assert (
            max(by_key.total() for by_key in outside(node).values()) == 2
        )  # in hand when it was killed: again


@pytest.mark.parametrize("way", [kill, force])
def test_a_server_that_is_called_and_ends_in_the_call_does_it_once(tmp_path: Path, way: Way) -> None:
    _through_ends(tmp_path, (1, 10, STEPS) if way is kill else (10,), way)


@pytest.mark.soak
@pytest.mark.parametrize("way", [kill, force])
def test_a_server_that_is_called_and_ends_in_each_call_does_each_once(tmp_path: Path, way: Way) -> None:
    _through_ends(tmp_path, range(1, STEPS + 1), way)


def _through_ends(folder: Path, steps: Iterable[int], way: Way) -> None:
    """What is called comes to each point again, by the same call or by another try of the step, and passes it then."""
    points = [f"{where} {number}" for number in steps for where in CALLED]
    with booted(folder, text=IMAGE) as node:
        called = folder_of(node, "register")
        hold(called, points[0])
        with node.attach() as attached:
            stages, register = attached.open("stages", Stages), attached.open("register", Register)
            stages.run.begin.now(Start(id="twenty"), STEPS)
            for point, following in pairwise([*points, ""]):
                register.reached.now(point)
                way(attached)
                hold(called, following)
            assert stages.run.result.now("twenty") == [number**2 for number in range(1, STEPS + 1)]
        held_to_one_effect(node)


@pytest.mark.parametrize("where", CALLED)
def test_a_server_that_is_called_and_swapped_in_the_call_does_it_once(tmp_path: Path, where: str) -> None:
    """It is let finish the call."""
    with booted(tmp_path, text=IMAGE) as node:
        called = folder_of(node, "register")
        hold(called, f"{where} 10")
        with node.attach() as attached:
            stages, register = attached.open("stages", Stages), attached.open("register", Register)
            stages.run.begin.now(Start(id="twenty"), STEPS)
            register.reached.now(f"{where} 10")
            swapping = attached.kernel.swap.start(Swap(server="register", deadline=60.0))
            hold(called, "")
            assert swapping.result().ended == {}
            assert stages.run.result.now("twenty") == [number**2 for number in range(1, STEPS + 1)]
        held_to_one_effect(node)


@pytest.mark.parametrize("both", [False, True], ids=["kernel", "server and kernel"])
def test_a_kernel_killed_between_steps_and_in_one_leaves_one_effect_of_each(
    tmp_path: Path, both: bool
) -> None:
    _through_boots(tmp_path, ["in 1", "after 10", "in 20"], both=both)


@pytest.mark.soak
@pytest.mark.parametrize("both", [False, True], ids=["kernel", "server and kernel"])
def test_a_kernel_killed_at_each_step_leaves_one_effect_of_each(tmp_path: Path, both: bool) -> None:
    _through_boots(tmp_path, POINTS, both=both)


def _through_boots(folder: Path, points: list[str], *, both: bool) -> None:
    node = RealNode(folder, IMAGE)
    node.boot()
    hold(folder_of(node), points[0])
    with node.attach() as attached:
        attached.open("stages", Stages).run.begin.now(Start(id="twenty"), STEPS)
    for point, following in pairwise([*points, ""]):
        with node.attach() as attached:
            attached.open("stages", Stages).reached.now(point)
            hold(folder_of(node), following)
            if both:
                kill_server(attached, "stages")
        node.kill()
        node.boot()
    with node.attach() as attached:
        stages = attached.open("stages", Stages)
        assert stages.run.result.now("twenty") == [number**2 for number in range(1, STEPS + 1)]
    held_to_one_effect(node)
    assert node.stop() == 0


def test_a_store_killed_while_steps_commit_leaves_one_effect_of_each(tmp_path: Path) -> None:
    steps = 200
    with booted(tmp_path, text=IMAGE) as node, node.attach() as attached:
        stages = attached.open("stages", Stages)
        stages.limited.begin.now(Start(id="many"), "many", steps, steps)
        for so_many in (20, 70, 120):
            seen(attached, so_many)
            kill_server(attached, "state")
        assert stages.limited.result.now("many") == steps
        assert stages.counts.now() == {f"many {number}": 1 for number in range(1, steps + 1)}


def seen(attached: Attached, so_many: int) -> None:
    """Wait until so many steps have been committed, by the feed."""
    for change in attached.keyspace("stages").watch.now(0, b"many "):
        if any(item.key == b"many %d" % so_many for item in change.items):
            return
