"""Serves `Diary`; needs a private keyspace."""

from msgspec import Struct

from atoll.ipc.private.keyspace import Private
from atoll.ipc.serve import Serves

from .interface import Diary


class Note(Struct):
    subject: str


class Server(Serves[Diary]):
    words: Private[Note]

    @Diary.note.serve
    def note(self, text: str) -> None:
        return None
