"""A server author's test: a server with a keyspace, in this process, without a store to set up."""

import pytest

from atoll.ipc import testing
from atoll.ipc.errors import NotFound
from atoll.ipc.memory_store import MemoryStore

from .test_keyspace import Counter, Server


def test_the_aim_of_the_sdk() -> None:
    with testing.node(Server) as counter:
        assert counter.add.now("x") == 1
        futures = [counter.add.start("x") for _ in range(10)]
        assert [future.result(10) for future in futures] == list(range(2, 12))


def test_servers_over_one_memory_store_share_transactions() -> None:
    store = MemoryStore()
    assert store.state().make_keyspace.start("a").result() == store.state().make_keyspace.start("a").result()
    rows = store.keyspace(int, "a")
    assert rows.put("k", 3).result() > 0
    with testing.node(Server, needs={"rows": store.keyspace(int, "b")}) as counter:
        assert isinstance(counter, Counter)
        with pytest.raises(NotFound):
            counter.add.now("x", -1)
