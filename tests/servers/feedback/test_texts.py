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


async def test_one_stores_a_batch_at_a_time() -> None:
    texts = Texts(cast(Storage, cast(Any, Referring())), cast(Any, None))
    inside = list[str]()

    async def store(name: str) -> None:
        async with texts.kept(BATCH, b"mark"):
            inside.append(name)
            await trio.testing.wait_all_tasks_blocked()
            inside.append(name)

    async with trio.open_nursery() as both:
        both.start_soon(store, "one")
        both.start_soon(store, "other")
    assert inside in (["one", "one", "other", "other"], ["other", "other", "one", "one"])
