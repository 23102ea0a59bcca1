"""One suite, every engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.servers.state.engine import Engine

from .store_engines import ETCD, Store, lmdb_store, memory_store


@pytest.fixture(params=["lmdb", "memory", "memory with etcd's limits"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "lmdb":
        made = lmdb_store(tmp_path / "store")
    elif request.param == "memory":
        made = memory_store()
    else:
        made = memory_store(**ETCD)
    yield made
    made.engine.close()


@pytest.fixture
def engine(store: Store) -> Engine:
    return store.engine
