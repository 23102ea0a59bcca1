"""Freeze and thaw: halted between two messages, with nothing lost."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import DeadlineExceeded, PeerDied, Revoked
from atoll.ipc.interface import Interface, call
from atoll.ipc.system.kernel import WrongState
from atoll.ipc.system.records import EventRow, decode
from atoll.microkernel.life import CAUGHT_OFTEN, FREEZE_WITHIN, Life

from .nodes import RealNode, booted, interface

Counter = interface("counter", "Counter")
RESTLESS = """
import gc
import threading
import time

from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.serve import Serves

from .interface import Restless


class Server(Serves[Restless]):
    @Restless.pretend.serve
    def pretend(self) -> None:
        words = next(each for each in gc.get_objects() if isinstance(each, ServeLoop))._status_words

        def always_inside() -> None:
            number = 1
            while True:
                number += 2
                words[0] = words[1] = number
                time.sleep(0)

        threading.Thread(target=always_inside, daemon=True).start()
"""
INTERFACE = """
from atoll.ipc.interface import Interface, call


class Restless(Interface):
    @call("write")
    def pretend(self) -> None: ...
"""


class Restless(Interface):
    @call("write")
    def pretend(self) -> None: ...


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


def events(attached: Attached) -> list[EventRow]:
    """All that rows say has happened, boot by boot."""
    letter = EventRow.table
    page = attached.keyspace("kernel").range.now(letter, bytes([letter[0] + 1]))
    return [decode(EventRow, item.value) for item in page.items if item.value is not None]


def test_freeze_and_thaw_are_rows_when_they_are_answered(tmp_path: Path) -> None:
    """The reply comes after the row: a kernel that dies right after it has lost nothing of the record."""
    with booted(tmp_path) as node:
        for change in ("freeze", "thaw"):
            with node.attach() as attached:
                if change == "thaw":
                    attached.kernel.freeze.now("counter", "first")
                getattr(attached.kernel, change).now("counter")
                node.kill()
            node.boot()
            with node.attach() as attached:
                boots = {row.boot for row in events(attached) if row.kind == change and row.who == "counter"}
                assert attached.welcome.boot - 1 in boots, change


def test_a_server_that_dies_frozen_stays_down_until_a_person_wants_it(node: RealNode) -> None:
    """Whoever froze it took its time away: its death must not give that back."""
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.add.now("x", 3)
        attached.kernel.freeze.now("counter")
        pid = next(row.pid for row in attached.kernel.ps.now() if row.server == "counter")
        os.kill(pid, signal.SIGKILL)
        while (row := attached.kernel.ps.now()[1]).state == "frozen":
            pass
        assert (row.server, row.state) == ("counter", "failed")
        assert "while it was frozen" in row.reason
        with pytest.raises(PeerDied):
            counter.get.now("x")
        assert attached.kernel.restart.now("counter").state == "serving"
        assert counter.get.now("x") == 3


def test_a_server_that_will_not_be_frozen_ends(tmp_path: Path) -> None:
    """It says all the time that it is between the check of a message and its handler."""
    package = tmp_path / "restless"
    package.mkdir()
    for name, text in {"__init__": "", "interface": INTERFACE, "server": RESTLESS}.items():
        (package / f"{name}.py").write_text(text)
    more = f'[server.restless]\npackage = "{package}"\nneeds = {{}}'
    with booted(tmp_path, more=more) as node, node.attach() as attached:
        attached.open("restless", Restless).pretend.start().result()
        with pytest.raises(WrongState):
            attached.kernel.freeze.now("restless")
        row = next(row for row in attached.kernel.ps.now() if row.server == "restless")
        assert row.state == "failed"
        assert "while it was frozen" in row.reason
        assert attached.kernel.restart.now("restless").state == "serving"
        assert attached.kernel.freeze.now("restless").state == "frozen"


class Slow:
    """A server's process, its control group, and the kernel's looks at its window: each takes `look` seconds, and
    each freeze finds it in there."""

    gone = False

    def __init__(self, look: float) -> None:
        self._look = look
        self.server: Any = SimpleNamespace(name="slow", state="serving")
        self.ended, self.said = trio.Event(), list[str]()
        self.status = self.process = self

    async def passed(self, processes: object, doomed: object) -> None:
        await trio.sleep(self._look)

    def window(self) -> int:
        return 1

    async def freeze(self) -> None:
        await trio.lowlevel.checkpoint()

    thaw = freeze

    def kill(self) -> None:
        self.said.append(f"killed while {self.server.state}")
        self.ended.set()

    async def halt(self) -> None:
        life = Life.__new__(Life)
        life._node = SimpleNamespace(group=lambda server: self)  # type: ignore[assignment]
        life._events = SimpleNamespace(ended=lambda who, why: self.said.append(why))  # type: ignore[assignment]
        life._windows = self  # type: ignore[assignment]
        await life._halt(self.server, self)  # type: ignore[arg-type]


async def test_a_server_that_each_freeze_finds_in_its_window_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = Slow(FREEZE_WITHIN / (CAUGHT_OFTEN + 1.5))
    await slow.halt()
    assert slow.said == [
        f"{CAUGHT_OFTEN + 1} times it stood still where nothing that it does takes time",
        "killed while frozen",
    ]


async def test_a_server_that_few_freezes_find_there_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    slow = Slow(FREEZE_WITHIN / (CAUGHT_OFTEN - 0.5))
    with pytest.raises(DeadlineExceeded):
        await slow.halt()
    assert (slow.said, slow.server.state) == ([], "serving")


def test_a_long_reason_keeps_nobody_from_seeing_how_servers_stand(node: RealNode) -> None:
    """More of it than one reply holds: of a server that fails it is the server's own word."""
    with node.attach() as attached:
        for server in ("counter", "teller"):
            attached.kernel.freeze.now(server, "because " * 20_000)
        rows = {row.server: row for row in attached.kernel.ps.now()}
        assert {rows[server].state for server in ("counter", "teller")} == {"frozen"}
        assert rows["counter"].reason.startswith("because because")
        for server in ("counter", "teller"):
            attached.kernel.thaw.now(server)
