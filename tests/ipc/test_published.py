"""What a server says that it publishes: columns of its types, and what is refused."""

from typing import Any

import msgspec
import pytest
from msgspec import Struct

from atoll.ipc.interface import Interface, call
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.private.keyspace import Private
from atoll.ipc.published import Published, cell, shape, tagged
from atoll.ipc.runtime.describe import describe
from atoll.ipc.serve import Serves


class Place(Struct, array_like=True):
    x: int
    name: str = ""


class Told(Struct, tag="told", rename="camel"):
    first_at: int
    place: Place
    maybe: Place | None
    sure: float | None
    either: int | str
    words: list[str]
    fine: bool = True


class Short(Struct, array_like=True, tag=7):
    seconds: float
    raw: bytes


class Nothing(Interface):
    @call("read")
    def nothing(self) -> None: ...


def declared(**publishes: Published) -> Any:
    class Server(Serves[Nothing]):
        rows: Keyspace[Any]
        sealed: Private[Any]

        @Nothing.nothing.serve
        def nothing(self) -> None: ...

    Server.publishes = publishes
    return Server


def test_each_field_is_a_column_and_a_struct_within_has_its_own() -> None:
    found = shape("told", Published("rows", Told, "told/", moments=("first_at",)))
    assert [(field.name, field.kind, field.path) for field in found.fields] == [
        ("first_at", "moment", ("firstAt",)),
        ("place_x", "number", ("place", 0)),
        ("place_name", "text", ("place", 1)),
        ("maybe_x", "number", ("maybe", 0)),
        ("maybe_name", "text", ("maybe", 1)),
        ("sure", "real", ("sure",)),
        ("either", "json", ("either",)),
        ("words", "json", ("words",)),
        ("fine", "truth", ("fine",)),
    ]
    assert (found.need, found.prefix, found.tag) == ("rows", "told/", ("type", "told"))


def test_a_field_is_found_where_msgspec_puts_it() -> None:
    """Also where there is none, as in a row that was written before the field was."""
    told = Told(5, Place(1, "here"), None, 0.5, "x", ["a"])
    short = Short(1.5, b"z")
    for row, published in (
        (told, Published("rows", Told)),
        (short, Published("rows", Short, moments=("seconds",))),
    ):
        found = shape("table", published)
        value = msgspec.msgpack.decode(msgspec.msgpack.encode(row))
        assert tagged(value, found.tag)
        for field in found.fields:
            names = field.name.split("_") if hasattr(row, field.name.split("_")[0]) else [field.name]
            wanted: object = row
            for name in names:
                wanted = getattr(wanted, name, None)
            assert cell(value, field.path) == wanted, field
    assert not tagged({"type": "other"}, ("type", "told"))
    assert not tagged([8, 1.5], (0, 7))
    assert not tagged(3, (0, 7))
    assert cell([7], (2,)) is None
    assert cell({}, ("place", 0)) is None


def test_a_structure_that_holds_itself_ends_somewhere() -> None:
    names = [field.name for field in shape("chain", Published("rows", Chain)).fields]
    assert names == [
        "number",
        "next_number",
        "next_next_number",
        "next_next_next_number",
        "next_next_next_next",
    ]


class Chain(Struct):
    number: int
    next: "Chain | None" = None


@pytest.mark.parametrize(
    ("name", "published", "told"),
    [
        (
            "t",
            Published("tests", Told),
            r"publishes\['t'\]: 'tests' is no keyspace of this server, only \['rows'\] are",
        ),
        ("t", Published("sealed", Told), r"'sealed' is no keyspace of this server, only \['rows'\] are"),
        ("t", Published("rows", Told, moments=("when",)), "no column 'when' in Told, only"),
        ("t", Published("rows", int), "expected a Struct, whose fields are columns, not <class 'int'>"),
        ("a t", Published("rows", Told), "expected a name that SQL takes"),
    ],
)
def test_what_cannot_be_published_is_refused(name: str, published: Published, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        describe(declared(**{name: published}))


def test_a_package_says_what_it_publishes() -> None:
    assert list(describe(declared(told=Published("rows", Told))).tables) == ["told"]
