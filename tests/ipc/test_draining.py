"""A server that drains takes no further call, and all that belongs to the calls it has in hand."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

from atoll.ipc import Deferred, Interface, Serves, call, stream, upload
from tests.kit.serving import Serving, serving

MANY = 2000
"""Items: several windows of credit."""
HELD = 4000


class Works(Interface):
    @call("use", idempotent=True)
    def number(self) -> int: ...

    @call("use")
    def never(self) -> None: ...

    @call("use")
    def wait_for_what_never_comes(self) -> None: ...

    @call("use")
    def begun(self) -> int:
        """Calls, streams and uploads that have begun."""

    @stream("use")
    def numbers(self, count: int) -> int: ...

    @upload("use", item=int)
    def total(self) -> int: ...


class Server(Serves[Works]):
    def __init__(self) -> None:
        self.count = 0
        self.held: list[Deferred[None]] = []

    @Works.number.serve
    def number(self) -> int:
        return 1

    @Works.never.serve
    async def never(self) -> None:
        self.count += 1
        await trio.sleep_forever()

    @Works.wait_for_what_never_comes.serve
    def wait_for_what_never_comes(self) -> Deferred[None]:
        self.held.append(Deferred())
        return self.held[-1]

    @Works.begun.serve
    def begun(self) -> int:
        return self.count

    @Works.numbers.serve
    async def numbers(self, count: int) -> AsyncIterator[int]:
        self.count += 1
        for number in range(count):
            yield number

    @Works.total.serve
    async def total(self, items: AsyncIterator[int]) -> int:
        self.count += 1
        return sum([item async for item in items])


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving(Server, clients=2) as served:
        yield served
        assert not served.accused


def until_begun(works: Works, count: int) -> None:
    while works.begun.now() != count:
        pass


def test_a_caller_that_gives_up_is_heard(served: Serving) -> None:
    works, other = served.proxies
    future = works.never.start()
    until_begun(other, 1)
    served.begin_drain(1)
    future.cancel()
    assert served.drained() == 1


def test_a_stream_goes_on_to_its_end(served: Serving) -> None:
    works, other = served.proxies
    numbers: Any = works.numbers.now(MANY)
    until_begun(other, 1)
    served.begin_drain(1)
    assert list(numbers) == list(range(MANY))
    assert served.drained() == 1


def test_an_upload_goes_on_to_its_end(served: Serving) -> None:
    works, other = served.proxies

    def items() -> Iterator[int]:
        yield 0
        until_begun(other, 1)
        served.begin_drain(1)
        yield from range(1, MANY)

    assert works.total.now(items()) == sum(range(MANY))
    assert served.drained() == 1


def test_calls_wait_until_it_serves_again(served: Serving) -> None:
    """Also those of a channel from which something else was taken meanwhile."""
    works, other = served.proxies
    future = works.never.start()
    until_begun(other, 1)
    served.begin_drain(1)
    future.cancel()
    assert served.drained() == 1
    waiting = [each.number.start() for each in (works, other) for _ in range(10)]
    with pytest.raises(TimeoutError):
        waiting[-1].result(0.2)
    assert not any(each.done() for each in waiting)
    served.resume()
    assert [each.result() for each in waiting] == [1] * 20


def test_however_many_calls_are_in_hand_the_old_version_says_so_and_runs_on() -> None:
    """Nearly as many as a server takes."""
    with serving(Server, clients=4) as served:
        for works in served.proxies:
            for _ in range(HELD // 4):
                works.wait_for_what_never_comes.start()
            assert works.number.now() == 1
        assert served.drain(deadline=1) == {"Works.wait_for_what_never_comes": HELD}
        served.resume()
        assert served.proxies[0].number.now() == 1


# the end --------------------------------------------------------------------------------------------------------------


def test_a_client_that_goes_while_its_server_stops_is_heard_of(served: Serving) -> None:
    """Its calls were waited for until the deadline."""
    works, other = served.proxies
    works.never.start()
    until_begun(other, 1)
    served.begin_stop()
    served.close_channel(served.channels[0])
    assert served.wait() == 0


def test_a_server_that_stops_answers_pings_and_is_asked_to_stop_again(served: Serving) -> None:
    works, other = served.proxies
    works.never.start()
    until_begun(other, 1)
    served.begin_stop()
    served.observe()
    served.begin_stop()
    served.observe()
    served.close_channel(served.channels[0])
    assert served.wait() == 0
