"""Servers in-process for tests: each on its own loop, over one store in memory that survives restarts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from atoll.ipc.inprocess import Host, HostThread, InProcess
from atoll.ipc.interface import Interface
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.naming import badge_number
from atoll.ipc.private.keyspace import Private
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.serve import Serves, needs
from atoll.ipc.system.keys import Keys
from atoll.ipc.system.measurement import Measurement
from atoll.ipc.system.state import State
from atoll.ipc.testing import VirtualClock
from atoll.servers.keys.server import PurgeRow, RingRow
from atoll.servers.keys.server import Server as KeysServer
from atoll.servers.keys.server import Settings as KeysSettings
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server as StateServer

I = TypeVar("I", bound=Interface)  # noqa: E741


class TakenAtTheirWord:
    """There is no kernel to say what asks for keys."""

    name = "the test's own word"

    async def measured(self, channel: int) -> Measurement:
        return Measurement(
            server="test", version="", level="process", wanted="process", mechanisms=[], image="test"
        )


class KnownKeys(KeysServer):
    def attestation(self) -> TakenAtTheirWord:
        return TakenAtTheirWord()


class Served(Generic[I]):
    """A running server of one interface and its clients."""

    def __init__(
        self, server: type[Serves[Any]], given: dict[str, object], clock: VirtualClock | None = None
    ) -> None:
        """Without a clock of its own the host's."""
        self._clock = clock
        self.host = Host(server, given, clock=clock)
        self._thread = HostThread(self.host, self._clock)
        self._thread.start()
        self.running = True

    @property
    def server(self) -> Any:
        return self.host.endpoint.server

    def client(self, *, badge: int = 0) -> I:
        """A proxy over a channel of its own."""
        interface: type[I] = self.host.endpoint.interfaces[0]  # type: ignore[assignment]
        return bind(interface, InProcess(self.host, interface, badge=badge))

    def gone(self, proxy: I) -> None:
        """The channel of a client closed: what the runtime tells the server then."""
        number = transport_of(proxy).number  # type: ignore[attr-defined]
        self.host.submit(lambda: self.server.client_gone(number))

    def advance(self, seconds: float) -> None:
        """Let the server's clock, which stands still otherwise, go on; returns when it has."""
        assert self._clock is not None
        self._clock.advance(seconds)

    def settle(self) -> None:
        """Return when the server waits for something that the test has to bring about."""
        assert self._clock is not None
        self._clock.settle()

    def stop(self) -> None:
        if self.running:
            self.running = False
            self._thread.close()

    def kill(self) -> None:
        """As a crash: no handler goes on, `stop` is not called."""
        self.host.kill()
        self.stop()


class Servers:
    """What `serve` started, and the store under it."""

    def __init__(self, folders: Callable[[], Path]) -> None:
        self.folder = folders
        """A new folder at each call."""
        # The store gathers commits for some microseconds, so its time must pass by itself.
        self.state: Served[State] = Served(StateServer, {"config": Settings(engine="memory")})
        self._admin = self.state.client()
        self._keys: Served[Keys] | None = None
        self._started: list[Served[Any]] = []

    def keyspace(self, name: str, kind: Any) -> Keyspace[Any]:
        badge = self._admin.make_keyspace.now(name)
        return Keyspace(self.state.client(badge=badge), kind)

    def private(self, name: str, kind: Any) -> Private[Any]:
        badge = self._admin.make_keyspace.now(name)
        return Private(self.state.client(badge=badge), kind, self.keys(badge_number(name)), name=name)

    def keys(self, badge: int = 0) -> Keys:
        """The server of keys; badge 0 is a person's."""
        if self._keys is None:
            given: dict[str, object] = {
                "config": KeysSettings(),
                "rows": self.keyspace("keys", RingRow | PurgeRow),
            }
            given |= {need: self.folder() for need in ("keyring", "root")}
            self._keys = Served(KnownKeys, given)
        return self._keys.client(badge=badge)

    def __call__(self, server: type[Serves[Any]], **given: object) -> Served[Any]:
        """Start a server; its keyspaces are those of its module's name, the same at each start. No time passes for it."""
        return self._start(server, given, VirtualClock())

    def timed(self, server: type[Serves[Any]], **given: object) -> Served[Any]:
        """Start one for which time passes by itself."""
        return self._start(server, given, None)

    def _start(
        self, server: type[Serves[Any]], given: dict[str, object], clock: VirtualClock | None
    ) -> Served[Any]:
        for need in needs(server):
            if need.kind == "keyspace" and need.name not in given:
                make = self.private if need.private else self.keyspace
                given[need.name] = make(f"{server.__module__}.{need.name}", need.type)
        served: Served[Any] = Served(server, given, clock)
        self._started.append(served)
        return served

    def close(self) -> None:
        for served in reversed(self._started):
            served.stop()
        if self._keys is not None:
            self._keys.stop()
        self.state.stop()


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(lambda: tmp_path_factory.mktemp("server"))
    yield servers
    servers.close()
