"""What a step reads and changes: a range that it read must still be so, its own rows are in it, and no change of it is lost
to another. How much it reads moves no key of its calls."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio

from atoll.ipc import Deferred, Interface, Keyspace, Serves, call, testing
from atoll.ipc.durable import Retry, Workflow, durable, this_step
from atoll.ipc.durable.effects import Effects
from atoll.ipc.errors import Aborted, Overloaded, PeerDied
from atoll.ipc.keyspace import settled
from atoll.ipc.system.state import Compacted, State, Write
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server as StateServer

from .failing import Failing
from .test_identities import Counter, Counting

PAGE = 1000


class Hall(Interface):
    @durable("write")
    def book(self, who: str, seats: int) -> int:
        """A seat if there is one left; how many are taken then."""

    @durable("write")
    def look(self, shared: bool) -> list[list[str]]:
        """A range before and after each of some writes."""

    @durable("write")
    def change(self, key: str) -> int:
        """Changes of one row that are not awaited, each."""

    @durable("write")
    def read_and_count(self, key: str) -> int:
        """Reads all rows, counts at another server, fails, and does so again."""

    @call("write")
    def fill(self, first: int, rows: int) -> int: ...

    @call("write")
    def failed(self) -> None:
        """Waits until it has failed."""

    @call("write")
    def go_on(self) -> None: ...


class Server(Serves[Hall]):
    rows: Keyspace[int]
    counter: Counter

    async def start(self) -> None:
        self._came = 0
        self._both = trio.Event()
        self._failed = trio.Event()
        self._on = trio.Event()

    @Hall.book.serve
    async def book(self, flow: Workflow, who: str, seats: int) -> int:
        return await flow.step(self._book, who, seats)

    async def _book(self, who: str, seats: int) -> int:
        taken = len([row async for row in self.rows.range("seat/", "seat0")])
        self._came += 1
        if self._came == 2:
            self._both.set()
        await self._both.wait()
        if taken < seats:
            self.rows.put(f"seat/{who}", 1)
            taken += 1
        return taken

    @Hall.look.serve
    async def look(self, flow: Workflow, shared: bool) -> list[list[str]]:
        return await flow.step(self._look, shared)

    async def _look(self, shared: bool) -> list[list[str]]:
        if shared:
            await this_step().share(self.counter).add("looked", 1)
        found = [await self._keys()]
        self.rows.put("row/b", 1)
        found.append(await self._keys())
        if shared:
            await this_step().share(self.counter).add("looked", 1)
        self.rows.delete("row/c")
        self.rows.append("row/d", 1)
        found.append(await self._keys())
        found.append([row.key async for row in self.rows.range("row/", "row0", limit=2)])
        return found

    async def _keys(self) -> list[str]:
        return [row.key async for row in self.rows.range("row/", "row0")]

    @Hall.change.serve
    async def change(self, flow: Workflow, key: str) -> int:
        return await flow.step(self._change, key)

    async def _change(self, key: str) -> int:
        def more() -> Deferred[int]:
            return self.rows.update(key, lambda before: (before or 0) + 1)

        counted = [more(), more()]
        beside = more(), self.rows.put(key, 10)
        counted.append(more())
        for each in (*beside, *counted):
            await settled(each)
        return sum(each.result() for each in counted)

    @Hall.read_and_count.serve
    async def read_and_count(self, flow: Workflow, key: str) -> int:
        return await flow.with_(retry=Retry(attempts=2, pause=0.0)).step(self._read_and_count, key)

    async def _read_and_count(self, key: str) -> int:
        found = len([row async for row in self.rows.range("n/", "n0")])
        if this_step().attempt == 2:
            for row in ("first", "second"):
                await self.rows.row(row, as_of=1)
                await self.rows.history(row)
        await self.counter.add(key, 1)
        if this_step().attempt == 1:
            self._failed.set()
            await self._on.wait()
            raise Overloaded("the step")
        return found

    @Hall.fill.serve
    def fill(self, first: int, rows: int) -> Deferred[int]:
        return self.rows.put_all({f"n/{number:06d}": 1 for number in range(first, first + rows)})

    @Hall.failed.serve
    async def failed(self) -> None:
        await self._failed.wait()

    @Hall.go_on.serve
    def go_on(self) -> None:
        self._on.set()


@pytest.fixture
def hall() -> Iterator[tuple[Hall, Counter, State]]:
    with ExitStack() as stack:
        store = stack.enter_context(testing.running(StateServer, config=Settings(engine="memory")))
        kernel = store.client(State)

        def state(name: str) -> State:
            return store.client(State, badge=kernel.make_keyspace.now(name))

        counting = stack.enter_context(
            testing.running(Counting, needs={"rows": Keyspace(state("counter"), int, boot=3)})
        )
        counter, own = counting.client(Counter), state("hall")
        serving = testing.running(Server, needs={"rows": Keyspace(own, int), "counter": counter})
        yield stack.enter_context(serving).client(Hall), counter, own


def test_two_steps_do_not_take_the_last_seat(hall: tuple[Hall, Counter, State]) -> None:
    """Both have read the range before either writes: one is run again, and finds none left."""
    server, _, state = hall
    server.fill.now(0, 1)
    asked = [server.book.start(who, 1) for who in ("ann", "bob")]
    assert [each.result() for each in asked] == [1, 1]
    assert len(state.range.now(b"seat/", b"seat0").items) == 1


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "with another server"])
def test_a_step_finds_its_own_rows_in_a_range(hall: tuple[Hall, Counter, State], shared: bool) -> None:
    server, counter, state = hall
    state.commit.now([Write(b"row/a", b"\x01"), Write(b"row/c", b"\x01")])
    found = server.look.now(shared)
    assert found == [
        ["row/a", "row/c"],
        ["row/a", "row/b", "row/c"],
        ["row/a", "row/b", "row/d"],
        ["row/a", "row/b"],
    ]
    kept = [item.key for item in state.range.now(b"row/", b"row0").items]
    assert kept == [b"row/a", b"row/b", b"row/d"]
    assert counter.counts.now() == ({"looked": 2} if shared else {})


def test_changes_of_a_row_in_a_step_are_all_counted(hall: tuple[Hall, Counter, State]) -> None:
    server, _, state = hall
    assert server.change.now("k") == 1 + 2 + 11
    item = state.get.now(b"k")
    assert item is not None and item.value == bytes([11])


def test_how_much_a_step_reads_moves_no_key_of_its_calls(hall: tuple[Hall, Counter, State]) -> None:
    """Between its attempts the rows have become a page more, and it looks at the past besides."""
    server, counter, _ = hall
    server.fill.now(0, PAGE - 10)
    asked = server.read_and_count.start("k")
    server.failed.now()
    server.fill.now(PAGE - 10, 20)
    server.go_on.now()
    assert asked.result() == PAGE + 10
    assert counter.counts.now() == {"k": 1}


@pytest.fixture
def store() -> Iterator[Failing]:
    with testing.running(StateServer, config=Settings(engine="memory")) as running:
        badge = running.client(State).make_keyspace.now("steps")
        yield Failing(running.client(State, badge=badge))


def test_a_range_whose_past_is_no_longer_kept_is_read_again(store: Failing) -> None:
    async def step() -> None:
        effects = Effects(store.state)
        await effects.scan(store.state, b"a", b"b", 10)
        store.fail("commit", Compacted(revision=1, horizon=2))
        with pytest.raises(Aborted, match="no longer kept"):
            await effects.commit([Write(b"record", b"1")], [], "step")

    trio.run(step)


@pytest.mark.parametrize("heard", [True, False])
def test_what_comes_to_nothing_leaves_no_transaction(store: Failing, heard: bool) -> None:
    async def step() -> None:
        effects = Effects(store.state)
        if heard:
            await effects.whole()
        else:
            store.fail("begin", PeerDied("State.begin"), taken=True)
            with pytest.raises(PeerDied):
                await effects.whole()
        assert (await store.state.statistics())["transactions"] == 1
        effects.forget()
        assert (await store.state.statistics())["transactions"] == 0

    trio.run(step)
