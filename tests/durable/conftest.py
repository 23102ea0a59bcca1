"""Where these tests run: the server of `packages/stages` in this process, and in a real node. No test says which."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from atoll.ipc import Keyspace, Serves, testing
from atoll.ipc.attach import Node as Attached
from atoll.ipc.durable.rows import OPEN, WorkflowRow, workflow_of
from atoll.ipc.durable.workflows import Workflows
from atoll.ipc.local_view import after_prefix
from atoll.ipc.system.state import State
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server as StateServer
from tests.microkernel.nodes import RealNode, booted

from .failing import Failing
from .nodes import IMAGE, folder_of, kill_server
from .packages.stages.interface import Stages
from .packages.stages.server import Server


class Running(Protocol):
    """A server with durable methods that can be ended and started again."""

    stages: Stages
    folder: Path
    """Which it writes to outside of the store."""

    def crash(self) -> None:
        """End it as a crash would, and start it again over the same rows."""
        ...

    def rows(self) -> State:
        """Its keyspace, for whom has the right to write there."""
        ...


class Here:
    def __init__(self, stack: ExitStack, folder: Path, version: str = "") -> None:
        self.folder = folder
        self._stack = stack
        self._store = stack.enter_context(testing.running(StateServer, config=Settings(engine="memory")))
        self._badge = self._store.client(State).make_keyspace.now("stages")
        self.store = Failing(self.rows())
        self._start(Server, version)

    def _start(self, server: type[Serves[Stages]], version: str) -> None:
        self._running = self._stack.enter_context(
            testing.running(
                server,
                needs={
                    "rows": Keyspace(self.store.state, int),
                    "outside": self.folder,
                },
                version=version,
            )
        )
        self.stages = self._running.client(Stages)

    def crash(self, *, version: str = "", server: type[Serves[Stages]] = Server) -> None:
        """What is started then may be another version."""
        self._running.kill()
        self._start(server, version)

    def pause(self) -> None:
        """As before a swap."""
        self._on_loop(Workflows.pause)

    def go_on(self) -> None:
        """As after a swap that was refused."""
        self._on_loop(Workflows.go_on)

    @property
    def workflows(self) -> Workflows:
        found = self._running._host.endpoint.workflows
        assert found is not None
        return found

    def _on_loop(self, act: Callable[[Workflows], None]) -> None:
        workflows = self.workflows
        self._running._host.submit(lambda: act(workflows))

    def rows(self) -> State:
        return self._store.client(State, badge=self._badge)


class InNode:
    def __init__(self, attached: Attached, node: RealNode) -> None:
        self.folder = folder_of(node)
        self._attached = attached
        self.stages = self._attached.open("stages", Stages)

    def crash(self) -> None:
        kill_server(self._attached, "stages")

    def rows(self) -> State:
        return self._attached.keyspace("stages")


@pytest.fixture(scope="session")
def real_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("durable"), text=IMAGE) as node:
        yield node


@pytest.fixture(params=["in this process", "in a node"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    with ExitStack() as stack:
        if request.param == "in this process":
            yield Here(stack, tmp_path)
        else:
            node: RealNode = request.getfixturevalue("real_node")
            yield InNode(stack.enter_context(node.attach()), node)


@pytest.fixture
def label() -> str:
    """The workflow of this test, whatever others have left in the node."""
    return uuid4().hex[:8]


def effects(running: Running, label: str) -> dict[str, int]:
    """What a workflow has done, by what follows its label."""
    counts = running.stages.counts.now()
    return {key.removeprefix(f"{label} "): value for key, value in counts.items() if key.startswith(label)}


def row_of(running: Running, id: str) -> WorkflowRow | None:
    """The row of a workflow that has not ended."""
    items = running.rows().range.now(OPEN, after_prefix(OPEN)).items
    return next((row for item in items if (row := workflow_of(item.value or b"")).id == id), None)


def until(running: Running, id: str, status: str) -> WorkflowRow:
    """The row of a workflow once it has that status, by the feed."""
    state = running.rows()
    for change in state.watch.now(0, OPEN):
        for item in change.items:
            row = None if item.value is None else workflow_of(item.value)
            if row is not None and row.id == id and row.status == status:
                return row
    raise AssertionError("the feed ended")
