"""What is recorded of a server is not its to change, also when it was taken over: it adds to its record, and no more."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import AtollError, NotAllowed
from atoll.ipc.system.calls import ChunkRow, keyspace_of
from atoll.ipc.system.records import after, decode
from atoll.ipc.system.state import Item, State
from tests.microkernel.nodes import RealNode, booted

from .conftest import PACKAGES, interface

PROGRAM = Path(sys.executable).parent / "atoll"
IMAGE = f"""
[image]
name = "own-record"

[node]
level = "process"

[keyspace.audit]

[server.state]
needs = {{}}

[server.rewriter]
package = "{PACKAGES}/rewriter"
record = true
audit = "full"
restart = {{ first = 0, most = 0, limit = 1000, within = 1 }}
needs.audit = {{ keyspace = "audit", rights = ["append"] }}
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    with booted(tmp_path, text=IMAGE) as node:
        yield node


@pytest.fixture
def attached(node: RealNode) -> Iterator[Attached]:
    with node.attach() as attached:
        yield attached


def said(node: RealNode, *words: str) -> Any:
    done = subprocess.run(
        [PROGRAM, *words, "--json", "--node", str(node.folder)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def rows(state: State) -> list[Item]:
    return state.range.now(ChunkRow.table, after(ChunkRow.table)).items


def deeds(state: State, at_least: int) -> list[Item]:
    """The rows of its tapes, once so many processes have some."""

    def processes() -> int:
        return len({decode(ChunkRow, item.value or b"").process for item in rows(state)})

    head = state.head.now()
    if processes() < at_least:
        next(change for change in state.watch.now(head) if processes() >= at_least)
    return rows(state)


def test_each_way_is_refused_and_recorded(node: RealNode, attached: Attached) -> None:
    rewriter: Any = attached.open("rewriter", interface("rewriter", "Rewriter"))
    state = attached.keyspace(keyspace_of("rewriter"), ["read", "history"])
    rewriter.note.now("a", "noted")
    with pytest.raises(NotAllowed):
        rewriter.note.now("a", "noted otherwise")
    rewriter.deed.now("to be hidden")
    before = deeds(state, 1)
    tries = rewriter.tries.now()
    assert tries == {
        "write over it": "NotAllowed",
        "delete it": "NotAllowed",
        "add it again": "NotAllowed",
        "add it again with others": "NotAllowed",
        "add its deletion": "BadRequest",
        "under an id": "NotAllowed",
        "in a transaction": "NotAllowed",
        "read it": "NotAllowed",
        "roll it back": "NotAllowed",
        "drop a pin": "NotAllowed",
        "another retention": "NotAllowed",
        "write over its audit": "NotAllowed",
        "add to its audit again": "NotAllowed",
    }
    assert rows(state)[: len(before)] == before
    assert all(len(state.history.now(item.key)) == 1 for item in rows(state))
    assert len(said(node, "calls", "rewriter", "--method", "deed")) == 1
    refused = {row["what"] for row in said(node, "refused", "rewriter")}
    assert {f"state, State.{method}: the capability lacks the right or the class of service" for method in (
        "append", "commit", "begin", "get", "history", "unpin", "make_keyspace"
    )} <= refused  # fmt: skip
    held = [row for row in said(node, "caps", "rewriter") if row["interface"] == "State"]
    assert [row["rights"] for row in held] == [["append"], ["append"]]


def test_the_kernel_writes_over_nothing_for_it(node: RealNode, attached: Attached) -> None:
    """A tape that says of itself that nothing was put away is put away from where its rows end."""
    rewriter: Any = attached.open("rewriter", interface("rewriter", "Rewriter"))
    state = attached.keyspace(keyspace_of("rewriter"), ["read", "history"])
    rewriter.deed.now("to be hidden")
    before = deeds(state, 1)
    with pytest.raises(AtollError):
        rewriter.winds_back.now()
    rewriter.deed.now("of the next process")
    deeds(state, 2)
    for item in before:
        assert [version.value for version in state.history.now(item.key)] == [item.value]
    assert len(said(node, "calls", "rewriter", "--method", "deed")) == 2
