"""The store's own server over any engine, called on this thread under a clock of the test's, whose compaction goes on
when it is told to, and which can die between any two of its steps.
"""

from collections.abc import Callable
from typing import Final

from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.serve import bind
from atoll.ipc.system.state import Retention, State
from atoll.servers.state.engine import Engine
from atoll.servers.state.opening import Settings
from atoll.servers.state.ownership import settle_format
from atoll.servers.state.server import Server
from atoll.servers.state.sweep import WORK

GRACE: Final = 5.0
REMEMBER: Final = 20.0


class Hands:
    """Seconds; whole ones, so that no time is rounded."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return 0.0


class Kept(MemoryStore):
    """`make` gives the engine as a new process finds it."""

    def __init__(self, make: Callable[[], Engine], work: int = WORK) -> None:
        """`work`: how much a step does."""
        self.clock = self.hands = Hands()
        self.requests = 0
        self._channels = 0
        self._make = make
        self._work = work
        self.server = self._start()

    def _start(self) -> Server:
        engine = self._make()

        class Opened(Server):
            open_engine = staticmethod(lambda settings: (engine, settle_format(engine)))

        self.endpoint = bind(Opened, {"config": Settings(grace=GRACE, remember=REMEMBER)})
        server = self.endpoint.server
        assert isinstance(server, Opened)
        try:
            server.start().send(None)
        except StopIteration:
            self.compacts = False
            server._passes.compactor.work = self._work
            return server
        raise AssertionError("the store's start waited")

    def die(self) -> None:
        """As after `kill -9`: what is durable is there, all else is not."""
        self.server._engine.close()
        self.server = self._start()

    def keyspace_state(self, name: str, retention: Retention | None = None) -> State:
        """A capability on a keyspace, which is made."""
        return self.state(self.state().make_keyspace.start(name, retention or Retention()).result())

    # compaction, step by step

    def begin(self) -> bool:
        self.compacts = self.server._passes.begin(int(self.hands.now * 1e9))
        return self.compacts

    def step(self) -> bool:
        """Whether there is more to do."""
        self.compacts = self.compacts and self.server._passes.compactor.step()
        return self.compacts

    def compact(self) -> None:
        """A whole pass."""
        self.begin()
        while self.compacts:
            self.step()
        if self.server._passes.allowed():
            self.server._passes.record(int(self.hands.now * 1e9))
