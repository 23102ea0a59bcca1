"""Swap: another version or level in a running server's place; its clients see a short wait and no error."""

import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.ipc.errors import DrainTimedOut, Incompatible, PeerDied
from atoll.ipc.system.kernel import StartFailed, Swap, WrongState
from atoll.ipc.system.records import KEYSPACE, ProcessRow, after, decode
from atoll.microkernel.swap import Swaps

from .nodes import PACKAGES, RealNode, booted, interface

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """Each test leaves it with the version and the state it began with."""
    with booted(tmp_path_factory.mktemp("swap")) as running:
        yield running


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A row of the test's own."""
    return str(request.node.name)


def version(folder: Path, old: str, new: str, file: str = "server.py") -> str:
    """A copy of the counter in which a text is another."""
    copy = folder / "next" / "counter"
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(PACKAGES / "counter", copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    return str(copy)


@pytest.mark.parametrize("size", [0, 64 * 1024, 64 * 1024 * 1024])
def test_state_is_handed_over(node: RealNode, key: str, size: int) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.add.now(key, 5)
        counter.keep.now(size)
        done = attached.kernel.swap.now(Swap(server="counter"))
        assert done.handed_over == size
        assert counter.taken.now() == size
        assert counter.get.now(key) == 5
        assert counter.add.now(key) == 6
        counter.keep.now(0)


def test_callers_of_a_swapped_server_see_no_error(node: RealNode, key: str) -> None:
    """Outside programs and another server call all the while, across versions and levels."""
    stop, failures, done = threading.Event(), [], [0, 0]

    def load(index: int) -> None:
        try:
            with node.attach() as own:
                counter, teller = own.open("counter", Counter), own.open("teller", Teller)
                while not stop.is_set():
                    if index:
                        teller.tell.now(key, 1)
                    else:
                        counter.add.now(key)
                    done[index] += 1
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=load, args=(index,)) for index in (0, 1)]
    for worker in workers:
        worker.start()
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        for level in ("process", "seccomp", "process"):
            for index in (0, 1):
                before = done[index]
                while done[index] == before and workers[index].is_alive():
                    counter.get.now(key)
            attached.kernel.swap.now(Swap(server="counter", level=level))
        attached.kernel.swap.now(Swap(server="state"))
        attached.kernel.swap.now(Swap(server="teller"))
        stop.set()
        for worker in workers:
            worker.join()
        assert failures == []
        assert counter.add.now(key, 0) == sum(done)


def test_a_live_stream_goes_on_where_it_was(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        numbers = []
        with counter.ticks.now(0) as ticks:
            for tick in ticks:
                numbers.append(tick.number)
                if len(numbers) == 10:
                    attached.kernel.swap.now(Swap(server="counter"))
                if len(numbers) == 30:
                    break
        assert numbers == list(range(1, 31))


def test_a_new_version_and_back(node: RealNode, key: str, tmp_path: Path) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.add.now(key, 5)
        changed = version(tmp_path, "self.rows.local.get(key, 0)", "self.rows.local.get(key, 0) * 1000")
        done = attached.kernel.swap.now(Swap(server="counter", package=changed))
        assert done.old != done.new
        assert counter.get.now(key) == 5000
        back = attached.kernel.swap.now(Swap(server="counter", version=done.old[:12]))
        assert back.new == done.old
        assert counter.get.now(key) == 5


@pytest.mark.parametrize(
    ("old", "new", "step"),
    [
        ("import os\n", "import os\nimport no_such_module\n", "import"),
        ("self._taken = len(state)", "raise ValueError('bad state')", ""),
        ("self._taken = len(state)", "os._exit(9)", ""),
    ],
)
def test_a_version_that_fails_leaves_the_old_one_in_place(
    node: RealNode, key: str, tmp_path: Path, old: str, new: str, step: str
) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.add.now(key, 5)
        before = next(row for row in attached.kernel.ps.now() if row.server == "counter")
        with pytest.raises(StartFailed) as told:
            attached.kernel.swap.now(Swap(server="counter", package=version(tmp_path, old, new)))
        assert step in told.value.step
        assert counter.add.now(key) == 6
        row = next(row for row in attached.kernel.ps.now() if row.server == "counter")
        assert (row.pid, row.state, row.restarts) == (before.pid, "serving", before.restarts)


def test_an_incompatible_version_is_refused_with_the_difference(
    node: RealNode, key: str, tmp_path: Path
) -> None:
    changed = version(
        tmp_path, "def get(self, key: str) -> int:", "def get(self, key: int) -> int:", "interface.py"
    )
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        with pytest.raises(Incompatible, match=r"Counter\.get"):
            attached.kernel.swap.now(Swap(server="counter", package=changed))
        assert counter.add.now(key) == 1


def test_what_cannot_be_drained_refuses_the_swap_and_force_ends_it(node: RealNode, key: str) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        slow = counter.slow.start(600.0)
        assert counter.get.now(key) == 0
        with pytest.raises(DrainTimedOut) as told:
            attached.kernel.swap.now(Swap(server="counter", deadline=0.1))
        assert told.value.calls == {"Counter.slow": 1}
        assert counter.add.now(key) == 1
        assert not slow.done()
        done = attached.kernel.swap.now(Swap(server="counter", deadline=0.1, force=True))
        assert done.ended == {"Counter.slow": 1}
        with pytest.raises(PeerDied):
            slow.result()
        assert counter.add.now(key) == 2


def test_a_long_call_is_waited_for(node: RealNode, key: str) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        slow = counter.slow.start(0.2)
        assert counter.get.now(key) == 0
        attached.kernel.swap.now(Swap(server="counter"))
        assert slow.result() == "done"


def test_the_swapped_version_is_what_the_next_process_runs(tmp_path: Path) -> None:
    with booted(tmp_path) as node, node.attach() as attached:
        counter = attached.open("counter", Counter)
        changed = version(tmp_path, "return self._taken", "return 77")
        attached.kernel.swap.now(Swap(server="counter", package=changed))
        with pytest.raises(PeerDied):
            counter.die.now()
        assert counter.taken.now() == 77


async def test_a_server_that_crashes_while_its_readers_are_set_aside_is_not_swapped() -> None:
    """Who asked is told so in a sentence."""
    server: Any = SimpleNamespace(name="state", state="serving", serving=object())

    class Readers:
        @asynccontextmanager
        async def aside(self, of: Any) -> AsyncIterator[None]:
            of.state, of.serving = "restarting", None
            yield

    @asynccontextmanager
    async def changing(of: Any) -> AsyncIterator[None]:
        yield

    nothing: Any = None
    node: Any = SimpleNamespace(server=lambda name: server, changing=changing)
    readers: Any = Readers()
    swaps = Swaps(node, *(nothing,) * 6, readers, nothing)
    with pytest.raises(WrongState, match="restarting"):
        await swaps.swap(Swap(server="state"), 10.0)


def test_the_row_of_a_process_says_which_version_it_ran(tmp_path: Path) -> None:
    """Also that of one which was swapped for another."""
    with booted(tmp_path) as node, node.attach() as attached:
        changed = version(tmp_path, "self.rows.local.get(key, 0)", "self.rows.local.get(key, 0) * 1")
        done = attached.kernel.swap.now(Swap(server="counter", package=changed))
        attached.kernel.swap.now(Swap(server="counter", version=done.old))
        rows = attached.keyspace(KEYSPACE, ["read"])
        while True:
            found = rows.range.now(ProcessRow.key_of(), after(ProcessRow.key_of())).items
            ran = [decode(ProcessRow, item.value or b"") for item in found]
            ended = [row for row in ran if row.server == "counter" and row.ended][-2:]
            if [row.exit for row in ended] == [
                f"swapped for {done.new[:10]}",
                f"swapped for {done.old[:10]}",
            ]:
                break
        assert [row.version for row in ended] == [done.old, done.new]


@pytest.mark.parametrize(("how", "seconds"), [("swap", 11.0), ("stop", 6.0), ("restart", 6.0)])
def test_who_says_no_deadline_waits_as_long_as_the_image_says(
    tmp_path: Path, how: str, seconds: float
) -> None:
    """`drain`: here longer than a call in hand takes, and that longer than each would wait by itself."""
    with booted(tmp_path, counter='drain = "1h"') as node, node.attach() as attached:
        counter = attached.open("counter", Counter)
        begun = counter.slow.start(seconds)
        while not counter.begun.now():
            pass
        if how == "swap":
            attached.kernel.swap.now(Swap(server="counter"))
        else:
            getattr(attached.kernel, how).now("counter")
        assert begun.result() == "done"
