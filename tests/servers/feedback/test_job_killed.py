"""kill -9 of each process in the middle of the main job: the next run ends with the very same training sets."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from atoll.ipc.errors import NodeDown
from atoll.servers.feedback.interface import Feedback
from atoll.servers.feedback.job import read_set
from atoll.servers.feedback.reviews import COUNT, SOURCES, MissingReviews, locate
from atoll.servers.storage.interface import Storage
from tests.microkernel.nodes import RealNode, wait_for_end

from .test_job import IMAGE

pytestmark = pytest.mark.timeout(600)
"""Each is three runs of the job, and a loaded machine takes its time."""

VICTIMS = ["kernel", "state", "storage", "feedback", "importer"]
MOMENTS = [
    "of 33,530 reviews are in",
    "Drawing 2,000 pairs",
    "Taking back batch",
    "Swapping feedback",
]
"""What the job prints as it begins or goes on."""


@pytest.fixture(scope="module", autouse=True)
def real_input() -> None:
    try:
        locate()
    except MissingReviews as missing:
        pytest.skip(str(missing))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    found = RealNode(tmp_path, IMAGE)
    found.boot()
    yield found
    assert found.stop() == 0, "\n".join(found.said)


def job(node: RealNode) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-u", "-P", "-m", "atoll.servers.feedback.job"],
        env=os.environ | {"ATOLL_NODE": str(node.folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def whole(node: RealNode) -> None:
    """A run that nobody disturbs."""
    with job(node) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out


def sets(node: RealNode) -> list[tuple[int, str]]:
    """Size and hash of each task's training set; everything behind it is consistent."""
    with node.attach() as attached:
        feedback = attached.open("feedback", Feedback)
        told = feedback.check.now()
        assert (told.problems, told.stray) == ([], [])
        scrubbed = attached.open("storage", Storage).verify.now()
        assert (scrubbed.damaged, scrubbed.missing, scrubbed.strangers) == ([], [], [])
        found = [read_set(feedback, source.task, told.revision) for source in SOURCES.values()]
    return [(each.records, each.content) for each in found]


def kill(node: RealNode, victim: str) -> None:
    with node.attach() as attached:
        pids = {row.server: row.pid for row in attached.kernel.ps.now()}
    if victim == "kernel":
        node.kill()
        for pid in pids.values():
            wait_for_end(pid)
        return
    os.kill(pids[victim], signal.SIGKILL)


def disturbed(node: RealNode, victim: str, moment: str) -> None:
    """A run in which the victim dies: it does not notice the death of a server, and names that of the node."""
    with job(node) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if moment in line:
                kill(node, victim)
                break
        else:
            pytest.fail(f"the job never said {moment!r}")
        process.stdout.read()
        err = process.stderr.read()
    ends = (1, f"main job: {NodeDown()}\n") if victim == "kernel" else (0, "")
    assert (process.returncode, err) == ends


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    found = RealNode(tmp_path_factory.mktemp("u"), IMAGE)
    found.boot()
    try:
        whole(found)
        told = sets(found)
    finally:
        assert found.stop() == 0
    assert COUNT - 500 <= sum(records for records, _ in told) < COUNT
    return told


def carried(node: RealNode, victim: str, moment: str, undisturbed: list[tuple[int, str]]) -> None:
    disturbed(node, victim, moment)
    if node.kernel is None:
        node.boot()
    whole(node)
    assert sets(node) == undisturbed


def test_the_next_run_makes_it_right(node: RealNode, undisturbed: list[tuple[int, str]]) -> None:
    carried(node, "kernel", MOMENTS[0], undisturbed)


@pytest.mark.soak
@pytest.mark.parametrize(("victim", "moment"), list(product(VICTIMS, MOMENTS)))
def test_the_next_run_makes_it_right_whenever_it_was(
    node: RealNode, undisturbed: list[tuple[int, str]], victim: str, moment: str
) -> None:
    carried(node, victim, moment, undisturbed)
