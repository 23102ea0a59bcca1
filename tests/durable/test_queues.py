"""Queues: the pure decision against a model, and what callers see of it."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atoll.ipc.durable import Queue, Start
from atoll.ipc.durable.queues import Admission, Waiting
from atoll.ipc.durable.rows import OPEN
from atoll.ipc.errors import BadRequest, NotFound, PeerDied

from .conftest import Here, Running, row_of, until
from .packages.stages.interface import Stages
from .test_going_on import SOON


class Decisions(RuleBasedStateMachine):
    """An admission beside a list of everything that ever came, from which each answer can be read off."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.waiting: dict[str, tuple[int, int, float]] = {}
        """Priority, order and the earliest start of what waits."""
        self.running: set[str] = set()
        self.begun: dict[str, int] = {}
        """Priorities of those that run, and whose row does not yet say so."""
        self.starts: list[float] = []
        self.count = 0
        self.queue = Queue()
        self.admission = Admission(self.queue, [])

    @precondition(lambda self: not self.count)
    @rule(
        concurrency=st.none() | st.integers(1, 3),
        rate=st.none() | st.integers(1, 3),
        per=st.sampled_from([1.0, 10.0]),
    )
    def configure(self, concurrency: int | None, rate: int | None, per: float) -> None:
        self.queue = Queue(concurrency=concurrency, rate=rate, per=per)
        self.admission = Admission(self.queue, [])

    @rule(priority=st.integers(-1, 1), delay=st.sampled_from([0.0, 0.0, 0.5, 5.0]))
    def come(self, priority: int, delay: float) -> None:
        self.count += 1
        name = f"{self.count}"
        self.waiting[name] = priority, self.count, self.now + delay
        self.admission.add(Waiting(priority, self.count, name), self.now + delay)

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def come_again(self, data: st.DataObject) -> None:
        """What was begun comes a second time, as it came."""
        name = data.draw(st.sampled_from(sorted(self.begun)))
        self.admission.add(Waiting(self.begun[name], int(name), name), self.now)

    @rule(seconds=st.sampled_from([0.25, 1.0, 7.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.running.discard(name)
        self.begun.pop(name, None)
        self.admission.gone(name)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[name]
        self.admission.gone(name)

    @rule()
    def start_one(self) -> None:
        expected = self.expected(self.now)
        assert self.admission.next(self.now) == expected
        if expected is not None:
            self.begun[expected] = self.waiting.pop(expected)[0]
            self.running.add(expected)
            self.starts.append(self.now)

    @rule()
    def restart(self) -> None:
        """A new process has the rows, and the starts that the old one wrote."""
        starts = self.admission.starts()
        self.admission = Admission(self.queue, starts)
        self.begun.clear()
        for name in self.running:
            self.admission.runs(name)
        for name, (priority, order, due) in self.waiting.items():
            self.admission.add(Waiting(priority, order, name), due)

    @rule()
    def wake(self) -> None:
        """Where nothing can start now, nothing can before the time that it says, and something can then."""
        if self.expected(self.now) is None:
            assert self.admission.next(self.now) is None
            times = sorted({self.now, *(due for _, _, due in self.waiting.values()), *self.reopening()})
            first = next((t for t in times if t >= self.now and self.expected(t) is not None), math.inf)
            assert self.admission.wakes() == first

    def reopening(self) -> list[float]:
        return [start + self.queue.per for start in self.starts]

    def expected(self, now: float) -> str | None:
        """The one to start, by the words of the documentation."""
        queue = self.queue
        if queue.concurrency is not None and len(self.running) >= queue.concurrency:
            return None
        if queue.rate is not None:
            lately = [start for start in self.starts if start + queue.per > now]
            if len(lately) >= queue.rate:
                return None
        ready = [
            (priority, order, name) for name, (priority, order, due) in self.waiting.items() if due <= now
        ]
        return min(ready)[2] if ready else None

    @invariant()
    def counts(self) -> None:
        assert len(self.admission) == len(self.waiting)


TestDecisions = Decisions.TestCase
TestDecisions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"rate": 0}, {"rate": 1, "per": 0.0}])
def test_a_queue_that_admits_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="admits at least one workflow"):
        Queue(**wrong)  # type: ignore[arg-type]


def began(running: Running, label: str) -> list[str]:
    """The workflows whose step has begun, in that order, once each."""
    lines = (running.folder / "log").read_text().splitlines()
    return list(
        dict.fromkeys(line.removeprefix("began ") for line in lines if line.startswith(f"began {label}"))
    )


def let(running: Running, *labels: str) -> None:
    for each in labels:
        running.stages.release.now(each)
        assert running.stages.wait.result.now(each) == each


def test_so_many_of_a_queue_run_at_a_time_in_order_of_priority(running: Running, label: str) -> None:
    first, low, high, next_ = (f"{label} {name}" for name in ("first", "low", "high", "next"))
    for id, priority in ((first, 0), (low, 5), (high, 1), (next_, 1)):
        running.stages.wait.begin.now(Start(id=id, queue="one", priority=priority), id)
    let(running, first)
    running.crash()
    let(running, high, next_, low)
    assert began(running, label) == [first, high, next_, low]


def test_one_that_is_heard_of_twice_as_it_is_started_keeps_its_place(tmp_path: Path, label: str) -> None:
    """By the feed, which was first, and by the answer to its beginning. Before, another one ran beside it."""
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        first, better = f"{label} first", f"{label} better"
        while not any(OPEN in each for each in here.store.opened):  # before that nothing is looked for
            here.stages.counts.now()
        begins = here.store.hold("commit", about=f"{first}, begun".encode())
        looks = here.store.hold("get", about=first.encode())
        starts = here.store.hold("commit", about=f"{first}, running".encode(), taken=False)
        begun = here.stages.wait.begin.start(Start(id=first, queue="one"), first)
        arrives(here, begins)
        arrives(here, looks)
        begins[0]()
        begun.result()
        arrives(here, starts)
        looks[0]()
        here.stages.wait.begin.now(Start(id=better, queue="one", priority=-1), better)
        while here.workflows._admissions["one"]._delayed:
            here.stages.counts.now()
        starts[0]()
        until(here, first, "running")
        row = row_of(here, better)
        assert row is not None and row.status == "queued"
        let(here, first, better)
        assert began(here, label) == [first, better]


def test_one_that_could_not_be_started_waits_as_before(tmp_path: Path, label: str) -> None:
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        here.store.fail(
            "commit", BadRequest("a commit", "one", "another"), about=f"{label}, running".encode()
        )
        here.stages.wait.begin.now(Start(id=label, queue="one"), label)
        let(here, label)
        assert here.store.all_met


def arrives(here: Here, held: list[Callable[[], None]]) -> None:
    """A call that is to be held back."""
    while not held:
        here.stages.counts.now()


def test_a_queue_counts_what_runs_over_a_crash(running: Running, label: str) -> None:
    ids = [f"{label} {number}" for number in range(4)]
    for id in ids:
        running.stages.wait.begin.now(Start(id=id, queue="two"), id)
    running.crash()
    let(running, ids[0])
    let(running, ids[1], ids[2], ids[3])
    assert sorted(began(running, label)) == ids


def test_a_rate_holds_over_a_crash(running: Running, label: str) -> None:
    """Two an hour: of one test's three the third waits, whatever happens."""
    if "node" in type(running).__name__.lower():
        pytest.skip("the node is shared, and with it the hour")
    ids = [f"{label} {number}" for number in range(3)]
    for id in ids:
        running.stages.wait.begin.now(Start(id=id, queue="slow"), id)
    let(running, ids[0])
    running.crash()
    let(running, ids[1])
    running.crash()
    row = row_of(running, ids[2])
    assert row is not None and row.status == "queued"


def test_what_another_version_does_not_start_takes_nobodys_turn(tmp_path: Path, label: str) -> None:
    """Two an hour may start, and two were refused."""
    with ExitStack() as stack:
        here = Here(stack, tmp_path, version="1")
        old = [f"{label} {number}" for number in range(2)]
        here.pause()
        for id in old:
            here.stages.wait.begin.now(Start(id=id, queue="slow"), id)
        here.crash(version="2")
        for id in old:
            until(here, id, "waiting")
        new = f"{label} new"
        here.stages.wait.begin.now(Start(id=new, queue="slow"), new)
        let(here, new)


def test_what_waits_for_its_version_gives_its_place_away_also_where_the_store_died_over_that(
    tmp_path: Path, label: str
) -> None:
    """It had been committed, and asked for again was in conflict with itself: the queue counted it as one that runs."""
    with ExitStack() as stack:
        here = Here(stack, tmp_path, version="1")
        old, new = f"{label} old", f"{label} new"
        here.stages.wait.begin.now(Start(id=old, queue="one"), old)
        until(here, old, "running")
        here.store.fail("commit", PeerDied("State.commit"), about=f"{old}, waiting".encode(), taken=True)
        here.crash(version="2")
        until(here, old, "waiting")
        here.stages.wait.begin.now(Start(id=new, queue="one"), new)
        here.stages.release.now(new)
        assert here.stages.with_(deadline=SOON).wait.result.now(new) == new
        assert here.store.all_met


def test_one_of_a_deduplication_key_at_a_time(running: Running, label: str) -> None:
    start = Start(id=label, queue="two", deduplicate=label)
    running.stages.wait.begin.now(start, label)
    running.stages.wait.begin.now(start, label)  # the same workflow
    other = Start(id=f"{label} other", queue="two", deduplicate=label)
    with pytest.raises(BadRequest, match=f"no other workflow with the deduplication key '{label}'"):
        running.stages.wait.begin.now(other, f"{label} other")
    let(running, label)
    running.stages.wait.begin.now(other, f"{label} other")
    running.stages.wait.cancel.now(f"{label} other")
    again = Start(id=f"{label} again", queue="two", deduplicate=label)
    running.stages.wait.begin.now(again, f"{label} again")
    let(running, f"{label} again")


def test_a_deduplication_key_is_its_objects(tmp_path: Path, label: str) -> None:
    """Before, whoever had a capability on one object could block another's, and learn of its keys."""
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        first, second = (here._running.client(Stages, badge=badge) for badge in (1, 2))
        start = Start(id=label, queue="two", deduplicate=label)
        for object in (first, second):
            object.wait.begin.now(start, label)
        with pytest.raises(BadRequest, match="no other workflow with the deduplication key"):
            first.wait.begin.now(Start(id="other", queue="two", deduplicate=label), label)
        first.release.now(label)
        for object in (first, second):
            assert object.wait.result.now(label) == label
        first.wait.begin.now(Start(id="other", queue="two", deduplicate=label), label)


def test_a_delay_holds_over_a_crash(running: Running, label: str) -> None:
    late, soon = f"{label} late", f"{label} soon"
    running.stages.wait.begin.now(Start(id=late, delay=3600), late)
    running.stages.wait.begin.now(Start(id=soon, delay=0.01), soon)
    running.crash()
    let(running, soon)
    row = row_of(running, late)
    assert row is not None and row.status == "queued"
    running.stages.wait.cancel.now(late)
    assert began(running, label) == [soon]


def test_a_queue_that_is_not_there_is_named(running: Running) -> None:
    with pytest.raises(NotFound, match="did you mean 'slow'"):
        running.stages.wait.begin.now(Start(queue="slowly"), "x")


@pytest.mark.parametrize("delay", [-1.0, 1e11, math.inf, math.nan])
def test_a_delay_is_a_number_of_seconds(running: Running, delay: float) -> None:
    with pytest.raises(BadRequest, match=r"seconds, 0 to .* \(ten years\)"):
        running.stages.wait.begin.now(Start(delay=delay), "x")
