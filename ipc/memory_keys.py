"""Keys for tests of servers with private keyspaces: the node's own server of keys, over a folder that goes with the test.

As the store in memory it is served where it is called, and found by its name when it is first asked for. Whoever asks
is taken at their word: there is no kernel to say what they are.
"""

import importlib
import tempfile
from pathlib import Path
from typing import Any, Final

from .bound import bind
from .context import Clock
from .interface import rights
from .memory_store import Here, MemoryStore
from .naming import badge_number
from .private.keyspace import Private
from .serve import Endpoint
from .serve import bind as bind_server
from .system.keys import Keys
from .system.measurement import Measurement

SERVER: Final = "atoll.servers.keys"
_ALL: Final = frozenset(rights(Keys))


class _Taken:
    name = "the test's own word"

    async def measured(self, channel: int) -> Measurement:
        return Measurement(
            server="test", version="", level="process", wanted="process", mechanisms=[], image="test"
        )


class MemoryKeys:
    """Keys for the private keyspaces of one store."""

    def __init__(self, store: MemoryStore) -> None:
        package: Any = importlib.import_module(f"{SERVER}.server")

        class Known(package.Server):  # type: ignore[misc]
            def attestation(self) -> _Taken:
                return _Taken()

        self._store = store
        self._folder = tempfile.TemporaryDirectory(prefix="atoll-keys-")
        self.clock: Clock = store.clock
        self.requests = 0
        self._channels = 0
        folder = Path(self._folder.name)
        given: dict[str, object] = {"rows": store.keyspace(package.RingRow | package.PurgeRow, "keys")}
        for need in ("keyring", "root"):
            given[need] = folder / need
            (folder / need).mkdir()
        self.endpoint: Endpoint = bind_server(Known, given)

    async def start(self) -> None:
        """On the loop of the server that is to use them, before it does."""
        await self.endpoint.server.start()

    def keys(self, badge: int = 0, held: frozenset[str] = _ALL) -> Keys:
        """A capability, over a channel of its own; badge 0 is a person's."""
        self._channels += 1
        return bind(Keys, Here(self, badge, held, self._channels))

    def keyspace(self, kind: Any, name: str = "rows") -> Private[Any]:
        """The private keyspace of that name, made if need be, with rows of type `kind`."""
        badge = self._store.state().make_keyspace.start(name).result()
        return Private(self._store.state(badge), kind, self.keys(badge_number(name)), name=name)

    def close(self) -> None:
        self._folder.cleanup()
