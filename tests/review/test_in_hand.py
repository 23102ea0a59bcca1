"""A call that is `Overloaded` has not begun: also where its handler would answer later."""

from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import Overloaded
from atoll.ipc.interface import Interface, call
from atoll.ipc.serve import Serves
from tests.kit.serving import serving

MOST = 4


class Bank(Interface):
    @call("use")
    def pay(self) -> int: ...
    @call("use", idempotent=True)
    def paid(self) -> int: ...


class BankServer(Serves[Bank]):
    """Every payment counts when it is asked for, and is answered when somebody asks how many there were."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[int]] = []
        self._paid = 0

    @Bank.pay.serve
    def pay(self) -> Deferred[int]:
        self._paid += 1
        self._waiting.append(Deferred())
        return self._waiting[-1]

    @Bank.paid.serve
    def paid(self) -> int:
        for done in self._waiting:
            done.complete(self._paid)
        self._waiting.clear()
        return self._paid


def test_what_is_refused_for_being_too_much_has_not_been_done() -> None:
    with serving(BankServer, clients=2, in_hand=MOST) as served:
        bank, other = served.proxies
        asked = [bank.pay.start() for _ in range(MOST + 3)]
        refused = 0
        for future in asked[MOST:]:
            try:
                future.result()
            except Overloaded:
                refused += 1
        assert refused == 3
        assert other.paid.now() == MOST
        assert [future.result() for future in asked[:MOST]] == [MOST] * MOST
        assert bank.paid.now() == MOST, "and once there is room the client is served again"
