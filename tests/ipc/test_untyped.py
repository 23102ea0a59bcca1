"""Calls by name: what is given as an object reaches the server as what was named."""

from collections.abc import Iterator

import pytest
from msgspec import Struct

from atoll.ipc import Interface, Serves, call, testing
from atoll.ipc.errors import BadRequest
from atoll.ipc.proxy import transport_of
from atoll.ipc.schema import describe
from atoll.ipc.untyped import UntypedProxy


class Place(Struct, array_like=True):
    x: int
    y: int = 0
    z: int = 0


class Map(Interface):
    @call("read")
    def told(self, places: list[Place]) -> list[int]: ...


class Server(Serves[Map]):
    @Map.told.serve
    def told(self, places: list[Place]) -> list[int]:
        return [number for place in places for number in (place.x, place.y, place.z)]


@pytest.fixture
def untyped() -> Iterator[UntypedProxy]:
    with testing.node(Server) as client:
        yield UntypedProxy(describe(Map), transport_of(client))


def test_fields_that_have_a_place_are_given_from_the_first_on(untyped: UntypedProxy) -> None:
    assert untyped.now("told", [[{"x": 1, "y": 2}, {"z": 3, "y": 2, "x": 1}, [7]]]) == [
        1,
        2,
        0,
        1,
        2,
        3,
        7,
        0,
        0,
    ]
    with pytest.raises(
        BadRequest, match=r"Map.told\(places\)\[1\]: expected `y` to be given too, since `z` is"
    ):
        untyped.now("told", [[{"x": 1}, {"x": 1, "z": 3}]])
