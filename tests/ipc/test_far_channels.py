"""Channels with large numbers, as a node has that has lived long: each program that attaches takes some, and none comes
twice. A word of the receive loop's held 24 bits of one, and so did a trace."""

import pytest

from atoll.ipc import Interface, Serves, call
from atoll.ipc.errors import TooLarge
from atoll.ipc.system.control import Shape
from tests.adversary.attack import Attacker, Record
from tests.kit import played as kit
from tests.kit.serving import Serving, serving
from tests.native.suite import Target

from .test_no_call import answer

FAR = (1 << 24) + 5
FARTHEST = (1 << 32) - 7


class Far(Interface):
    @call("use")
    def twice(self) -> int:
        """Asks the server behind this one."""

    @call("use")
    def much(self, size: int) -> bytes: ...

    @call("use", idempotent=True)
    def asked(self) -> int: ...


class FarServer(Serves[Far]):
    def __init__(self) -> None:
        self._asked = 0

    @Far.twice.serve
    async def twice(self) -> int:
        asked = kit.proxy_of_played(Target).double.start(1)
        self._asked += 1
        return int(await asked)

    @Far.much.serve
    def much(self, size: int) -> bytes:
        return bytes(size)

    @Far.asked.serve
    def asked(self) -> int:
        return self._asked


def client(served: Serving, number: int) -> Far:
    served._next = number
    served.add_clients(1, None)
    found: Far = served.proxies[-1]
    return found


@pytest.mark.parametrize("number", [FAR, FARTHEST])
def test_a_client_that_misbehaves_is_named(number: int) -> None:
    with serving(FarServer, clients=0) as served:
        served._next = number
        memory = served.add_channel()
        Attacker(memory, server=False).write(Record(memory.base, flags=0x8000))
        assert served.until_misbehaved().channel == number
        assert client(served, 7).asked.now() == 0


@pytest.mark.parametrize("number", [FAR, FARTHEST])
def test_a_handler_calls_on_and_hears_what_it_asked_for(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "PLAYED", number + 1)
    with serving(FarServer, clients=0) as served, kit.played(served) as memory:
        far = client(served, number)
        twice = far.twice.start()
        while not twice.done() and not far.asked.now():
            pass
        answer(memory)
        assert twice.result() == 2


@pytest.mark.parametrize("number", [FAR, FARTHEST])
def test_a_reply_that_finds_no_room_waits_and_one_too_large_is_refused(number: int) -> None:
    with serving(FarServer, clients=0, shape=Shape(ring_bits=13, bulk_bits=13)) as served:
        far = client(served, number)
        with pytest.raises(TooLarge):
            far.much.now(9000)
        replies = [far.much.start(1900) for _ in range(20)]
        assert [len(reply.result()) for reply in replies] == [1900] * 20
