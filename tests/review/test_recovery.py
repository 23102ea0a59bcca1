"""More requests in hand than a ring holds, and their server dies."""

import pytest

from atoll.ipc import Deferred, Interface, Serves, call
from tests.kit.serving import serving

MANY = 3000


class Steps(Interface):
    @call("do", once=True)
    def once(self, number: int) -> int: ...
    @call("do", idempotent=True)
    def seen(self) -> list[int]: ...


class Dies(Serves[Steps]):
    """Takes everything and answers nothing."""

    def __init__(self) -> None:
        self.order: list[int] = []

    @Steps.once.serve
    def once(self, number: int) -> Deferred[int]:
        self.order.append(number)
        return Deferred()

    @Steps.seen.serve
    def seen(self) -> list[int]:
        return self.order


class Answers(Dies):
    @Steps.once.serve
    def once(self, number: int) -> Deferred[int]:
        super().once(number)
        return Deferred.resolved(number)


@pytest.mark.parametrize("deaths", [1, 3])
def test_all_of_them_are_sent_again_in_order_however_many(deaths: int) -> None:
    with serving(Dies, Answers, in_hand=2 * MANY) as served:
        steps = served.proxies[0]
        asked = [steps.once.start(number) for number in range(MANY)]
        for _ in range(deaths - 1):
            served.crash()
            served.restart(0)
            served.client(served.channels[0]).look()
        served.crash()
        served.restart(1)
        assert [future.result() for future in asked] == list(range(MANY))
        assert steps.seen.now() == list(range(MANY))
