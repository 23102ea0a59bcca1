"""Whose turn it is to refer to the texts of a batch."""

from typing import Any, cast

import trio
import trio.testing

from atoll.servers.feedback.interface import Batch
from atoll.servers.feedback.texts import Texts
from atoll.servers.storage.interface import BlobRef, Storage

from .said import rating

BATCH = Batch("b", [rating(BlobRef(bytes(32), 1), 1.0)])


class Referring:
    """Storage, which has every text."""

    async def refer(self, *_: object) -> int:
        await trio.lowlevel.checkpoint()
        return 1


async def test_one_stores_a_batch_at_a_time_also_where_another_who_waits_is_cancelled() -> None:
    """Who was cancelled as the first one ended took away the turn of whoever had it by then."""
    texts = Texts(cast(Storage, cast(Any, Referring())), cast(Any, None))
    inside = list[str]()

    async def store(name: str) -> None:
        async with texts.kept(BATCH, b"mark"):
            inside.append(name)
            await trio.sleep_forever()

    async with trio.open_nursery() as others:
        async with texts.kept(BATCH, b"mark"):
            cancelled = trio.CancelScope()

            async def wait() -> None:
                with cancelled:
                    await store("cancelled")

            others.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            cancelled.cancel()
        async with texts.kept(BATCH, b"mark"):
            others.start_soon(store, "next")
            await trio.testing.wait_all_tasks_blocked()
            assert inside == []
        await trio.testing.wait_all_tasks_blocked()
        assert inside == ["next"]
        others.cancel_scope.cancel()
    assert texts._turns == {}
