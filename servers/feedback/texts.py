"""The texts of a batch that lie in storage, kept for as long as its rows may name them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atoll.ipc.context import current
from atoll.ipc.keyed_lock import KeyedLock
from atoll.ipc.keyspace import Keyspace
from atoll.servers.storage.interface import NoSuchBlob, Storage, WrongSize

from .check import reference_name
from .interface import Batch, BatchExists, Invalid
from .records import Mention, blobs
from .rows import Head, Row, head_key

OWNER = "feedback"
"""Under which blobs are referred to in storage; the name is the batch's id and digest."""


class Texts:
    def __init__(self, storage: Storage, rows: Keyspace[Row]) -> None:
        self._storage = storage
        self._rows = rows
        self._references = KeyedLock[str]()

    @asynccontextmanager
    async def kept(self, batch: Batch, mark: bytes) -> AsyncIterator[None]:
        """Refer to the batch's blobs before its rows exist: a row never names a blob that may be collected. In the block it
        is stored; the same batch is stored by nobody else meanwhile, since what one refers to and lets go of, as it is
        refused, is what the other's rows name. Raises Invalid.

        A crash in between leaves a reference without a batch, which a repeated submission makes right.
        """
        kept = blobs(batch.records)
        if not kept:
            yield
            return
        name = reference_name(batch.id, mark)
        async with self._references.holding(name):
            await self._refer(kept, name)
            try:
                yield
            except (BatchExists, Invalid):
                await self._forget(batch, mark, name)
                raise

    async def _refer(self, kept: list[Mention], name: str) -> None:
        try:
            hashes, sizes = [each.ref.hash for each in kept], [each.ref.size for each in kept]
            await self._storage.refer(hashes, OWNER, name, sizes)
        except (NoSuchBlob, WrongSize) as wrong:
            index, field_name, ref = kept[wrong.index]
            expected, got = "texts that are in storage (put them before the batch)", f"{ref}, which is not"
            if isinstance(wrong, WrongSize):
                expected, got = f"the size that this blob has ({wrong.got} bytes)", str(ref)
            raise Invalid(index=index, field=field_name, expected=expected, got=got) from None

    async def _forget(self, batch: Batch, mark: bytes, name: str) -> None:
        """Release what a refused batch referred to, unless it is the very batch that stands there. A transaction shows what
        was so as it began, and has what nobody may ever see: under one the reference is left."""
        if current().transaction is not None:
            return
        row = await self._rows.row(head_key(batch.id))
        if not (row and isinstance(row.value, Head) and row.value.digest == mark):
            await self._storage.release(OWNER, name)
