"""What the tests of granted buffers call."""

from atoll.ipc.buffer import Buffer
from atoll.ipc.interface import Interface, call


class Keeper(Interface):
    @call("keep", local=True)
    def keep(self, buffer: Buffer) -> str:
        """Holds it until the next one; says in which mode."""

    @call("keep", local=True, idempotent=True)
    def name(self, buffer: Buffer) -> int:
        """Is told of one and does not hold it; says at which address it is mapped."""

    @call("keep", idempotent=True)
    def held(self, length: int) -> bytes:
        """The beginning of what it holds."""

    @call("keep", idempotent=True)
    def total(self) -> int:
        """The sum of what it holds, as little-endian 64-bit numbers, in place."""

    @call("keep", idempotent=True)
    def write(self, data: bytes) -> str:
        """Over the beginning of what it holds; what came of it."""

    @call("keep")
    def forget(self) -> None:
        """Unmaps what it holds."""

    @call("keep", idempotent=True)
    def maps(self) -> int:
        """How many granted buffers it has mapped."""

    @call("keep", idempotent=True)
    def mapped_at_start(self) -> int:
        """How many it had mapped before it served anybody."""

    @call("keep", local=True)
    def lend(self, size: int) -> Buffer:
        """One of its own, which only it writes; it begins with `lent`."""

    @call("keep", local=True)
    def lend_later(self) -> Buffer:
        """What it lent last, once somebody has it `settle`."""

    @call("keep")
    def settle(self) -> bool:
        """Has a call of `lend_later` answered; whether there was one."""

    @call("keep")
    def settle_in_a_task(self) -> bool:
        """The same, by an async handler."""

    @call("keep")
    def die(self) -> None: ...
