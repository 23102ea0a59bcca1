"""An importer over a real feedback server, a real storage server and a store, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.proxy import bind, transport_of
from atoll.servers.feedback.interface import Feedback
from atoll.servers.feedback.server import Server as FeedbackServer
from atoll.servers.feedback.server import Settings as FeedbackSettings
from atoll.servers.importer.interface import Importer
from atoll.servers.importer.server import Server
from atoll.servers.storage.interface import Storage
from atoll.servers.storage.server import Server as StorageServer
from atoll.servers.storage.server import Settings as StorageSettings

SUBMITTER = 8
"""The importer's badge at feedback."""
GRACE = 3600.0


class Node:
    def __init__(self, serve: Any, folder: Path) -> None:
        self._serve = serve
        self.storage_served = serve(
            StorageServer, folder=folder, config=StorageSettings(grace=GRACE, collect_every=0.0)
        )
        self.storage: Storage = self.storage_served.client()
        self._served = serve(
            FeedbackServer, storage=self.storage_served.client(badge=3), config=FeedbackSettings()
        )
        self.feedback: Feedback = self._served.client()

    def importer(self, wrap: Callable[[Any], Any] = lambda transport: transport) -> Any:
        """Another process of it, over the same rows; its ways to the others as `wrap` makes them."""
        own = self._serve.keyspace("imports", int)
        own.state = bind(type(own.state), wrap(transport_of(own.state)))
        return self._serve.timed(
            Server,
            rows=own,
            storage=bind(Storage, wrap(transport_of(self.storage_served.client(badge=4)))),
            feedback=bind(Feedback, wrap(transport_of(self._served.client(badge=SUBMITTER)))),
        )


@pytest.fixture
def node(serve: Any, tmp_path: Path) -> Node:
    return Node(serve, tmp_path)


@pytest.fixture
def importer(node: Node) -> Importer:
    client: Importer = node.importer().client(badge=5)
    return client
