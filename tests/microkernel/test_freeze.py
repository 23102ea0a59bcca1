"""Freeze and thaw: halted between two messages, with nothing lost."""

import pytest

from atoll.ipc.errors import DeadlineExceeded, Revoked
from atoll.ipc.system.kernel import WrongState

from .nodes import RealNode, interface

Counter = interface("counter", "Counter")


def test_calls_wait_while_frozen_and_go_on_after(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.add.now("x")
        assert attached.kernel.freeze.now("counter", "a look").state == "frozen"
        assert next(row.reason for row in attached.kernel.ps.now() if row.server == "counter") == "a look"
        with pytest.raises(DeadlineExceeded):
            counter.with_(deadline=0.05).get.now("x")
        waiting = counter.add.start("x")
        with pytest.raises(WrongState):
            attached.kernel.freeze.now("counter")
        assert attached.kernel.thaw.now("counter").state == "serving"
        assert waiting.result() == 2
        with pytest.raises(WrongState):
            attached.kernel.thaw.now("counter")


def test_what_is_revoked_while_frozen_is_not_served_after(node: RealNode) -> None:
    with node.attach() as attached:
        opened = attached.kernel.open.now("counter", "Counter")
        counter = attached._deliveries.proxy(Counter, attached._port(opened.token))
        attached.kernel.freeze.now("counter")
        waiting = counter.get.start("x")
        assert attached.kernel.revoke.now(opened.number) == 1
        attached.kernel.thaw.now("counter")
        with pytest.raises(Revoked):
            waiting.result()


def test_a_frozen_server_can_be_stopped_and_started(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.add.now("x", 3)
        attached.kernel.freeze.now("counter")
        assert attached.kernel.stop.now("counter").state == "stopped"
        assert attached.kernel.restart.now("counter").state == "serving"
        assert counter.get.now("x") == 3


def test_a_node_with_a_frozen_server_ends_in_order(node: RealNode) -> None:
    with node.attach() as attached:
        attached.kernel.freeze.now("counter")
    assert node.stop() == 0
    assert node.processes() == []
