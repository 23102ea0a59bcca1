"""Callers whose deadline passes in the middle of a system call: it is done, with its row, or it is not; and what the kernel
began for them does not end with them."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from atoll.ipc import context
from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import DeadlineExceeded, NotFound
from atoll.ipc.system.kernel import Load
from atoll.microkernel.node import Node

from .nodes import IMAGE, PACKAGES, RealNode, booted, halted, interface
from .test_failed_loads import hanging

Counter = interface("counter", "Counter")
SHORT = 0.5
"""Seconds: the store is asked within them, and answers only later."""


def root(attached: Attached) -> int:
    return next(row.number for row in attached.kernel.caps.now("counter") if row.parent == 0)


def held(attached: Attached) -> set[int]:
    rows = attached.kernel.caps.now("counter")
    return {row.number for row in rows if (row.holder, row.server) == ("chores", "counter")}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    with booted(tmp_path, more=f'[server.chores]\npackage = "{PACKAGES}/stubborn"\nneeds = {{}}') as real:
        yield real


def state_of(attached: Attached, server: str) -> str:
    return next(row.state for row in attached.kernel.ps.now() if row.server == server)


def test_a_grant_is_there_now_if_it_is_there_at_the_next_boot(node: RealNode) -> None:
    with node.attach() as attached:
        number = root(attached)
        with halted(attached), pytest.raises(DeadlineExceeded):
            attached.kernel.with_(deadline=SHORT).grant.now(number, "chores", ["read"])
        attached.kernel.grant.now(number, "chores", ["write"])
        now = held(attached)
    node.kill()
    node.boot()
    with node.attach() as attached:
        assert held(attached) == now
        assert len(now) == 2


def test_what_was_revoked_does_not_come_back(node: RealNode) -> None:
    with node.attach() as attached:
        granted = attached.kernel.grant.now(root(attached), "chores", ["read"])
        with halted(attached), pytest.raises(DeadlineExceeded):
            attached.kernel.with_(deadline=SHORT).revoke.now(granted)
        with suppress(NotFound):  # its row may be there by now
            assert attached.kernel.revoke.now(granted) == 1
    node.kill()
    node.boot()
    with node.attach() as attached:
        assert not held(attached)


def test_who_tries_to_revoke_again_waits_for_the_row(node: RealNode) -> None:
    with node.attach() as attached:
        granted = attached.kernel.grant.now(root(attached), "chores", ["read"])
        with halted(attached):
            with pytest.raises(DeadlineExceeded):
                attached.kernel.with_(deadline=SHORT).revoke.now(granted)
            again = attached.kernel.revoke.start(granted)
            assert not held(attached), "the kernel has heard of it by now"
        assert again.result() == 1
        with pytest.raises(NotFound):
            attached.kernel.revoke.now(granted)
    node.kill()
    node.boot()
    with node.attach() as attached:
        assert not held(attached)


def test_what_was_revoked_while_the_store_was_down_does_not_come_back(tmp_path: Path) -> None:
    """Also if whoever asked has given up before the store is there again."""
    more = f'[server.chores]\npackage = "{PACKAGES}/stubborn"\nneeds = {{}}'
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more=more)
    late = "[server.state]\nrestart = { first = 2, most = 2 }\n"
    with booted(tmp_path, text=text.replace("[server.state]\n", late)) as node:
        with node.attach() as attached:
            granted = attached.kernel.grant.now(root(attached), "chores", ["read"])
            os.kill(
                next(row.pid for row in attached.kernel.ps.now() if row.server == "state"), signal.SIGKILL
            )
            while state_of(attached, "state") != "restarting":
                pass
            with pytest.raises(DeadlineExceeded):
                attached.kernel.with_(deadline=SHORT).revoke.now(granted)
            while state_of(attached, "state") != "serving":
                pass
            attached.kernel.freeze.now("counter")  # a row that comes after those that waited
        node.kill()
        node.boot()
        with node.attach() as attached:
            assert not held(attached)


def test_a_server_that_was_stopped_stays_stopped(node: RealNode) -> None:
    with node.attach() as attached, halted(attached), pytest.raises(DeadlineExceeded):
        attached.kernel.with_(deadline=SHORT).stop.now("counter", 0.1)
    assert node.stop() == 0
    node.boot()
    with node.attach() as attached:
        assert state_of(attached, "counter") == "stopped"


def test_a_load_that_took_too_long_is_not_loaded_at_the_next_boot(node: RealNode, tmp_path: Path) -> None:
    with node.attach() as attached:
        what = Load(server="hanging", package=str(hanging(tmp_path)), level="process")
        loading = attached.kernel.with_(deadline=5.0).load.start(what)
        while not any(row.pid for row in attached.kernel.ps.now() if row.server == "hanging"):
            assert not loading.done(), "its row is there, and it starts"
        with pytest.raises(DeadlineExceeded):
            loading.result()
    assert node.stop() == 0
    node.boot()
    with node.attach() as attached:
        assert "hanging" not in {row.server for row in attached.kernel.ps.now()}


def test_a_server_that_was_restarted_under_a_deadline_is_started_again_after_it(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        with suppress(DeadlineExceeded):
            attached.kernel.with_(deadline=SHORT).restart.now("counter")
        with pytest.raises(DeadlineExceeded):
            counter.with_(deadline=2 * SHORT).slow.now(60.0)
        pid = next(row.pid for row in attached.kernel.ps.now() if row.server == "counter")
        os.kill(pid, signal.SIGKILL)
        assert counter.add.now("x") == 1
        while (
            state_of(attached, "counter") != "serving"
        ):  # it answers before the kernel has heard that it is ready
            pass


async def test_what_the_kernel_does_beside_a_call_is_not_part_of_it() -> None:
    found: list[object] = []

    async def look() -> None:
        found.append(context.current_or_none())

    node = Node.__new__(Node)
    async with trio.open_nursery() as node.nursery:
        with context.in_hand("a call"):  # type: ignore[arg-type]
            node.soon(look)
    assert found == [None]
