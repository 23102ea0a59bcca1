"""What the tests of the store's readers call: a server that asks the store for each answer."""

from msgspec import Struct

from atoll.ipc.interface import Interface, call, stream


class Entry(Struct):
    key: str
    value: int
    revision: int


class Ledger(Interface):
    @call("write", idempotent=True)
    def put(self, key: str, value: int) -> int:
        """Writes, then reads it back; the revision. Fails if it does not read what it wrote."""

    @call("read", idempotent=True)
    def get(self, key: str) -> int | None:
        """The value as the store has it."""

    @call("read", idempotent=True)
    def all(self) -> dict[str, int]:
        """Every key."""

    @call("read", idempotent=True)
    def past(self, key: str) -> list[int]:
        """Its values, newest first."""

    @call("write")
    def join_in(self, key: str, value: int, halt: str = "") -> None:
        """Writes, under the transaction of the call if it has one. `halt`: wait for `let_go` when it is `asked`, or has
        `written`."""

    @call("write", once=True)
    def add_once(self, key: str, halt: str = "") -> int:
        """Counts a key up, like `join_in`."""

    @call("write")
    def held(self) -> None:
        """Answers once a `join_in` waits."""

    @call("write")
    def let_go(self) -> None:
        """Lets those who wait go on."""

    @call("write")
    def put_and_die(self, key: str, value: int) -> None:
        """Writes so, and ends before it answers."""

    @call("write")
    def put_and_wait(self, key: str, value: int) -> None:
        """Writes so, and does not answer; goes on writing when it hears that nobody waits."""

    @stream("read", position=int)
    def entries(self, after: int = 0) -> Entry:
        """What is written after a revision."""
