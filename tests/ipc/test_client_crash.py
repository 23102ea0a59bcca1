"""A server dies at each step of a call: what may be repeated is, what was never taken is, the rest says that it cannot
know."""

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from atoll.ipc import Deferred, Interface, Serves, call, stream, upload
from atoll.ipc.errors import PeerDied
from atoll.ipc.future import Future
from tests.kit.serving import Serving, serving


class Steps(Interface):
    @call("do")
    def plain(self, number: int) -> int: ...

    @call("do", idempotent=True)
    def repeatable(self, number: int) -> int: ...

    @call("do", once=True)
    def once(self, number: int) -> int: ...

    @call("do")
    def hold(self) -> int:
        """Taken, and never answered."""

    @call("do", idempotent=True)
    def hold_repeatable(self) -> int:
        """Never answered by the first version; by the second, at once."""

    @call("do", once=True)
    def hold_once(self) -> int: ...

    @call("do")
    def taken(self) -> int:
        """How many calls are held."""

    @stream("do", position=int)
    def endless(self, after: int = 0) -> int: ...

    @stream("do")
    def ticks(self) -> int: ...

    @upload("do", item=int)
    def total(self) -> int: ...


class First(Serves[Steps]):
    answers = False

    def __init__(self) -> None:
        self.held: list[Deferred[int]] = []

    def _hold(self) -> Deferred[int]:
        made: Deferred[int] = Deferred()
        self.held.append(made)
        return Deferred.resolved(7) if self.answers else made

    @Steps.plain.serve
    def plain(self, number: int) -> int:
        return number

    @Steps.repeatable.serve
    def repeatable(self, number: int) -> int:
        return number

    @Steps.once.serve
    def once(self, number: int) -> int:
        return number

    @Steps.hold.serve
    def hold(self) -> Deferred[int]:
        return self._hold()

    @Steps.hold_repeatable.serve
    def hold_repeatable(self) -> Deferred[int]:
        return self._hold()

    @Steps.hold_once.serve
    def hold_once(self) -> Deferred[int]:
        return self._hold()

    @Steps.taken.serve
    def taken(self) -> int:
        return len(self.held)

    @Steps.endless.serve
    def endless(self, after: int = 0) -> Iterator[int]:
        while True:
            after += 1
            yield after

    @Steps.ticks.serve
    def ticks(self) -> Iterator[int]:
        return self.endless()

    @Steps.total.serve
    async def total(self, items: AsyncIterator[int]) -> int:
        found = 0
        async for item in items:
            found += item
        return found


class Second(First):
    answers = True


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving(First, Second, clients=2) as served:
        yield served


def settle(steps: Steps, held: int) -> None:
    """Until the server has taken so many calls that it does not answer."""
    while steps.taken.now() != held:
        pass


def test_what_the_server_never_took_is_sent_again_whatever_it_is(served: Serving) -> None:
    steps = served.proxies[0]
    served.drain()
    waiting = [
        method.start(number) for number, method in enumerate((steps.plain, steps.repeatable, steps.once) * 20)
    ]
    assert served.crash() == -9
    served.restart()
    assert [future.result() for future in waiting] == list(range(60))


def test_a_reply_left_unread_stays_whole_when_the_next_server_begins_on_top_of_it(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new epoch begins, by chance, at the very line in which the unread reply's payload lies."""
    first, other = served.proxies
    ring, before = 1 << served.shape.ring_bits, served.status.words[10]
    base = served.channels[0].base
    unread = first.plain.start(1 << 60)
    while served.status.words[10] == before:
        pass
    other.plain.now(0)  # it is answered after the first one
    served.crash()
    monkeypatch.setattr("tests.kit.serving.fresh_base", lambda: base + 1000 * ring + 64)
    served.restart()
    other.plain.now(0)  # the first channel was opened before this one
    assert unread.result() == 1 << 60
    assert first.plain.now(3) == 3


def test_what_was_taken_is_repeated_only_if_it_may_be(served: Serving) -> None:
    steps = served.proxies[0]
    held = [steps.hold.start(), steps.hold_repeatable.start(), steps.hold_once.start()]
    settle(steps, 3)
    served.crash()
    served.restart(1)
    with pytest.raises(PeerDied) as died:
        held[0].result()
    assert died.value.outcome_unknown
    assert [held[1].result(), held[2].result()] == [7, 7]
    assert steps.taken.now() == 2


def test_a_reply_that_was_committed_before_the_death_is_taken(served: Serving) -> None:
    """No other call receives meanwhile, so the replies lie in the ring when the new epoch is announced."""
    steps, other = served.proxies
    futures = [steps.plain.start(number) for number in range(30)]
    memory = served.channels[0]
    while (memory.taken()[1] - memory.base) // 64 < 2 * 30 - 30:
        other.plain.now(0)
    other.plain.now(0)
    served.crash()
    served.restart()
    assert [future.result() for future in futures] == list(range(30))


def test_a_call_that_a_reply_brings_about_waits_for_the_next_server(served: Serving) -> None:
    """The replies lie in the ring when the new epoch is announced, and what they call is of the next."""
    steps, other = served.proxies
    futures = [steps.plain.start(number) for number in range(30)]
    later: list[Future[int]] = []
    futures[0].raw.add_done_callback(lambda: later.append(steps.plain.start(77)))
    memory = served.channels[0]
    while (memory.taken()[1] - memory.base) // 64 < 2 * 30 - 30:
        other.plain.now(0)
    other.plain.now(0)
    served.crash()
    served.restart()
    assert [future.result() for future in futures] == list(range(30))
    assert later[0].result() == 77


def test_the_channel_goes_on_after_many_deaths(served: Serving) -> None:
    for turn in range(5):
        futures = [p.repeatable.start(number) for p in served.proxies for number in range(20)]
        served.crash()
        served.restart()
        assert [future.result() for future in futures] == [*range(20), *range(20)]
        assert served.proxies[0].plain.now(turn) == turn


def test_a_blocked_thread_is_woken_by_the_death(served: Serving) -> None:
    steps = served.proxies[0]
    outcome: list[object] = []

    async def main() -> None:
        def blocked() -> None:
            try:
                outcome.append(steps.hold.now())
            except PeerDied as error:
                outcome.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, blocked)
            while served.proxies[1].taken.now() != 1:
                await trio.lowlevel.checkpoint()
            served.crash()
            served.restart()

    trio.run(main)
    assert isinstance(outcome[0], PeerDied)


def test_a_stream_without_positions_ends_with_an_error(served: Serving) -> None:
    numbers = served.proxies[0].ticks.now()
    seen = [next(numbers) for _ in range(10)]
    served.crash()
    served.restart()
    with pytest.raises(PeerDied):
        seen.extend(numbers)
    assert next(served.proxies[0].ticks.now()) == 1


def test_a_stream_with_positions_goes_on_where_it_stood(served: Serving) -> None:
    numbers = served.proxies[0].endless.now()
    seen = [next(numbers) for _ in range(10)]
    served.crash()
    served.restart()
    seen += [next(numbers) for _ in range(2000)]
    assert seen == list(range(1, 2011))


def test_a_stream_that_goes_on_has_what_is_left_of_its_time(served: Serving) -> None:
    """With each death its deadline began anew."""
    numbers = served.proxies[0].with_(deadline=3600.0).endless.now()
    channel = served.client(served.channels[0])
    assert next(numbers) == 1
    (opened,) = channel.pending.values()
    served.crash()
    served.restart()
    assert [next(numbers) for _ in range(2000)][-1] == 2001
    (again,) = channel.pending.values()
    assert again is not opened
    assert again.until <= opened.until


def test_an_upload_in_the_middle_ends_with_an_error(served: Serving) -> None:
    steps = served.proxies[0]

    def items() -> Iterator[int]:
        yield 1
        steps_other.plain.now(1)
        served.crash()
        served.restart()
        yield 2

    steps_other = served.proxies[1]
    with pytest.raises(PeerDied):
        steps.total.now(items())
    assert steps.total.now([1, 2, 3]) == 6


def test_a_channel_whose_server_is_gone_for_good_says_so_at_once(served: Serving) -> None:
    steps = served.proxies[0]
    waiting = steps.hold.start()
    settle(served.proxies[1], 1)
    served.crash()
    served.close_channel(served.channels[0])
    with pytest.raises(PeerDied):
        waiting.result()
    with pytest.raises(PeerDied):
        steps.plain.now(1)


async def test_trio_and_its_tasks_live_through_a_death(served: Serving) -> None:
    steps = served.proxies[0]
    results: list[int] = []

    async def one(number: int) -> None:
        results.append(await steps.repeatable(number))

    async with trio.open_nursery() as nursery:
        served.crash()
        for number in range(30):
            nursery.start_soon(one, number)
        await trio.lowlevel.checkpoint()
        served.restart()
    assert sorted(results) == list(range(30))


def test_a_swap_loses_and_repeats_nothing(served: Serving) -> None:
    steps = served.proxies[0]
    for turn in range(4):
        futures = [steps.plain.start(number) for number in range(100)]
        served.hand_over(turn % 2)
        futures += [steps.plain.start(number) for number in range(100, 200)]
        assert [future.result() for future in futures] == list(range(200))
