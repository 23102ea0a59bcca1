"""What the tests of transactions that span servers call: a server that owns them, and shares each with the ledger."""

from typing import Literal

from atoll.ipc.interface import Interface, call

How = Literal["put", "put_and_die", "put_and_wait"]


class Purse(Interface):
    @call("write")
    def move(self, key: str, value: int, how: How = "put", hold: bool = False) -> int:
        """Writes here and, by that method, at the ledger, in one transaction; its revision. What becomes of the ledger's
        call does not matter. `hold`: wait with the commit for `let_go`."""

    @call("write")
    def held(self) -> None:
        """Answers once a `move` holds its transaction open."""

    @call("write")
    def let_go(self) -> None:
        """Lets those who hold go on."""

    @call("write")
    def die(self) -> None:
        """The process ends."""
