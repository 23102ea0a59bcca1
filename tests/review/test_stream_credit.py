"""Credit of streams when rings are full, and servers that send without any. (Raw cffi.)"""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from atoll.ipc.errors import Overloaded, PeerMisbehaved
from atoll.ipc.interface import Interface, call, stream
from atoll.ipc.runtime import inhand
from atoll.ipc.serve import Serves
from atoll.ipc.streams import WINDOW
from tests.kit.serving import serving


class Numbers(Interface):
    @call("use")
    def note(self, text: str) -> None: ...
    @stream("use")
    def count(self, to: int) -> int: ...


class Counts(Serves[Numbers]):
    @Numbers.note.serve
    def note(self, text: str) -> None: ...

    @Numbers.count.serve
    def count(self, to: int) -> Iterator[int]:
        yield from range(to)


class Spendthrift(Counts):
    """Believes that it has all the credit in the world."""

    async def start(self) -> None:
        inhand.Credit.affords = lambda _, items: (len(items), 0)  # type: ignore[method-assign]
        inhand.Credit.spend = lambda _, price: None  # type: ignore[method-assign]


def test_credit_that_found_no_room_is_granted_later() -> None:
    with serving(Counts) as served:
        numbers = served.proxies[0]
        channel = served.client(served.channels[0])
        counted = numbers.count.now(4 * WINDOW)
        assert next(counted) == 0
        found = next(iter(channel.pending.values())).stream
        assert found is not None
        while sum(len(items) for items, _ in found._items) < WINDOW // 2 + 1:
            channel.drain()
        os.kill(served.pid, signal.SIGSTOP)
        for size in (1000, 0):  # until not even the shortest record has room
            with contextlib.suppress(Overloaded):
                while True:
                    numbers.note.cast("x" * size)
        for expected in range(1, WINDOW // 2 + 1):
            assert next(counted) == expected
        os.kill(served.pid, signal.SIGCONT)
        assert list(counted) == list(range(WINDOW // 2 + 1, 4 * WINDOW))


def test_a_server_that_sends_without_credit_is_found_out() -> None:
    with serving(Spendthrift) as served:
        counted = served.proxies[0].count.now(1 << 16)
        channel = served.client(served.channels[0])
        while channel.failed is None:
            channel.drain()
        with pytest.raises(PeerMisbehaved, match="without credit"):
            list(counted)
        assert [check for _, check in served.accused] == ["items without credit"]
