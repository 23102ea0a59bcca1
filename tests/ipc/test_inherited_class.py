"""What a handler calls for somebody who does not hurry takes the lane of bulk, over channels as in one process."""

import pytest

from atoll.ipc import Interface, Serves, call
from atoll.ipc.context import Call, Fields, SystemClock, current, in_hand
from atoll.ipc.method import Service
from tests.kit.serving import serving


class Asked(Interface):
    @call("use")
    def service(self) -> str:
        """Of this call."""


class AskedServer(Serves[Asked]):
    @Asked.service.serve
    def service(self) -> str:
        return current().service


@pytest.mark.parametrize(("mine", "theirs"), [("bulk", "bulk"), ("normal", "normal"), ("control", "normal")])
def test_a_call_for_bulk_is_bulk(mine: Service, theirs: Service) -> None:
    with serving(AskedServer) as served:
        (asked,) = served.proxies
        with in_hand(Call(Fields(method="A.b", service=mine), SystemClock())):
            begun = asked.service.start()
        assert begun.result() == theirs
        assert asked.service.start().result() == "normal"
