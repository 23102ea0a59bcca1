"""Threads that Ctrl-C takes out of a blocking call: what they have received is not lost, and the server is told."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from atoll.ipc import Interface, Serves, call, stream
from atoll.ipc.client import channel
from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.proxy import transport_of
from atoll.native import Kind, Result, lib
from tests.kit.serving import Serving, serving


class Desk(Interface):
    @call("use")
    def double(self, number: int) -> int: ...

    @call("use")
    def never(self) -> int: ...

    @call("use")
    def in_hand(self) -> int: ...

    @stream("use")
    def numbers(self, count: int) -> int: ...


class Server(Serves[Desk]):
    def __init__(self) -> None:
        self.running = 0

    @Desk.double.serve
    def double(self, number: int) -> int:
        return 2 * number

    @Desk.never.serve
    async def never(self) -> int:
        self.running += 1
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1

    @Desk.in_hand.serve
    def in_hand(self) -> int:
        return self.running

    @Desk.numbers.serve
    def numbers(self, count: int) -> Iterator[int]:
        yield from range(count)


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving(Server, clients=2) as served:
        yield served


class Interrupted(BaseException):
    """As Ctrl-C is."""


def interrupted(step: Callable[..., int]) -> Callable[..., int]:
    """A step into the C core that a thread is interrupted in which comes back with a message."""

    def stepped(*args: Any) -> int:
        result = step(*args)
        if result >= 0 or result == Result.OTHER:
            raise Interrupted
        return result

    return stepped


class Interrupting:
    """The C core, for such a thread."""

    atoll_wait = staticmethod(interrupted(lib.atoll_wait))
    atoll_receive = staticmethod(interrupted(lib.atoll_receive))

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


def carrier(desk: Desk) -> ChannelTransport:
    transport = transport_of(desk)
    assert isinstance(transport, ChannelTransport)
    return transport


def test_a_reply_that_it_has_received(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was gone: whoever asked for it again waited for ever."""
    asked = served.proxies[0].double.start(1)
    with monkeypatch.context() as patched:
        patched.setattr(channel, "lib", Interrupting())
        with pytest.raises(Interrupted):
            asked.result()
    assert asked.done()
    assert asked.result() == 2


def test_a_reply_that_it_has_received_as_it_looks(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = served.proxies[0]
    asked = desk.double.start(1)
    with monkeypatch.context() as patched:
        patched.setattr(channel, "lib", Interrupting())
        with pytest.raises(Interrupted):
            all(carrier(desk).channel.drain() == 0 for _ in iter(int, 1))  # until there is something
    assert asked.done()
    assert asked.result() == 2


def test_a_reply_of_anothers_that_it_has_received(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = served.proxies[0]
    asked = desk.double.start(1)
    with monkeypatch.context() as patched:
        patched.setattr(carrier(desk), "_call", interrupted(lib.atoll_call))
        with pytest.raises(Interrupted):
            desk.double.now(2)
    assert asked.done()
    assert asked.result() == 2
    assert desk.double.now(3) == 6


def test_items_that_it_has_received_come_once(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = served.proxies[0]
    numbers = desk.numbers.now(3)
    asked = desk.double.start(1)
    with monkeypatch.context() as patched:
        patched.setattr(channel, "lib", Interrupting())
        while not asked.done():
            with pytest.raises(Interrupted):
                asked.result()
    assert list(numbers) == [0, 1, 2]


@pytest.mark.parametrize("deadline", [None, 3600.0])
def test_the_server_is_told(served: Serving, deadline: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on with a call that nobody waited for, as long as its client lived."""
    desk, other = served.proxies
    asking = desk if deadline is None else desk.with_(deadline=deadline)
    said: list[Kind] = []
    receiving, outbox = carrier(desk).channel.receiving, carrier(desk).channel.outbox
    control = outbox.control

    def noted(pending: Any, kind: Kind, payload: bytes = b"") -> None:
        said.append(kind)
        control(pending, kind, payload)

    def interrupts() -> None:
        while not (other.in_hand.now() and receiving.locked()):
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    monkeypatch.setattr(outbox, "control", noted)
    interrupting = threading.Thread(target=interrupts)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        asking.never.now()
    interrupting.join()
    assert said == [Kind.CANCEL]
    assert not carrier(desk).channel.pending
    while other.in_hand.now():
        pass


def test_a_turn_that_nobody_takes(served: Serving) -> None:
    """Whoever left handed it to a thread that had gone, and a loop that waits for its reply was not told to look."""
    desk = served.proxies[0]
    carried = carrier(desk).channel

    def interrupts() -> None:
        while not carried.turns:
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupts)
    with carried.receiving:  # a thread that receives
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            desk.double.now(1)
    interrupting.join()
    assert not carried.turns
