"""kill -9 in the middle of an import on a real node: it goes on, and each batch is in once."""

import os
import signal
from itertools import count
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.durable import Start, administration
from atoll.ipc.durable.rows import number_in, steps_between
from atoll.servers.feedback.interface import Batch, Feedback
from atoll.servers.feedback.rows import head_key
from atoll.servers.importer.interface import Imported, Importer
from atoll.servers.importer.server import OWNER, PART
from atoll.servers.storage.interface import BlobRef, Storage
from tests.microkernel.nodes import RealNode, booted, wait_for_end

from ..feedback.test_job import IMAGE
from .files import batch, held, line, said

RESTART = "restart = { first = 0, most = 0, limit = 1000, within = 1 }"
NODE = IMAGE
for name in ("feedback", "importer"):
    NODE = NODE.replace(f"[server.{name}.needs]", f"[server.{name}]\n{RESTART}\n\n[server.{name}.needs]")
NODE = NODE.replace("[server.state]\n", f"[server.state]\n{RESTART}\n")
PARTS = 20
BACK, BEFORE = 3, 11
"""Of each import's batches one that was taken back before it began, and one that was there."""


def given(name: str, parts: int) -> list[Batch]:
    return [batch(f"{name}.{number}", 1 + number % 3) for number in range(parts * PART)]


def begin(attached: Attached, name: str, batches: list[Batch]) -> BlobRef:
    feedback = attached.open("feedback", Feedback)
    for number in (BACK, BEFORE):
        feedback.submit.now(batches[number])
    feedback.rollback.now(batches[BACK].id, "a test")
    file = attached.open("storage", Storage).put.now([line(each) + b"\n" for each in batches])
    attached.open("importer", Importer).bring_in.begin.now(Start(id=name), file)
    return file


def wait_for_step(attached: Attached, name: str, step: int) -> None:
    """Until that step of the import has been committed, by the feed."""
    (row,) = [each for each in workflows(attached) if each.endswith(f"/{name}")]
    start, end = steps_between(row)
    for change in attached.keyspace("imports").watch.now(0, start[:-4]):
        if any(start <= item.key < end and number_in(item.key) >= step for item in change.items):
            return
    raise AssertionError("the feed ended")


def workflows(attached: Attached) -> list[str]:
    return [row.name for row in administration.workflows(attached.keyspace("imports"), ended=True)]


def kill(node: RealNode, victims: list[str]) -> None:
    with node.attach() as attached:
        pids = {row.server: row.pid for row in attached.kernel.ps.now()}
    for victim in victims:
        if victim != "kernel":
            os.kill(pids[victim], signal.SIGKILL)
    if "kernel" in victims:
        node.kill()
        for pid in pids.values():
            wait_for_end(pid)
        node.boot()


def held_to_one_effect(node: RealNode, imports: dict[str, list[Batch]]) -> None:
    """Each import counted as if nothing had been; its batches are in feedback, written once."""
    expected: dict[str, list[object]] = {}
    with node.attach() as attached:
        importer = attached.open("importer", Importer)
        for name, batches in imports.items():
            done: Imported = importer.bring_in.result.now(name)
            taken = [each for number, each in enumerate(batches) if number not in (BACK, BEFORE)]
            assert (done.taken, done.records) == (len(taken), sum(len(each.records) for each in taken)), name
            assert (done.before, done.taken_back, done.refused) == (1, 1, 0), name
            assert [each.batch for each in done.left] == [batches[BACK].id]
            expected |= said([*taken, batches[BEFORE]])
        assert held(attached.open("feedback", Feedback)) == expected
        rows = attached.keyspace("feedback")
        assert {len(rows.history.now(head_key(id).encode())) for id in expected} == {1}
        references = attached.keyspace("references")
        assert not [item for item in references.range.now(b"", b"").items if OWNER.encode() in item.key]


def go_through(folder: Path, points: list[tuple[int, list[str]]], parts: int) -> None:
    """An import for each point: the step after which to kill, and what."""
    imports: dict[str, list[Batch]] = {}
    with booted(folder, text=NODE) as node:
        for number, (step, victims) in zip(count(), points):
            name = f"import-{number}"
            imports[name] = given(name, parts)
            with node.attach() as attached:
                begin(attached, name, imports[name])
                wait_for_step(attached, name, step)
            kill(node, victims)
            with node.attach() as attached:
                attached.open("importer", Importer).bring_in.result.now(name)
        held_to_one_effect(node, imports)


def test_an_import_goes_on_where_a_server_or_the_kernel_was_killed(tmp_path: Path) -> None:
    points = [
        (1, ["importer"]),
        (3, ["feedback"]),
        (4, ["kernel"]),
        (5, ["importer", "kernel"]),
        (6, ["importer", "feedback", "storage", "state"]),
    ]
    go_through(tmp_path, points, 6)


@pytest.mark.soak
@pytest.mark.parametrize(
    "victims", [["importer"], ["feedback"], ["state"], ["kernel"], ["importer", "kernel"]], ids="+".join
)
def test_an_import_killed_at_each_step_has_one_effect_of_each_batch(
    tmp_path: Path, victims: list[str]
) -> None:
    go_through(tmp_path, [(step, victims) for step in range(1, PARTS + 2)], PARTS)
