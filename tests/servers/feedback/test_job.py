"""The main job's parts over real servers, and the whole of it on a node that boots."""

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from rich.console import Console

from atoll.ipc import connect
from atoll.ipc.errors import NotFound
from atoll.servers.feedback.interface import Batch, BatchInfo, Feedback
from atoll.servers.feedback.job import progress, read_set, read_task, time_calls
from atoll.servers.feedback.job_load import Load
from atoll.servers.feedback.job_submission import FILE, Submitted, submit_all
from atoll.servers.feedback.records import Rating
from atoll.servers.feedback.reviews import COUNT, MissingReviews, Submission, locate, read
from atoll.servers.feedback.server import Server, Settings
from atoll.servers.importer.interface import Importer
from atoll.servers.importer.server import Server as ImporterServer
from atoll.servers.storage.interface import BlobRef, Storage
from atoll.servers.storage.server import Server as StorageServer
from atoll.servers.storage.server import Settings as StorageSettings

from ..booted import booted

TASK = "film"
BATCHES = 2 * FILE + 3


class Servers(NamedTuple):
    storage: Storage
    feedback: Feedback
    importer: Importer

    def submit_all(
        self, given: Iterable[Submission], advance: Callable[[int], None] = lambda _: None
    ) -> Submitted:
        return submit_all(self.storage, self.importer, self.feedback, given, advance)


@pytest.fixture
def servers(serve: Callable[..., Any], tmp_path: Path) -> Servers:
    storage = serve(StorageServer, folder=tmp_path, config=StorageSettings(collect_every=0.0))
    served = serve(Server, storage=storage.client(badge=3), config=Settings())
    importer = serve(ImporterServer, storage=storage.client(badge=4), feedback=served.client(badge=9))
    return Servers(storage.client(), served.client(badge=8), importer.client())


def submissions(texts_each: int = 4) -> Iterator[Submission]:
    for batch in range(BATCHES):
        texts = [f"review {batch}.{number}".encode() for number in range(texts_each)]
        records = [
            Rating(
                rater="r",
                role="critic",
                trust=0.5,
                task=TASK,
                text=BlobRef.of(text),
                score=float(number % 2),
            )
            for number, text in enumerate(texts)
        ]
        yield Submission(texts, Batch(f"b-{batch:03d}", list(records)))


def stored(feedback: Feedback) -> list[BatchInfo]:
    return [info for info in feedback.batches.now() if info.status == "stored"]


def test_everything_is_in_when_submit_all_returns(servers: Servers) -> None:
    told: list[int] = []
    done = servers.submit_all(submissions(), told.append)
    assert told == [4 * FILE, 4 * FILE, 4 * 3]
    assert (done.reviews, done.repeated, done.renamed) == (4 * BATCHES, 0, 0)
    assert done.bytes == sum(len(text) for each in submissions() for text in each.texts)
    assert done.batches == [each.batch.id for each in submissions()]
    assert len(stored(servers.feedback)) == BATCHES
    kept = servers.storage.get_many.now(
        [BlobRef.of(text).hash for each in submissions() for text in each.texts]
    )
    assert kept == [text for each in submissions() for text in each.texts]


def test_a_second_run_starts_from_what_the_store_holds(servers: Servers) -> None:
    servers.submit_all(submissions())
    first = stored(servers.feedback)
    again = servers.submit_all(submissions())
    assert (again.repeated, again.renamed) == (BATCHES, 0)
    assert stored(servers.feedback) == first


def test_a_batch_taken_back_goes_in_under_a_further_id_each_time(servers: Servers) -> None:
    for name in ("b-000", "b-000.2", "b-000.3"):
        done = servers.submit_all(submissions())
        assert done.batches[0] == name
        assert done.repeated == (0 if name == "b-000" else BATCHES - 1)
        assert len(stored(servers.feedback)) == BATCHES
        servers.feedback.rollback.now(name, "a test")


def test_what_is_refused_is_told_and_the_others_are_in(servers: Servers) -> None:
    stood = next(submissions()).batch
    other = Rating(rater="r", role="critic", trust=0.5, task=TASK, text="another one", score=0.5)
    servers.feedback.submit.now(Batch(stood.id, [other]))
    done = servers.submit_all(submissions())
    assert [each.batch for each in done.refused] == [stood.id]
    assert (len(done.batches), done.reviews) == (BATCHES - 1, 4 * (BATCHES - 1))


def test_a_reading_is_the_same_after_a_roll_back(servers: Servers) -> None:
    servers.submit_all(submissions())
    revision = servers.feedback.statistics.now().revision
    first = read_task(servers.feedback, TASK, revision)
    servers.feedback.rollback.now("b-001", "a test")
    again = read_task(servers.feedback, TASK, revision)
    assert (first.training, first.pairs) == (again.training, again.pairs)
    assert first.training.records == 4 * BATCHES
    after = read_set(servers.feedback, TASK, servers.feedback.statistics.now().revision)
    assert after.records == 4 * (BATCHES - 1)
    assert after.content != first.training.content


def test_a_load_counts_every_call_and_names_the_first_error(servers: Servers) -> None:
    servers.submit_all(submissions())
    numbers = itertools.count()

    def call() -> object:
        next(numbers)
        return servers.feedback.batch.now("b-000")

    with Load([call, call]) as load:
        load.wait_for(20)
        load.wait_for(20)
    endured = load.endured
    assert endured.calls == next(numbers) >= 40
    assert (endured.errors, endured.first_error) == (0, "")
    assert 0 < endured.longest < endured.seconds

    def fail() -> object:
        raise NotFound("batch", "b-999")

    with Load([fail]) as failing:
        failing.wait_for(1_000_000_000)  # an error ends the wait: what hangs after a swap would not end it
    assert failing.endured.errors == failing.endured.calls >= 1
    assert failing.endured.first_error.startswith("NotFound: ")


def test_a_load_that_is_wrong_itself_does_not_wait_for_ever() -> None:
    with Load([lambda: 1 // 0]) as load, pytest.raises(RuntimeError, match="ZeroDivisionError"):
        load.wait_for(1)
    with pytest.raises(RuntimeError, match="the load itself failed"):
        assert load.endured


def test_calls_are_timed(servers: Servers) -> None:
    took = time_calls(servers.storage.statistics, "Storage.statistics", "process")
    assert took.seconds > 0 and took.pipelined > 0


def test_without_a_terminal_progress_is_a_few_lines() -> None:
    out = StringIO()
    with progress(Console(file=out), 1000) as advance:
        for _ in range(100):
            advance(10)
    lines = out.getvalue().splitlines()
    assert lines[0] == "200 of 1,000 reviews are in"
    assert lines[-1] == "1,000 of 1,000 reviews are in"
    assert len(lines) == 5


IMAGE = """
[image]
name = "job"
about = "What the main job needs, for a test"

[node]
level = "process"
account = "small"

[account.small]
channels = 64
capabilities = 4096
buffers = "16MiB"
descriptors = 256
pending = 1024

[keyspace.references]
[keyspace.feedback]
[keyspace.imports]
[keyspace.keys]

[keyspace.words]
private = true

[server.state]
needs = {}

[server.storage.needs]
folder = { folder = "blobs" }
references = { keyspace = "references", rights = ["read", "write", "history"] }

[server.keys.needs]
keyring = { folder = "keyring" }
root = { folder = "root" }
rows = { keyspace = "keys", rights = ["read", "write"] }

[server.feedback.needs]
rows = { keyspace = "feedback", rights = ["read", "write", "history"] }
words = { keyspace = "words", rights = ["read", "write", "history"] }
storage = { server = "storage", rights = ["read", "write"] }

[server.importer.needs]
rows = { keyspace = "imports", rights = ["read", "write"] }
storage = { server = "storage", rights = ["read", "write"] }
feedback = { server = "feedback", rights = ["submit"], service = "bulk" }
"""


def run_job(folder: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "atoll.servers.feedback.job"],
        env=os.environ | {"ATOLL_NODE": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def export(folder: Path, *arguments: str) -> tuple[str, int]:
    """What it said, and the most bytes that it had resident."""
    command = [sys.executable, "-P", "-m", "atoll.servers.feedback.export", *arguments]
    environment = os.environ | {"ATOLL_NODE": str(folder)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    return said, used.ru_maxrss * 1024


def check_export(folder: Path, revision: int, work: Path) -> None:
    """The reviews come out as they are in the package, as of before any was taken back, in a share of their size."""
    at, (small, large) = f"--as-of={revision}", (work / "small.jsonl", work / "large.jsonl")
    _, floor = export(folder, "film-review.imdb", at, "--kind=pairs", "--count=10", f"--output={small}")
    said, peak = export(folder, "film-review.imdb", at, "--kind=unpaired", f"--output={large}")
    content = large.read_bytes()
    hash = hashlib.blake2b(content, digest_size=32).hexdigest()
    assert said == f"25000 rows of film-review.imdb as of revision {revision}: {hash}\n"
    assert len(content) > 30_000_000
    assert peak - floor < len(content) / 4
    rows = [msgspec.json.decode(line) for line in content.splitlines()]
    told = Counter((row["completion"], row["label"]) for row in rows)
    assert told == Counter(
        (each.text, each.good) for each in read(locate()) if each.source.task.endswith("imdb")
    )
    assert len(small.read_bytes().splitlines()) == 10


@pytest.mark.timeout(600)  # a loaded machine takes its time over 100,000 texts
def test_the_whole_job_runs_on_a_node_twice(tmp_path: Path) -> None:
    try:
        locate()
    except MissingReviews as missing:
        pytest.skip(str(missing))
    image = tmp_path / "job.toml"
    image.write_text(IMAGE)
    with booted(image, tmp_path / "n") as folder:
        first, second = run_job(folder), run_job(folder)
        assert (first.returncode, first.stderr) == (0, "")
        assert (second.returncode, second.stderr) == (0, "")
        with connect(str(folder)) as node:
            feedback = node.open("feedback", Feedback)
            assert feedback.batch.now("reviews.00000").status == "rolled back"
            assert feedback.batch.now("reviews.00000.2").status == "rolled back"
            told = feedback.statistics.now()
            assert told.rolled_back == 2
            assert told.records == COUNT - feedback.batch.now("reviews.00000").records
            before = feedback.batch.now("reviews.00000.2").revision - 1
        check_export(folder, before, tmp_path)
    assert "earlier run" not in first.stdout
    batches = told.batches - 1
    assert f"{batches - 1} of the {batches} batches were in the store from an earlier run" in second.stdout
    for output in (first.stdout, second.stdout):
        assert "33,530 of 33,530 reviews are in" in output
        assert ", 0 errors" in output
        assert output.count("the same again") == 2
        for server in ("state", "storage", "feedback", "importer"):
            assert re.search(rf"^{server} +process +process +\d+", output, re.MULTILINE)


def test_without_a_node_the_job_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = run_job(tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("main job: node ") and done.stderr.count("\n") == 1
