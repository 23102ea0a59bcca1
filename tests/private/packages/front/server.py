"""Tells what is in a diary, or what another front tells."""

from atoll.ipc import Serves

from .interface import Diary, Front


class Server(Serves[Front]):
    diary: Diary | None
    front: Front | None

    @Front.ask.serve
    async def ask(self, key: str) -> str:
        if self.front is not None:
            return await self.front.ask(key)
        assert self.diary is not None
        entry = await self.diary.read(key)
        return "" if entry is None else entry.text
