"""Whose call is in hand where a server's loop does what no call of the moment asks of it. (Raw cffi.)"""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import msgspec

from atoll.ipc import Deferred, Interface, Serves, call
from atoll.ipc.bound import bind
from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.context import current_or_none
from atoll.ipc.errors import WouldBlock
from atoll.ipc.participation import when
from atoll.ipc.runtime.launch import Process
from atoll.ipc.system import control
from atoll.native import Kind, ffi, lib
from tests.adversary.attack import Attacker, Record
from tests.kit.memory import Memory
from tests.kit.serving import Serving, serving
from tests.native.suite import Target

BEHIND = 900
"""The server's channel to one that the test plays."""


class Asks(Interface):
    @call("use")
    def whose(self) -> str:
        """Whose call is in hand when the reply to what this one asked for is in."""

    @call("use")
    def block(self) -> str:
        """What becomes of a blocking call that is made then."""

    @call("use")
    def asked(self) -> int:
        """How many calls have asked for something."""

    @call("use")
    def idle(self) -> list[str]:
        """Whose call was in hand each time the server was idle."""


class AsksServer(Serves[Asks]):
    def __init__(self) -> None:
        self._idle: list[str] = []
        self._asked = 0

    def idle(self) -> None:
        self._idle.append(_in_hand())

    def _target(self) -> Target:
        process = next(found for found in gc.get_objects() if isinstance(found, Process))
        port = control.Port(channel=BEHIND, slot=0, generation=1, interface="Target", rights=("read",))
        return bind(Target, ChannelTransport(process.clients[BEHIND], port))

    @Asks.whose.serve
    def whose(self) -> Deferred[str]:
        done: Deferred[str] = Deferred()
        when(lambda: self._target().double.start(1), lambda _: done.complete(_in_hand()), done.fail)
        self._asked += 1
        return done

    @Asks.block.serve
    def block(self) -> Deferred[str]:
        done: Deferred[str] = Deferred()

        def told(_: Any) -> None:
            try:
                self._target().double.now(2)
            except WouldBlock as refusal:
                done.complete(str(refusal))

        when(lambda: self._target().double.start(1), told, done.fail)
        self._asked += 1
        return done

    @Asks.asked.serve
    def asked(self) -> int:
        return self._asked

    @Asks.idle.serve
    def idle_calls(self) -> list[str]:
        return self._idle


def _in_hand() -> str:
    call = current_or_none()
    return "none" if call is None else call.method


@contextlib.contextmanager
def behind(served: Serving) -> Iterator[Memory]:
    memory = Memory(BEHIND, control.Shape(), 0)
    lib.atoll_notice_channel(served.server_notice.c, 0, 1, 1, memory.base, ffi.NULL)
    opened = control.OpenChannel(
        channel=BEHIND,
        role="client",
        peer="the test",
        shape=memory.shape,
        epoch=1,
        base=memory.base,
        notice=0,
    )
    served._send(opened, memory.descriptor, memory.client_bell.fileno())
    served.observe()
    try:
        yield memory
    finally:
        memory.close()


def answer(memory: Memory) -> None:
    payload = msgspec.msgpack.encode(2)
    attacker = Attacker(memory, server=True)
    attacker.write(Record(0, kind=Kind.REPLY, length=len(payload)), payload)


def test_a_reply_comes_to_no_call_of_another_client() -> None:
    """It had that one's badge, rights and deadline: what was called on with failed when that had passed."""
    with serving(AsksServer, clients=2) as served, behind(served) as memory:
        asking, other = served.proxies
        whose = asking.whose.start()
        while not other.asked.now():
            pass
        answer(memory)
        assert whose.result() == "none"


def test_what_a_reply_calls_for_blocks_no_loop() -> None:
    with serving(AsksServer, clients=2) as served, behind(served) as memory:
        asking, other = served.proxies
        refused = asking.block.start()
        while not other.asked.now():
            pass
        answer(memory)
        assert "made the blocking call Target.double.now" in refused.result()


def test_a_server_is_idle_for_no_call() -> None:
    with serving(AsksServer) as served:
        while len(found := served.proxies[0].idle.now()) < 3:
            pass
        assert set(found) == {"none"}
