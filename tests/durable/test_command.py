"""`atoll flow`, on a real node."""

import json
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.durable import Start
from atoll.ipc.system.kernel import Swap
from atoll.servers.shell import exits
from atoll.servers.shell.command import run
from tests.microkernel.nodes import RealNode

from .conftest import InNode, until
from .nodes import edited, hold
from .packages.stages.interface import TooFar


class Shell:
    """The command, on the node of these tests."""

    def __init__(self, node: RealNode, capsys: pytest.CaptureFixture[str]) -> None:
        self._node = node
        self._capsys = capsys

    def __call__(self, *words: str, code: int = exits.OK) -> str:
        """What it prints, errors too."""
        assert run(["flow", *words, "--node", str(self._node.folder)]) == code
        return "".join(self._capsys.readouterr())

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def flow(real_node: RealNode, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(real_node, capsys)


@pytest.fixture
def running(request: pytest.FixtureRequest, real_node: RealNode) -> Any:
    with real_node.attach() as attached:
        yield InNode(attached, real_node)


def test_a_workflow_is_listed_shown_cancelled_and_resumed(running: InNode, flow: Shell, label: str) -> None:
    state = running.rows()
    before = str(state.head.now())
    hold(running.folder, f"{label} after 2")
    running.stages.limited.begin.now(Start(id=label), label, 3, 9)
    running.stages.reached.now(f"{label} after 2")
    hold(running.folder, "")
    (row,) = [row for row in flow.json("ls") if row["id"] == label]
    assert (row["keyspace"], row["method"], row["status"]) == ("stages", "Stages.limited", "running")
    shown = flow.json("show", label)
    assert [(step["step"], step["name"], step["state"]) for step in shown["steps"]] == [
        (1, "add", "done"),
        (2, "add", "done"),
    ]
    assert "begun by version" in flow("show", label)
    then = str(state.head.now())
    assert flow("cancel", label) == f"{label}: cancelled\n"
    assert label not in flow("ls", "--in", "stages")
    assert label in flow("ls", "--all")
    assert flow("resume", label) == f"{label}: goes on\n"
    assert running.stages.limited.result.now(label) == 3
    assert [was for was in flow.json("ls", "--at", then) if was["id"] == label] == [row]
    assert flow.json("show", label, "--at", then) == shown
    assert label not in flow("ls", "--all", "--at", before)
    assert "there is no workflow" in flow("show", label, "--at", before, code=exits.NOT_FOUND)
    told = flow("resume", label, code=exits.WRONG_INPUT)
    assert "has completed; `atoll flow fork` repeats it" in told


def test_a_workflow_that_waits_for_its_version_is_listed_with_why(
    real_node: RealNode,
    running: InNode,
    flow: Shell,
    label: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # what runs tests may say one, and lines are cut there
    with real_node.attach() as attached:
        hold(running.folder, f"{label} after 2")
        running.stages.limited.begin.now(Start(id=label), label, 3, 9)
        running.stages.reached.now(f"{label} after 2")
        hold(running.folder, "")
        another = Swap(server="stages", package=edited(tmp_path, "# another\n"), deadline=60.0)
        done = attached.kernel.swap.now(another)
        until(running, label, "waiting")
        (row,) = [row for row in flow.json("ls") if row["id"] == label]
        assert (row["status"], row["version"]) == ("waiting", done.old)
        assert f"version {done.new} does not say that it goes on with that" in row["reason"]
        (line,) = [line for line in flow("ls").splitlines() if label in line]
        assert "waiting" in line and row["reason"] in line
        attached.kernel.swap.now(Swap(server="stages", version=done.old, deadline=60.0))
        assert running.stages.limited.result.now(label) == 3
        assert label not in flow("ls")


def test_a_failed_workflow_is_forked(running: InNode, flow: Shell, label: str) -> None:
    running.stages.limited.begin.now(Start(id=label), label, 3, 1)
    with pytest.raises(TooFar):
        running.stages.limited.result.now(label)
    assert "step 2 is one too many" in flow("show", label)
    assert flow("fork", label, "2") == f"{label}-fork-2: begun, from {label}, step 2\n"
    with pytest.raises(TooFar):
        running.stages.limited.result.now(f"{label}-fork-2")
    assert flow.json("fork", label, "1", "--id", f"{label} anew")["forked"] == f"{label}, step 1"
    assert "an id that is free" in flow("fork", label, "1", "--id", label, code=exits.WRONG_INPUT)


def test_what_is_not_there_is_said_so(running: InNode, flow: Shell) -> None:
    assert "there is no workflow 'nothing'" in flow("show", "nothing", code=exits.NOT_FOUND)
    assert flow("ls", "--in", "register") == "no workflow that has not ended\n"
