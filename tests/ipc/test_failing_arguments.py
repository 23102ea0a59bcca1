"""Arguments over which their own type fails: the call ends, and nothing of it is left in hand."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from atoll.ipc import Interface, Serves, call, stream, testing, upload
from atoll.ipc.errors import InternalFault
from tests.kit.serving import serving

UNITS = {"m": 1, "km": 1000}
PAST = 1


class Length(msgspec.Struct):
    number: int
    unit: str

    def __post_init__(self) -> None:
        """What a type raises that looks something up."""
        self.number *= UNITS[self.unit]


class Sent(msgspec.Struct):
    """As it is on the wire."""

    number: int
    unit: str


class Measures(Interface):
    @call("use")
    def plain(self, length: Length) -> int: ...

    @stream("use")
    def steps(self, length: Length) -> int: ...

    @upload("use", item=int)
    def total(self, length: Length) -> int: ...


class Server(Serves[Measures]):
    @Measures.plain.serve
    def plain(self, length: Length) -> int:
        return length.number

    @Measures.steps.serve
    def steps(self, length: Length) -> Iterator[int]:
        yield length.number

    @Measures.total.serve
    async def total(self, items: AsyncIterator[int], length: Length) -> int:
        return length.number * sum([item async for item in items])


def a_call(measures: Any, length: Any) -> None:
    measures.plain.now(length)


def a_stream(measures: Any, length: Any) -> None:
    list(measures.steps.now(length))


def an_upload(measures: Any, length: Any) -> None:
    measures.total.now([], length)


EACH = pytest.mark.parametrize("ask", [a_call, a_stream, an_upload])


@EACH
def test_in_a_process(ask: Callable[[Any, Any], None]) -> None:
    """An upload was in hand for good: its server could not be swapped, and stopped only once its deadline had passed."""
    with serving(Server) as served:
        with pytest.raises(InternalFault, match="KeyError"):
            ask(served.proxies[0], Sent(1, "mile"))
        assert served.drain(PAST) == {}
        served.resume()
        assert served.proxies[0].plain.now(Length(1, "km")) == 1_000_000


@EACH
def test_in_one_process(ask: Callable[[Any, Any], None]) -> None:
    """The whole server ended over it, and its callers heard that it had died."""
    with testing.node(Server) as measures:
        with pytest.raises(InternalFault, match="KeyError"):
            ask(measures, Sent(1, "mile"))
        assert measures.plain.now(Length(1, "km")) == 1_000_000
