"""A feedback server over a real storage server and store, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from atoll.servers.feedback.interface import Feedback
from atoll.servers.feedback.server import Server, Settings
from atoll.servers.storage.interface import Storage
from atoll.servers.storage.server import Server as StorageServer
from atoll.servers.storage.server import Settings as StorageSettings

GRACE = 3600.0
SUBMITTER = 8
"""The badge of `Node.feedback`."""


class Node(NamedTuple):
    feedback: Feedback
    storage: Storage
    storage_served: Any
    served: Any


@pytest.fixture
def start(serve: Callable[..., Any], tmp_path: Path) -> Callable[..., Node]:
    def started(config: Settings = Settings(batch_records=50)) -> Node:  # noqa: B008 (frozen)
        storage = serve(
            StorageServer, folder=tmp_path, config=StorageSettings(grace=GRACE, collect_every=0.0)
        )
        served = serve(Server, storage=storage.client(badge=3), config=config)
        return Node(served.client(badge=SUBMITTER), storage.client(), storage, served)

    return started


@pytest.fixture
def node(start: Callable[..., Node]) -> Node:
    return start()
