"""A server that reads a private keyspace by one need or by another."""

from msgspec import Struct

from atoll.ipc import Private, Serves

from .interface import Twice


class Entry(Struct, frozen=True):
    subject: str


class Server(Serves[Twice]):
    words: Private[Entry]
    again: Private[Entry]

    @Twice.read.serve
    async def read(self, key: str, again: bool) -> str:
        found = await (self.again if again else self.words).get(key)
        return "" if found is None else found.subject
