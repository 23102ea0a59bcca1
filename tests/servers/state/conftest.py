"""A store under test; whatever a test wrote is walked by the check afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.servers.state.check import check, check_folder
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.memory_engine import MemoryEngine
from tests.conformance.store.store_engines import ETCD

from .history_kit import Kit


@pytest.fixture(params=["lmdb", "memory", "memory with etcd's limits"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    if request.param == "lmdb":
        made = Kit(lambda: LmdbEngine(tmp_path / "store", map_size=1 << 30, limit=512 << 20))
    else:
        model = MemoryEngine(**({} if request.param == "memory" else ETCD))
        made = Kit(lambda: model)
    yield made
    report = check(made.engine)
    made.engine.close()
    assert not report.breaches


@pytest.fixture
def whole() -> Callable[[Path], int]:
    """Asserts that the store in a folder is whole; gives its number of revisions."""

    def look(folder: Path) -> int:
        report = check_folder(folder)
        assert not report.breaches
        return report.revisions

    return look
