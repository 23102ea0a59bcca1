"""What people tell a diary."""

from msgspec import Struct

from atoll.ipc import Interface, call
from atoll.ipc.system.keys import Purge


class Entry(Struct, frozen=True):
    subject: str
    text: str


class Told(Struct, frozen=True):
    key: str
    text: str | None
    purged: bool


class Diary(Interface):
    @call("write", once=True)
    def write(self, key: str, subject: str, text: str) -> int: ...
    @call("write", once=True)
    def append(self, key: str, text: str) -> Entry: ...
    @call("write")
    def write_both(self, first: str, second: str, subject: str, text: str) -> int: ...
    @call("write")
    def unsay(self, key: str, subject: str, text: str) -> None: ...
    @call("read", idempotent=True)
    def read(self, key: str) -> Entry | None: ...
    @call("read", idempotent=True)
    def all(self) -> list[Told]: ...
    @call("read", idempotent=True)
    def past(self, key: str) -> list[Told]: ...
    @call("read", idempotent=True)
    def as_of(self, key: str, revision: int) -> Entry | None: ...
    @call("write")
    def swap(self, one: str, other: str) -> None: ...
    @call("read", idempotent=True)
    def raw(self, key: str) -> bytes: ...
    @call("write")
    def put_back(self, key: str, back: int) -> None: ...
    @call("write")
    def fail(self, text: str) -> None: ...
    @call("write")
    def grumble(self, text: str) -> None: ...
    @call("write")
    def forget(self, subject: str) -> Purge: ...
    @call("read", idempotent=True)
    def name_of(self, text: str) -> str: ...
