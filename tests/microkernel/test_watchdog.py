"""The watchdog: what is frozen or was kept from running does not hang; what computes is named."""

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import DeadlineExceeded, PeerMisbehaved
from atoll.ipc.system import control
from atoll.microkernel.conversation import Conversation
from atoll.microkernel.notices import Signs
from atoll.microkernel.swap import FIRST_PING
from atoll.microkernel.watchdog import Watch, Watchdog
from atoll.microkernel.windows import Windows

from .nodes import PACKAGES, booted, interface

Counter = interface("counter", "Counter")
SHORT = 'watchdog = "2s"'
SECOND = f"""
[keyspace.second]
[server.second]
package = "{PACKAGES}/counter"
watchdog = "2s"
needs = {{ rows = {{ keyspace = "second", rights = ["read", "write"] }} }}
"""


def pid_of(attached: Attached, server: str) -> int:
    return next(row.pid for row in attached.kernel.ps.now() if row.server == server)


def said_of(attached: Attached, server: str, wanted: str) -> str:
    """The first line about a server with these words."""
    for line in attached.kernel.logs.now(0, server):
        if wanted in line.text:
            return line.text
    raise AssertionError("the log ended")


def test_a_frozen_server_does_not_hang_while_another_one_does(tmp_path: Path) -> None:
    """Both are silent for as long: one is ended for it."""
    with booted(tmp_path, counter=SHORT, more=SECOND) as node, node.attach() as attached:
        frozen = pid_of(attached, "counter")
        attached.kernel.freeze.now("counter")
        attached.open("second", Counter).spin.cast(600.0)
        assert "the handler of Counter.spin has run" in said_of(attached, "second", "it answered nothing")
        assert pid_of(attached, "counter") == frozen
        attached.kernel.thaw.now("counter")
        assert attached.open("counter", Counter).get.now("x") == 0
        assert pid_of(attached, "counter") == frozen


def test_time_that_the_kernel_did_not_get_is_nobodys_silence(tmp_path: Path) -> None:
    """A host that was suspended: kernel and servers stood still together, longer than the watchdog waits."""
    with booted(tmp_path, counter=SHORT) as node, node.attach() as attached:
        server = pid_of(attached, "counter")
        assert node.kernel is not None
        both = (node.kernel.pid, server)
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        subprocess.run(["/bin/sleep", "4"], check=True)  # the time that passes is what this is about
        for pid in both:
            os.kill(pid, signal.SIGCONT)
        assert attached.open("counter", Counter).get.now("x") == 0
        assert pid_of(attached, "counter") == server


def test_a_plain_handler_that_ran_past_its_deadline_is_counted(tmp_path: Path) -> None:
    def late() -> int:
        return next(row.late for row in attached.kernel.ps.now() if row.server == "counter")

    with booted(tmp_path) as node, node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.with_(deadline=60.0).spin.now(0.0)
        counter.spin.now(0.0)
        assert late() == 0
        patience = 0.1
        while not late():  # a call that comes too late to begin is refused, and not counted
            with pytest.raises(DeadlineExceeded):
                counter.with_(deadline=patience).spin.now(2 * patience)
            assert counter.get.now("x") == 0
            patience *= 2
        assert late() == 1


def test_a_thread_that_computes_is_named(tmp_path: Path) -> None:
    with booted(tmp_path) as node, node.attach() as attached:
        attached.open("counter", Counter).think.now("ponderer")
        assert "thread ponderer keeps its interpreter busy" in said_of(attached, "counter", "busy")


def test_what_a_swap_asks_and_is_answered_late_keeps_nobody_from_being_watched() -> None:
    """A first call that takes its time: the answer comes when the swap is over. Who was not asked again would be ended for
    its silence as soon as it has nothing to do."""
    nothing: Any = None
    said: list[control.Message] = []
    serving: Any = SimpleNamespace(
        number=7, pid=os.getpid(), serves="counter", expected_end="", busy="", pong=0, send=said.append,
        status=SimpleNamespace(signs=lambda: Signs(heartbeat=1, in_handler=0, served=1, parked=0, late=0)),
    )  # fmt: skip
    server: Any = SimpleNamespace(state="serving", spec=SimpleNamespace(watchdog=30.0))
    Conversation(nothing, nothing, nothing)._take(serving, control.Pong(number=FIRST_PING), [])
    watchdog = Watchdog(nothing, nothing, nothing)
    watchdog._look(server, serving, 1.0)
    assert said == [control.Ping(number=1)]


class Ended:
    """Hears whom the kernel says that it ended."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def ended(self, server: str, why: str) -> None:
        self.names.append(server)

    def broke_off(self, holder: str, error: Exception) -> None:
        self.names.append(holder)


async def test_a_reader_that_the_kernel_ends_is_named_and_not_the_store() -> None:
    """Whether it hangs, stands still in its window, or says what it must not."""
    nothing: Any = None
    events: Any = Ended()

    async def say_nonsense() -> None:
        raise PeerMisbehaved("the control socket", "nonsense")

    serving: Any = SimpleNamespace(
        holder="state", serves="state.reader-1", gone=False, busy="", silent=trio.Event(),
        status=SimpleNamespace(signs=lambda: SimpleNamespace(in_handler=0), window=lambda: 1),
        process=SimpleNamespace(kill=lambda: None),
        connection=SimpleNamespace(pump=trio.sleep_forever, receive=say_nonsense, hung_up=False),
    )  # fmt: skip
    server: Any = SimpleNamespace(name="state", description=SimpleNamespace(interfaces=()))
    Watchdog(nothing, events, nothing)._end(server, serving, Watch())
    await Windows(events).passed([serving])
    await Conversation(nothing, events, nothing).hear(serving)
    assert events.names == ["state.reader-1"] * 3
