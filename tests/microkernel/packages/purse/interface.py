"""What the tests of transactions that span servers call: a server that owns them, and shares each with the ledger."""

from typing import Literal

from atoll.ipc.interface import Interface, call

How = Literal["put", "add_once", "put_and_die", "put_and_wait"]
Step = Literal["", "begun", "told", "asked", "written", "answered", "committed"]
"""Of a `move`; `asked` and `written` are the ledger's."""


class Purse(Interface):
    @call("write")
    def move(self, key: str, value: int, how: How = "put", halt: Step = "") -> int:
        """Writes here and, by that method, at the ledger, in one transaction; its revision. What becomes of the ledger's
        call does not matter. `halt`: wait at that step for `let_go`, here or at the ledger."""

    @call("write")
    def held(self) -> None:
        """Answers once a `move` waits."""

    @call("write")
    def let_go(self) -> None:
        """Lets those who wait go on."""

    @call("write")
    def ended(self) -> None:
        """Answers once no `move` is in hand."""

    @call("write")
    def die(self) -> None:
        """The process ends."""
