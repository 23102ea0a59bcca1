"""What a front answers, and the diary that it asks, as far as it does."""

from msgspec import Struct

from atoll.ipc import Interface, call


class Entry(Struct, frozen=True):
    subject: str
    text: str


class Diary(Interface):
    @call("read", idempotent=True)
    def read(self, key: str) -> Entry | None: ...


class Front(Interface):
    @call("ask", idempotent=True)
    def ask(self, key: str) -> str: ...
