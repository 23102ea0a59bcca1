"""The public test kit: a server in the test's own process, with the same proxies, errors and deadlines.

    with testing.node(Server, config=Settings(step=2)) as counter:
        assert counter.add.now("x") == 2

No kernel, no processes, no socket. Keyspace needs are bound to an in-memory store. `running` gives more:
further clients with chosen rights and badge, faults at chosen steps, a crash, a virtual clock.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import trio
import trio.testing

from . import serve
from .bound import bind
from .capability import Cap
from .faults import Delay, Drop, Fault, FaultyTransport, Overload
from .inprocess import IN_HAND, Host, HostThread, InProcess
from .interface import Interface, rights
from .memory_keys import MemoryKeys
from .memory_store import MemoryStore
from .serve import Config, Serves
from .system.keys import Purge

__all__ = ["Delay", "Drop", "FaultyTransport", "Overload", "Running", "VirtualClock", "node", "running"]

I = TypeVar("I", bound=Interface)  # noqa: E741
EPOCH = 1_000_000_000.0
"""What a virtual clock's `time()` starts from: seconds since 1970."""


class VirtualClock(trio.abc.Clock):
    """Time that passes only when the test says so. Deadlines, sleeps and `current().now()` of a server follow
    it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._token: trio.lowlevel.TrioToken | None = None

    def start_clock(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0 if deadline <= self._now else math.inf

    def time(self) -> float:
        return EPOCH + self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass; returns when the server has done all that this made it do."""
        if self._token is None:
            self._now += seconds
            return
        trio.from_thread.run(self._advance, seconds, trio_token=self._token)

    async def _advance(self, seconds: float) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self._now += seconds
        await trio.testing.wait_all_tasks_blocked()

    def settle(self) -> None:
        """Return when the server waits for something that the test has to bring about."""
        self.advance(0.0)


class Running:
    """A server in this process, until its `with` block ends."""

    def __init__(self, host: Host, thread: HostThread, keys: MemoryKeys | None = None) -> None:
        self._host = host
        self._thread = thread
        self._keys = keys
        self._faulty: list[FaultyTransport] = []

    @property
    def server(self) -> Serves[Any]:
        """The instance. Its loop runs in another thread: look at it when nothing is in hand."""
        return self._host.endpoint.server

    def client(
        self,
        interface: type[I],
        *faults: Fault,
        badge: int = 0,
        rights: frozenset[str] | set[str] | None = None,
    ) -> I:
        """A proxy with a capability of its own: on the object `badge`, with these rights (None: all)."""
        inner = self._transport(interface, badge, rights)
        if not faults:
            return bind(interface, inner)
        faulty = FaultyTransport(inner, *faults)
        self._faulty.append(faulty)
        return bind(interface, faulty)

    def release(self) -> None:
        """Let the messages that `Delay` holds back arrive."""
        for transport in self._faulty:
            transport.release()

    def capability(
        self, interface: type[I], *, badge: int = 0, rights: frozenset[str] | set[str] | None = None
    ) -> Cap[I]:
        """A capability to pass in an argument."""
        return Cap(interface, self._transport(interface, badge, rights))

    def _transport(self, interface: type[I], badge: int, held: frozenset[str] | set[str] | None) -> InProcess:
        if interface not in self._host.endpoint.interfaces:
            raise TypeError(f"{self._host.name} does not serve {interface.__name__}")
        unknown = sorted(set(held or ()) - set(rights(interface)))
        if unknown:
            raise TypeError(
                f"{interface.__name__} has no right {unknown[0]!r}; it has {', '.join(rights(interface))}"
            )
        return InProcess(self._host, interface, badge=badge, held=None if held is None else frozenset(held))

    def purge(self, subject: str) -> Purge:
        """What `atoll purge` does: of a server with a private keyspace that was bound here."""
        if self._keys is None:
            raise TypeError(f"{self._host.name} has no private keyspace of the kit's")
        return self._host.wait_for(self._keys.keys().purge, subject)

    def kill(self) -> None:
        """End the server as a crash would: what is in hand ends with `PeerDied`, and so does what comes
        after. On return it is dead, and another may take its place."""
        self._thread.kill()


@contextmanager
def running(
    server: type[Serves[Any]],
    *,
    config: Config | None = None,
    needs: Mapping[str, object] | None = None,
    clock: VirtualClock | None = None,
    seed: int | None = None,
    in_hand: int = IN_HAND,
    version: str = "",
) -> Iterator[Running]:
    """A server in this process. `config` binds its only configuration; `needs` the other needs by name;
    `seed` makes the chance of its calls repeatable; `in_hand`: how many calls it takes at once before
    `Overloaded`; `version`: of its package, as workflows remember it."""
    given: dict[str, object] = dict(needs or {})
    store: MemoryStore | None = None  # one for all: a transaction may span keyspaces
    keys: MemoryKeys | None = None
    with ExitStack() as ends:
        for need in serve.needs(server):
            if need.kind == "config" and config is not None and need.name not in given:
                given[need.name] = config
                config = None
            elif need.kind == "keyspace" and need.name not in given:
                store = store or MemoryStore()
                if not need.private:
                    given[need.name] = store.keyspace(need.type, need.name)
                    continue
                if keys is None:
                    keys = MemoryKeys(store)
                    ends.callback(keys.close)
                given[need.name] = keys.keyspace(need.type, need.name)
        if config is not None:
            raise TypeError(f"{server.__name__} has no configuration to bind: leave out config=")
        before = None if keys is None else keys.start
        host = Host(server, given, clock=clock, seed=seed, in_hand=in_hand, version=version, before=before)
        thread = HostThread(host, clock)
        thread.start()
        ends.callback(thread.close)
        yield Running(host, thread, keys)


def node(
    server: type[Serves[I]],
    *,
    config: Config | None = None,
    needs: Mapping[str, object] | None = None,
    clock: VirtualClock | None = None,
    seed: int | None = None,
) -> AbstractContextManager[I]:
    """A proxy of a server's only interface, the server running in this process. See `running`."""
    return _only(server, config, needs, clock, seed)


@contextmanager
def _only(
    server: Any,
    config: Config | None,
    needs: Mapping[str, object] | None,
    clock: VirtualClock | None,
    seed: int | None,
) -> Iterator[Any]:
    if len(server.interfaces) != 1:
        raise TypeError(
            f"{server.__name__} serves {len(server.interfaces)} interfaces: use testing.running(...).client"
        )
    with running(server, config=config, needs=needs, clock=clock, seed=seed) as found:
        yield found.client(server.interfaces[0])
