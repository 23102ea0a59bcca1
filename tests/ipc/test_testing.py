"""The test kit itself: virtual time, faults at chosen steps, crashes, a server's life, memory keyspaces."""

import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

from atoll.ipc import (
    Config,
    Deferred,
    Interface,
    Keyspace,
    PeerFault,
    Serves,
    call,
    current,
    errors,
    stream,
    testing,
)


class Settings(Config):
    step: int = 1


class Counter(Interface):
    @call("write", once=True)
    def add(self, key: str, by: int = 1) -> int: ...

    @call("write")
    def careless(self, key: str) -> int: ...

    @call("read", idempotent=True)
    def get(self, key: str) -> int: ...

    @call("read")
    def sleep(self, seconds: float) -> float: ...

    @stream("read", position=int)
    def numbers(self, after: int = 0, end: int = 100) -> int: ...


class CounterServer(Serves[Counter]):
    rows: Keyspace[int]
    config: Settings

    @Counter.add.serve
    def add(self, key: str, by: int = 1) -> Deferred[int]:
        return self.rows.update(key, lambda n: (n or 0) + by * self.config.step)

    @Counter.careless.serve
    def careless(self, key: str) -> Deferred[int]:
        return self.rows.update(key, lambda n: (n or 0) + 1)

    @Counter.get.serve
    def get(self, key: str) -> int:
        return self.rows.local.get(key, 0)

    @Counter.sleep.serve
    async def sleep(self, seconds: float) -> float:
        await trio.sleep(seconds)
        return current().now()

    @Counter.numbers.serve
    def numbers(self, after: int = 0, end: int = 100) -> "itertools.chain[int]":
        return itertools.chain(range(after + 1, end + 1))


def test_a_server_with_state_runs_in_the_tests_process() -> None:
    with testing.node(CounterServer, config=Settings(step=2)) as counter:
        assert counter.add.now("x") == 2
        assert counter.add.now("x", by=5) == 12
        assert counter.get.now("x") == 12
    with testing.node(CounterServer) as counter:
        assert counter.get.now("x") == 0


def test_time_passes_when_the_test_says_so() -> None:
    clock = testing.VirtualClock()
    with testing.node(CounterServer, clock=clock) as counter:
        slept = counter.sleep.start(3600)
        timed = counter.with_(deadline=3000).sleep.start(3600)
        clock.advance(2999)
        assert (slept.done(), timed.done()) == (False, False)
        clock.advance(1)
        assert (slept.done(), timed.done()) == (False, True)
        with pytest.raises(errors.DeadlineExceeded, match="within 3000 s"):
            timed.result()
        clock.advance(600)
        assert slept.result() == testing.EPOCH + 3600


@pytest.mark.parametrize("taken", [False, True])
def test_what_is_once_takes_effect_once_although_the_peer_died(taken: bool) -> None:
    with testing.running(CounterServer) as made:
        counter = made.client(Counter, testing.Drop(at=2, taken=taken))
        assert [counter.add.now("x") for _ in range(3)] == [1, 2, 3]


def test_what_is_neither_once_nor_idempotent_ends_with_the_outcome_unknown() -> None:
    with testing.running(CounterServer) as made:
        counter = made.client(
            Counter, testing.Drop(at=1), testing.Drop(at=3, taken=False), testing.Drop(at=4)
        )
        with pytest.raises(errors.PeerDied, match="outcome unknown"):
            counter.careless.now("x")
        assert counter.get.now("x") == 1
        assert counter.careless.now("x") == 2
        assert counter.get.now("x") == 2


@pytest.mark.parametrize("items", [0, 1, 7, 99, 100])
def test_a_stream_with_positions_goes_on_after_a_death_without_loss_or_doubles(items: int) -> None:
    with testing.running(CounterServer) as made:
        counter = made.client(Counter, testing.Drop(at=1, items=items), testing.Drop(at=2, items=1))
        assert list(counter.numbers.now()) == list(range(1, 101))


def test_a_stream_gives_up_when_nothing_comes_between_deaths() -> None:
    with testing.running(CounterServer) as made:
        faults = [testing.Drop(at=step, items=0) for step in range(1, 20)]
        counter = made.client(Counter, *faults)
        with pytest.raises(errors.PeerDied):
            next(counter.numbers.now())


def test_overload_and_delay_come_at_their_step() -> None:
    with testing.running(CounterServer) as made:
        counter = made.client(Counter, testing.Overload(at=1), testing.Delay(at=2))
        with pytest.raises(errors.Overloaded):
            counter.add.now("x")
        late = counter.add.start("x")
        assert counter.add.now("x", by=10) == 10
        assert not late.done()
        made.release()
        assert late.result() == 11


def test_the_opening_of_a_stream_cannot_be_delayed() -> None:
    with testing.running(CounterServer) as made:
        counter = made.client(Counter, testing.Delay(at=1))
        with pytest.raises(TypeError, match=r"step 1 opens Counter\.numbers, a stream: .*delay another step"):
            list(counter.numbers.now())


def test_a_crash_ends_what_is_in_hand_and_what_comes_after() -> None:
    clock = testing.VirtualClock()
    with testing.running(CounterServer, clock=clock) as made:
        counter = made.client(Counter)
        waiting = counter.sleep.start(1)
        clock.settle()
        made.kill()
        with pytest.raises(errors.PeerDied, match="outcome unknown"):
            waiting.result()
        with pytest.raises(PeerFault, match="before it took"):
            counter.get.now("x")


class Lasting(CounterServer):
    dead = False

    async def run(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            Lasting.dead = True


def test_a_server_that_crashed_does_nothing_more() -> None:
    with testing.running(Lasting) as made:
        made.kill()
        assert Lasting.dead


class Life(Interface):
    @call("read")
    def log(self) -> list[str]: ...


class LifeServer(Serves[Life]):
    def __init__(self) -> None:
        self.told: list[str] = []
        self.idled = 0

    async def start(self) -> None:
        self.told.append("start")

    async def run(self) -> None:
        self.told.append("run")
        try:
            await trio.sleep_forever()
        finally:
            self.told.append("run cancelled")

    async def stop(self) -> None:
        self.told.append("stop")

    def idle(self) -> float | None:
        self.idled += 1
        return None

    @Life.log.serve
    def log(self) -> list[str]:
        return self.told


def test_a_servers_life_goes_start_run_calls_stop() -> None:
    with testing.running(LifeServer) as made:
        assert made.client(Life).log.now()[0] == "start"
        server = made.server
        assert isinstance(server, LifeServer)
    assert server.told == ["start", "run", "run cancelled", "stop"]
    assert server.idled >= 1


class Stillborn(LifeServer):
    async def start(self) -> None:
        raise OSError("no such device")


class Mortal(LifeServer):
    @Life.log.serve
    def log(self) -> list[str]:
        raise SystemExit(3)


def test_what_start_raises_reaches_the_test() -> None:
    with pytest.raises(OSError, match="no such device"), testing.node(Stillborn):
        raise AssertionError("it must not serve")


def test_a_handler_that_exits_ends_the_server_as_a_crash() -> None:
    with testing.node(Mortal) as life:
        with pytest.raises(errors.PeerDied, match="outcome unknown"):
            life.log.now()
        with pytest.raises(errors.PeerDied, match="before it took"):
            life.log.now()


def test_mistakes_in_the_use_of_the_kit_are_named() -> None:
    with (
        pytest.raises(TypeError, match="LifeServer has no configuration to bind"),
        testing.node(LifeServer, config=Settings()),
    ):
        pass
    with testing.running(LifeServer) as made:
        with pytest.raises(TypeError, match="LifeServer does not serve Counter"):
            made.client(Counter)
        with pytest.raises(TypeError, match="Life has no right 'write'; it has read"):
            made.client(Life, rights={"write"})


class Hall(Interface):
    @call("use")
    def busy(self) -> None:
        """Until the server is told `opened`; nothing else has its turn meanwhile."""

    @call("use")
    def hold(self) -> None:
        """Until it is cancelled."""


class HallServer(Serves[Hall]):
    def __init__(self) -> None:
        self.opened = threading.Event()
        self.left = threading.Event()

    @Hall.busy.serve
    def busy(self) -> None:
        self.opened.wait()

    @Hall.hold.serve
    async def hold(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.left.set()


def test_a_caller_may_give_up_before_the_handlers_task_has_its_first_turn() -> None:
    with testing.running(HallServer) as node:
        hall = node.client(Hall)
        busy = hall.busy.start()
        held = hall.hold.start()
        held.cancel()
        node.server.opened.set()
        busy.result()
        with pytest.raises(errors.Aborted):
            held.result()
        assert node.server.left.is_set()


class Endless(Interface):
    @call("read")
    def count(self) -> int: ...

    @stream("read")
    def numbers(self) -> int: ...


class EndlessServer(Serves[Endless]):
    @Endless.count.serve
    def count(self) -> int:
        return 1

    @Endless.numbers.serve
    async def numbers(self) -> AsyncIterator[int]:
        while True:
            yield 1


def test_a_stream_that_never_waits_and_that_its_reader_has_left() -> None:
    """The loop had no turn in which it could be cancelled."""
    with testing.node(EndlessServer) as endless:
        with endless.numbers.now() as numbers:
            assert next(numbers) == 1
        assert endless.count.now() == 1


class Collecting:
    """A lock under which objects are collected, as may happen wherever one is made."""

    def __init__(self, lock: Any, left: list[Any]) -> None:
        self._lock = lock
        self._left = left
        self._owner = 0
        self.stuck = False

    def __enter__(self) -> None:
        inner = self._owner == threading.get_ident()
        if not self._lock.acquire(blocking=not inner):
            self.stuck = True  # the thread that has it would wait for itself
            raise RuntimeError
        if not inner:
            self._owner = threading.get_ident()
            self._left.clear()
            self._owner = 0

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_that_is_collected_as_a_call_is_made() -> None:
    with testing.running(EndlessServer) as made:
        endless = made.client(Endless)

        def reading() -> Iterator[int]:
            with endless.numbers.now() as numbers:
                yield from numbers

        left = [reading()]
        assert next(left[0]) == 1
        collecting = Collecting(made._host._lock, left)
        made._host._lock = collecting  # type: ignore[assignment]
        asked = endless.count.start()
        assert not collecting.stuck
        assert asked.result() == 1
