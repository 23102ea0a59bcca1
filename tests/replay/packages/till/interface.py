"""Money by key, and every way in which a handler can be replayed or not."""

from msgspec import Struct

from atoll.ipc import Failure, Interface, call


class Unknown(Failure):
    currency: str

    @property
    def message(self) -> str:
        return f"there is no rate for {self.currency!r}: ask for another currency"


class Rates(Interface):
    """Another server's."""

    errors = (Unknown,)

    @call("read", idempotent=True)
    def rate(self, currency: str) -> float: ...

    @call("write", idempotent=True)
    def fix(self, currency: str, rate: float) -> None: ...


class Stamp(Struct):
    key: str
    at: float
    die: int
    id: bytes


class Till(Interface):
    @call("read", idempotent=True)
    def total(self, key: str) -> int: ...

    @call("write", once=True)
    def add(self, key: str, by: int) -> int: ...

    @call("write", once=True)
    def stamp(self, key: str) -> Stamp: ...

    @call("write", once=True)
    def exchange(self, key: str, currency: str) -> float: ...

    @call("write", once=True)
    def move(self, source: str, target: str, by: int) -> list[int]: ...

    @call("read")
    def wild(self) -> float: ...

    @call("read")
    def next(self) -> int: ...

    @call("read", idempotent=True)
    def twice(self, key: str, currency: str) -> list[int]: ...

    @call("read", idempotent=True)
    def peek(self, key: str, currency: str) -> list[int]: ...

    @call("read", idempotent=True)
    def versions(self, key: str, limit: int) -> list[int | None]: ...

    @call("read")
    def split(self, key: str, among: int) -> int: ...
