"""The main job, run as a program against a running node: `python -P -m atoll.servers.feedback.job`.

It finds the node by `ATOLL_NODE` and is a client like any other. The 33,530 reviews of reviews.py are imported;
preference pairs are drawn from them as of a revision; a batch is taken back, and what was read as of that
revision is read again; the feedback server is swapped while calls to it go on. A run after the first one
starts from what the store holds. It ends with 0 if all of that held, and prints what it measured.
"""

import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from atoll.ipc.attach import Node, connect
from atoll.ipc.errors import AtollError
from atoll.ipc.future import Future
from atoll.ipc.proxy import BoundCall
from atoll.ipc.system.kernel import ProcessRow, Swap, Swapped
from atoll.servers.importer.interface import Importer
from atoll.servers.memory.interface import Memory
from atoll.servers.storage.interface import Storage

from . import reviews
from .interface import Feedback, Pair
from .job_load import Endured, Load
from .job_report import CallTimes, Report, TaskSets, show
from .job_submission import submit_all
from .reviews import MissingReviews

R = TypeVar("R")

KEYSPACE = "feedback"
"""Where the image keeps the rows of feedback."""
SWAPPED = "feedback"
PAIRS = 2000
"""Drawn of each task."""
SEED = 1
CALLS = 2000
"""Calls timed one after the other, and again as many pipelined."""
OUTSTANDING = 64
LOAD_THREADS = 2
LOAD_CALLS = 300
"""Calls of the load before the swap begins, and again after it has ended."""
PATIENCE = 10.0
"""Seconds after which a call of the load counts as failed: a swap that hangs must end, too."""
WIDTH = 120
"""Columns of the report where there is no terminal."""
STEPS = 5
"""Lines that tell the progress where there is no terminal."""


# the parts ------------------------------------------------------------------------------------------------


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many reviews are in: a bar in a terminal, else a line now and then."""
    if console.is_terminal:
        columns = (TextColumn("reviews"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("reviews", total=total)
            yield lambda records: bar.advance(task, records)
        return
    done = told = 0

    def advance(records: int) -> None:
        nonlocal done, told
        done += records
        if done * STEPS // total > told:
            told = done * STEPS // total
            console.print(f"{done:,} of {total:,} reviews are in")

    yield advance


def time_calls(method: BoundCall[[], R], name: str, level: str) -> CallTimes:
    """How long a call without arguments takes."""
    took: list[float] = []
    for _ in range(CALLS):
        began = time.perf_counter()
        method.now()
        took.append(time.perf_counter() - began)
    began = time.perf_counter()
    outstanding: list[Future[R]] = []
    for _ in range(CALLS // OUTSTANDING):
        outstanding = [method.start() for _ in range(OUTSTANDING)]
        for future in outstanding:
            future.result()
    pipelined = CALLS // OUTSTANDING * OUTSTANDING / (time.perf_counter() - began)
    return CallTimes(name, level, statistics.median(took), pipelined)


@dataclass(frozen=True)
class Training:
    """A training set: its size, and a hash of what raters said in it, in its order.

    Batches and revisions do not go into the hash: the same feedback is the same set, however it got in.
    """

    records: int
    content: str


def read_set(feedback: Feedback, task: str, revision: int) -> Training:
    encode = msgspec.msgpack.Encoder().encode
    content = hashlib.blake2b(digest_size=16)
    records = 0
    for stored in feedback.training_set.now(task, revision):
        content.update(encode((stored.record, stored.trust)))
        records += 1
    return Training(records, content.hexdigest())


@dataclass(frozen=True)
class Reading:
    """What a task holds as of a revision: its training set, and pairs drawn from it."""

    training: Training
    pairs: list[Pair]
    pair_seconds: float


def read_task(feedback: Feedback, task: str, revision: int) -> Reading:
    training = read_set(feedback, task, revision)
    began = time.perf_counter()
    pairs = list(feedback.draw_pairs.now(task, SEED, PAIRS, revision))
    return Reading(training, pairs, time.perf_counter() - began)


def swap_under_load(
    feedback: Feedback, batches: Sequence[str], swap: Callable[[], Swapped]
) -> tuple[Swapped, Endured]:
    """Swap while threads ask for one batch after the other."""
    patient = feedback.with_(deadline=PATIENCE)

    def asking(offset: int) -> Callable[[], object]:
        place = offset

        def ask() -> object:
            nonlocal place
            place += LOAD_THREADS
            return patient.batch.now(batches[place % len(batches)])

        return ask

    with Load([asking(number) for number in range(LOAD_THREADS)]) as load:
        load.wait_for(LOAD_CALLS)
        swapped = swap()
        load.wait_for(LOAD_CALLS)
    return swapped, load.endured


# the whole ------------------------------------------------------------------------------------------------


def run(node: Node, console: Console) -> Report:
    """All of the job. Raises MissingReviews before anything is submitted, and what a call raises."""
    began = time.monotonic()
    kernel = node.kernel
    storage, feedback = node.open("storage", Storage), node.open("feedback", Feedback)
    importer = node.open("importer", Importer)
    levels = {process.server: str(process.level) for process in kernel.ps.now()}
    path = reviews.locate()

    console.print(f"Submitting {reviews.COUNT:,} reviews to node {node.name}")
    with progress(console, reviews.COUNT) as advance:
        submitted = submit_all(storage, importer, feedback, reviews.submissions(path), advance)
    if submitted.repeated:
        console.print(f"{submitted.repeated} batches were there already, from an earlier run")

    state = node.keyspace(KEYSPACE, ["read"])
    calls = [time_calls(state.head, "State.head", levels["state"])]
    if "memory" in levels:
        memory = node.open("memory", Memory)
        calls.append(time_calls(memory.statistics, "Memory.statistics", levels["memory"]))

    before = feedback.head.now()
    tasks = [source.task for source in reviews.SOURCES.values()]
    console.print(f"Drawing {PAIRS:,} pairs of each task as of revision {before}")
    readings = {task: read_task(feedback, task, before) for task in tasks}

    batch = submitted.batches[0]
    console.print(f"Taking back batch {batch}")
    rolled_back = feedback.rollback.now(batch, "the main job shows how a batch is taken back")
    after = feedback.head.now()
    sets = [_compare(feedback, task, readings[task], before, after) for task in tasks]

    console.print(f"Swapping {SWAPPED} under load")
    swapped, endured = swap_under_load(
        feedback, submitted.batches, lambda: kernel.swap.now(Swap(server=SWAPPED))
    )

    processes: list[ProcessRow] = kernel.ps.now()
    return Report(
        node=kernel.node.now(),
        processes=processes,
        protections=[kernel.protection.now(process.server) for process in processes],
        submitted=submitted,
        calls=calls,
        before=before,
        after=after,
        sets=sets,
        rolled_back=rolled_back,
        swapped=swapped,
        endured=endured,
        seconds=time.monotonic() - began,
    )


def _compare(feedback: Feedback, task: str, first: Reading, before: int, after: int) -> TaskSets:
    again = read_task(feedback, task, before)
    left = read_set(feedback, task, after)
    return TaskSets(
        task=task,
        before=first.training.records,
        after=left.records,
        content=left.content,
        before_again=again.training.records,
        same_set=again.training == first.training,
        pairs=len(first.pairs),
        pair_seconds=first.pair_seconds,
        same_pairs=again.pairs == first.pairs,
    )


def main() -> int:
    """The exit code: 0 if everything held, 1 if not, 130 after Ctrl-C."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    try:
        with connect(name="main job") as node:
            report = run(node, console)
    except (AtollError, MissingReviews) as error:
        print(f"main job: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    show(report, console)
    for sentence in report.wrong():
        print(f"main job: {sentence}", file=sys.stderr)
    return 1 if report.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
