"""What the tests of a running node call."""

from msgspec import Struct

from atoll.ipc.interface import Interface, call, stream


class Tick(Struct):
    number: int


class Counter(Interface):
    @call("read", idempotent=True)
    def get(self, key: str) -> int:
        """The value as the server's view has it."""

    @call("write", once=True)
    def add(self, key: str, by: int = 1) -> int:
        """Durable once it answers."""

    @call("read")
    def slow(self, seconds: float) -> str:
        """Answers after so long; what is in hand meanwhile is neither idempotent nor once."""

    @call("read")
    def begun(self) -> int:
        """How many calls of `slow` have begun."""

    @call("write")
    def die(self) -> None:
        """The process ends in the middle of the call."""

    @call("write")
    def give_up(self, words: str) -> None:
        """The process ends with these words, by way of all that is open."""

    @call("write")
    def spin(self, seconds: float) -> None:
        """A plain handler that does not return for so long."""

    @call("write")
    def think(self, name: str) -> None:
        """A thread of that name computes from now on."""

    @call("read", idempotent=True)
    def taken(self) -> int:
        """Bytes that this process took over."""

    @call("write", once=True)
    def keep(self, size: int) -> None:
        """So many bytes are handed over at the next swap."""

    @call("write")
    def say(self, text: str) -> None:
        """Into the log, and to standard output."""

    @call("write")
    def flood(self, lines: int) -> None:
        """So many short lines to standard output at once, and one with a field that is far too long to the log."""

    @call("read")
    def forbidden(self) -> str:
        """Does what a filter refuses; says what came of it."""

    @stream("read", position=int)
    def ticks(self, after: int = 0) -> Tick:
        """Numbers that follow `after`, a few at a time, for ever."""
