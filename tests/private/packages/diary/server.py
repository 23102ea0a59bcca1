"""A server whose rows are sealed."""

import logging

import structlog

from atoll.ipc import Deferred, Private, Serves
from atoll.ipc.keyspace import settled
from atoll.ipc.system.keys import Purge
from atoll.ipc.system.state import Write

from .interface import Diary, Entry, Told


class Server(Serves[Diary]):
    words: Private[Entry]

    def __init__(self) -> None:
        self.last = ""
        """What was read last."""

    def hand_over(self) -> bytes:
        return self.last.encode()

    def take_over(self, state: bytes) -> None:
        self.last = state.decode()

    @Diary.write.serve
    def write(self, key: str, subject: str, text: str) -> Deferred[int]:
        return self.words.put(key, Entry(subject, text))

    @Diary.append.serve
    def append(self, key: str, text: str) -> Deferred[Entry]:
        def appended(old: Entry | None) -> Entry:
            assert old is not None
            return Entry(old.subject, old.text + text)

        return self.words.update(key, appended)

    @Diary.write_both.serve
    async def write_both(self, first: str, second: str, subject: str, text: str) -> int:
        async with self.words.transaction() as tx:
            tx.put(first, Entry(subject, text))
            assert await tx.get(first) == Entry(subject, text)
            tx.put(second, Entry(subject + "'s friend", text))
        async with self.words.transaction() as tx:
            assert len(await tx.range(first, second + "x")) == 2
        return tx.revision or 0

    @Diary.unsay.serve
    async def unsay(self, key: str, subject: str, text: str) -> None:
        """Writes, and deletes at once what it wrote."""
        written, deleted = self.words.put(key, Entry(subject, text)), self.words.delete(key)
        await settled(written)
        await settled(deleted)

    @Diary.read.serve
    async def read(self, key: str) -> Entry | None:
        found = await self.words.get(key)
        self.last = "" if found is None else found.text
        return found

    @Diary.all.serve
    async def all(self) -> list[Told]:
        return [
            Told(row.key, None if row.value is None else row.value.text, row.purged)
            async for row in self.words.range()
        ]

    @Diary.past.serve
    async def past(self, key: str) -> list[Told]:
        return [
            Told(row.key, None if row.value is None else row.value.text, row.purged)
            for row in await self.words.history(key)
        ]

    @Diary.as_of.serve
    async def as_of(self, key: str, revision: int) -> Entry | None:
        return await self.words.as_of(revision).get(key)

    @Diary.swap.serve
    async def swap(self, one: str, other: str) -> None:
        state = self.words.state
        first, second = await state.get(one.encode()), await state.get(other.encode())
        assert first is not None and second is not None
        await state.commit([Write(first.key, second.value), Write(second.key, first.value)])

    @Diary.raw.serve
    async def raw(self, key: str) -> bytes:
        item = await self.words.state.get(key.encode())
        assert item is not None
        return item.value or b""

    @Diary.name_of.serve
    async def name_of(self, text: str) -> str:
        return await self.words.hashed(text)

    @Diary.put_back.serve
    async def put_back(self, key: str, back: int) -> None:
        versions = await self.words.state.history(key.encode())
        await self.words.state.commit([Write(key.encode(), versions[back].value)])

    @Diary.fail.serve
    async def fail(self, text: str) -> None:
        """As a bug would, with the words in hand."""
        await self.words.get(text)
        raise RuntimeError(text)

    @Diary.grumble.serve
    def grumble(self, text: str) -> None:
        """As code does that gets over an error, and notes it."""
        try:
            raise RuntimeError(text)
        except RuntimeError:
            logging.getLogger("diary").exception("noted")
            structlog.get_logger().exception("noted")

    @Diary.forget.serve
    async def forget(self, subject: str) -> Purge:
        return await self.words.purge(subject)
