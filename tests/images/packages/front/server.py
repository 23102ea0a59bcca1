"""Serves `Relay`, over a diary."""

from atoll.ipc.serve import Serves

from .interface import Diary, Relay


class Server(Serves[Relay]):
    diary: Diary

    @Relay.send.serve
    async def send(self, text: str) -> None:
        await self.diary.note(text)
