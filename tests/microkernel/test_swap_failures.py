"""A swap goes wrong at each of its steps, while every kind of client calls: the old version goes on, or the new one does,
and no client is told of it."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from atoll.ipc.attach import connect
from atoll.ipc.errors import AtollError, DeadlineExceeded, DrainTimedOut
from atoll.ipc.system.kernel import ProcessRow, StartFailed, Swap, Swapped

from .nodes import RealNode, booted, interface
from .test_swap import version

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")

HAND_OVER = "    def hand_over(self) -> bytes:\n"
RUN = "    async def run(self) -> None:\n        {0}\n\n" + HAND_OVER
TAKEN = "self._taken = len(state)"
TAKEN_RETURNED = "        return self._taken\n"


class Callers:
    """One client of each kind; each adds to a key of its own and counts what it was told."""

    def __init__(self, node: RealNode) -> None:
        self.node = node
        self.told = dict.fromkeys(("blocking", "pipelined", "trio", "asyncio", "server", "stream"), 0)
        self.failures: list[str] = []
        self.over = threading.Event()
        kinds: tuple[Callable[[], None], ...] = (
            self._blocking, self._pipelined, self._server, self._stream,
            lambda: trio.run(self._trio), lambda: asyncio.run(self._asyncio()),
        )  # fmt: skip
        self._threads = [threading.Thread(target=self._guarded, args=(kind,)) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def _guarded(self, kind: Callable[[], None]) -> None:
        try:
            kind()
        except BaseException as error:
            self.failures.append(f"{type(error).__name__}: {error}")

    def _blocking(self) -> None:
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                counter.add.now("blocking")
                self.told["blocking"] += 1

    def _pipelined(self) -> None:
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                futures = [counter.add.start("pipelined") for _ in range(20)]
                self.told["pipelined"] += len([future.result() for future in futures])

    def _server(self) -> None:
        with self.node.attach() as attached:
            teller = attached.open("teller", Teller)
            while not self.over.is_set():
                teller.tell.now("server", 1)
                self.told["server"] += 1

    def _stream(self) -> None:
        with self.node.attach() as attached, attached.open("counter", Counter).ticks.now(0) as ticks:
            for tick in ticks:
                self.told["stream"] += 1
                assert tick.number == self.told["stream"], "a stream goes on where it was"
                if self.over.is_set():
                    return

    async def _trio(self) -> None:
        async with connect(str(self.node.folder)) as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                await counter.add("trio")
                self.told["trio"] += 1

    async def _asyncio(self) -> None:
        async with connect(str(self.node.folder)) as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                await counter.add("asyncio")
                self.told["asyncio"] += 1

    def go_on(self) -> None:
        """Each is told something that it asked after now."""
        before = dict(self.told)
        while any(self.told[kind] < before[kind] + 2 for kind in before):
            assert self.failures == []
            self.over.wait(0.005)

    def end(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def called(node: RealNode) -> Iterator[Callers]:
    callers = Callers(node)
    try:
        callers.go_on()
        yield callers
        callers.go_on()
    finally:
        callers.end()
    assert callers.failures == []
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        for kind in callers.told:
            if kind != "stream":
                assert counter.add.now(kind, 0) == callers.told[kind], kind


def row_of(node: RealNode, server: str = "counter") -> ProcessRow:
    with node.attach() as attached:
        return next(row for row in attached.kernel.ps.now() if row.server == server)


def swap(node: RealNode, deadline: float | None = None, **what: object) -> Swapped:
    with node.attach() as attached:
        kernel = attached.kernel if deadline is None else attached.kernel.with_(deadline=deadline)
        done: Swapped = kernel.swap.now(Swap(server="counter", **what))  # type: ignore[arg-type]
        return done


FAILURES = {
    "import": ("import os\n", "import os\nimport no_such_module\n"),
    "its beginning": ("        self._taken = 0\n", "        raise ValueError('no')\n"),
    "start": (
        HAND_OVER,
        "    async def start(self) -> None:\n        raise ValueError('no')\n\n" + HAND_OVER,
    ),
    "take over": (TAKEN, "raise ValueError('no')"),
    "exit in take over": (TAKEN, "os._exit(9)"),
    "exit after ready": (HAND_OVER, RUN.format("os._exit(9)")),
    "hang after ready": (HAND_OVER, RUN.format("time.sleep(1000)")),
}


@pytest.mark.parametrize(
    "steps", [list(FAILURES)[:3], list(FAILURES)[3:6], list(FAILURES)[6:]], ids=", ".join
)
def test_a_version_that_fails_before_its_first_call_leaves_the_old_one_in_place(
    node: RealNode, tmp_path: Path, steps: list[str]
) -> None:
    before = row_of(node)
    with called(node) as callers:
        for step in steps:
            old, new = FAILURES[step]
            with pytest.raises(StartFailed):
                swap(node, package=version(tmp_path, old, new))
            callers.go_on()
            row = row_of(node)
            assert (row.pid, row.state, row.restarts, row.version) == (
                before.pid, "serving", 0, before.version,
            ), step  # fmt: skip


@pytest.mark.parametrize("at", ["take_over", "start"])
def test_a_caller_that_waits_no_longer_leaves_the_old_version_in_place(
    node: RealNode, tmp_path: Path, at: str
) -> None:
    old, new = (TAKEN, "time.sleep(1000)") if at == "take_over" else (
        HAND_OVER, "    async def start(self) -> None:\n        await trio.sleep(1000)\n\n" + HAND_OVER
    )  # fmt: skip
    before = row_of(node)
    with called(node):
        with pytest.raises(DeadlineExceeded):
            swap(node, deadline=4.0, package=version(tmp_path, old, new))
        while (row := row_of(node)).state != "serving":
            pass
        assert row.pid == before.pid


def test_a_version_that_fails_over_its_first_call_is_a_crash_of_its_own(
    node: RealNode, tmp_path: Path
) -> None:
    """It ends in the first call if it has taken over; the process in its place has not, and answers."""
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.keep.now(5)
        changed = version(
            tmp_path, TAKEN_RETURNED, f"        if self._taken:\n            os._exit(9)\n{TAKEN_RETURNED}"
        )
        done = swap(node, package=changed)
        assert counter.taken.now() == 0
        row = row_of(node)
        assert (row.version, row.restarts, row.state) == (done.new, 1, "serving")


def test_the_old_version_may_die_at_its_hand_over(node: RealNode, tmp_path: Path) -> None:
    swap(node, package=version(tmp_path, "        return self._state\n", "        os._exit(9)\n"))
    with called(node):
        with pytest.raises(StartFailed):
            swap(node)
        while row_of(node).state != "serving":
            pass


def test_the_old_version_may_die_after_its_hand_over(node: RealNode, tmp_path: Path) -> None:
    """The new one has all it needs; it even ends the old one itself."""
    pid = "        return str(os.getpid()).encode()\n"
    swap(node, package=version(tmp_path, "        return self._state\n", pid))
    with called(node):
        killer = "os.kill(int(state), 9); time.sleep(0.1)"
        done = swap(node, package=version(tmp_path, TAKEN, killer))
        while (row := row_of(node)).state != "serving":
            pass
        assert row.version == done.new


def test_calls_that_do_not_end_refuse_the_swap_and_new_clients_are_served_after_it(node: RealNode) -> None:
    with called(node), node.attach() as attached:
        slow = attached.open("counter", Counter).slow.start(600.0)
        with pytest.raises(DrainTimedOut), node.attach() as other:
            other.kernel.swap.now(Swap(server="counter", deadline=0.1))
        assert not slow.done()
        with node.attach() as other:
            assert other.open("counter", Counter).get.now("nobody") == 0


def test_a_capability_that_is_passed_to_a_server_in_a_swap_waits_for_it(node: RealNode) -> None:
    with node.attach() as attached:
        channel = attached._port(attached.kernel.open.now("counter", "Counter").token).channel
        opened = attached.kernel.open.now("teller", "Teller")
        slow = attached.open("counter", Counter).slow.start(1.0)
        swapping = threading.Thread(target=lambda: swap(node))
        swapping.start()
        before = row_of(node).pid
        while row_of(node).state == "serving":
            assert swapping.is_alive()
        passed = attached.kernel.transfer.now(opened.number, channel)
        assert row_of(node).pid != before
        assert slow.result() == "done"
        swapping.join()
        assert passed in {row.number for row in attached.kernel.caps.now("counter")}


def test_two_swaps_at_once_come_one_after_the_other(node: RealNode) -> None:
    done: list[Swapped] = []
    with called(node):
        levels = ("seccomp", "process", "seccomp", "process")
        swaps = [
            threading.Thread(target=lambda level=level: done.append(swap(node, level=level)))
            for level in levels
        ]
        for thread in swaps:
            thread.start()
        for thread in swaps:
            thread.join()
    assert sorted(each.level for each in done) == sorted(levels)


def test_a_server_that_is_killed_while_it_is_swapped_is_there_afterwards(tmp_path: Path) -> None:
    """At whatever step it happens: the swap is done or refused, and the clients are served."""
    with booted(tmp_path, counter="restart = { first = 0, most = 0, limit = 1000, within = 1 }") as node:
        kill_while_swapped(node)


def kill_while_swapped(node: RealNode) -> None:
    outcomes: list[object] = []

    def one() -> None:
        try:
            outcomes.append(swap(node))
        except AtollError as error:
            outcomes.append(error)

    with called(node) as callers:
        for turn in range(6):
            thread = threading.Thread(target=one)
            thread.start()
            for _ in range(turn):
                row_of(node)
            pid = row_of(node).pid
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            thread.join()
            assert len(outcomes) == turn + 1
            callers.go_on()


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_swaps_in_a_row_leave_nothing_behind(node: RealNode, times: int) -> None:
    assert node.kernel is not None
    kernel = node.kernel.pid
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        for _ in range(3):
            attached.kernel.swap.now(Swap(server="counter"))
        before, memory = open_files(kernel), resident(kernel)
        caps = len(attached.kernel.caps.now())
        for turn in range(times):
            attached.kernel.swap.now(Swap(server="counter"))
            assert counter.add.now("x") == turn + 1
        while open_files(kernel) > before:
            attached.kernel.ps.now()
        assert resident(kernel) < memory + (8 << 20)
        assert len(attached.kernel.caps.now()) == caps
        assert len(node.processes()) == 5
