"""Where these tests run: the server of `packages/stages` in this process, and in a real node. No test says which."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from atoll.ipc import Keyspace, Serves, testing
from atoll.ipc.system.state import State
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server as StateServer
from tests.microkernel.nodes import RealNode, booted

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
    def __init__(self, stack: ExitStack, folder: Path, server: type[Serves[Stages]] = Server) -> None:
        self.folder = folder
        self._stack = stack
        self._store = stack.enter_context(testing.running(StateServer, config=Settings(engine="memory")))
        self._badge = self._store.client(State).make_keyspace.now("stages")
        self._server = server
        self._start()

    def _start(self) -> None:
        self._running = self._stack.enter_context(
            testing.running(
                self._server,
                needs={
                    "rows": Keyspace(self.rows(), int),
                    "outside": self.folder,
                },
            )
        )
        self.stages = self._running.client(Stages)

    def crash(self) -> None:
        self._running.kill()
        self._start()

    def rows(self) -> State:
        return self._store.client(State, badge=self._badge)


class InNode:
    def __init__(self, stack: ExitStack, node: RealNode) -> None:
        self.folder = folder_of(node)
        self._attached = stack.enter_context(node.attach())
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
            yield InNode(stack, request.getfixturevalue("real_node"))
