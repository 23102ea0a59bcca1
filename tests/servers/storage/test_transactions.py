"""References are written by themselves: when a transaction ends, and how, no blob waits for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from atoll.ipc.errors import BadRequest, QuotaExceeded
from atoll.ipc.keyspace import Keyspace
from atoll.servers.storage.interface import NoSuchBlob, Storage
from atoll.servers.storage.server import Server, Settings

GRACE = 3600.0
QUOTA = 1_000_000


@pytest.fixture
def served(serve: Callable[..., Any], tmp_path: Path) -> Any:
    return serve(Server, folder=tmp_path, config=Settings(grace=GRACE, collect_every=0.0, quota=QUOTA))


@pytest.fixture
def rows(serve: Any) -> Keyspace[int]:
    """Of a client, who has the transactions."""
    found: Keyspace[int] = serve.keyspace("client.rows", int)
    return found


async def put(storage: Storage, size: int) -> list[bytes]:
    return [ref.hash for ref in await storage.put_many([os.urandom(50_000) for _ in range(size // 50_000)])]


async def test_no_row_names_what_was_collected_while_its_transaction_was_open(
    served: Any, rows: Keyspace[int]
) -> None:
    storage: Storage = served.client(badge=7)
    (hash,) = await put(storage, 50_000)
    async with rows.transaction() as tx:
        with pytest.raises(BadRequest, match="a call of its own"):
            await tx.share(storage).refer([hash], "o", "n")
        await trio.to_thread.run_sync(served.advance, GRACE + 1)
        await served.client().collect()
        tx.put("x", 1)
    assert await storage.references("o") == []
    with pytest.raises(NoSuchBlob):
        await storage.stat(hash)


async def test_what_a_transaction_would_have_let_go_counts_on(served: Any, rows: Keyspace[int]) -> None:
    storage: Storage = served.client(badge=7)
    await storage.refer(await put(storage, 900_000), "o", "n")
    with pytest.raises(BadRequest, match="a call of its own"):
        async with rows.transaction() as tx:
            await tx.share(storage).release("o", "n")
    await trio.to_thread.run_sync(served.advance, GRACE + 1)
    assert await storage.references("o") == ["n"]
    with pytest.raises(QuotaExceeded):
        await put(storage, 900_000)
