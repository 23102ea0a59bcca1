"""Positions in a TOML text: every key and value that `tomllib` finds has the place where it stands."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.microkernel.image_text import Path as TomlPath
from atoll.microkernel.image_text import Position, locate

TEXT = '''\
# a comment [not.a.table]
title = "a # b" # c
"quoted.key" = 'lit'
a.b . c = 1
multi = """
x = 5
"quoted" \\""" inside
""" # end
[table."x y"]
list = [1, # one
  { k = 'v', n.m = [ [ ], [2] ] },
]
raw = \'\'\'
[[no]]
\'\'\'
[[many]]
n = 1
[[many]]
n = 2
[many.deep]
z = 1979-05-27T07:32:00Z
'''


def paths(value: object, path: TomlPath = ()) -> Iterator[TomlPath]:
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths(inner, (*path, name))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


def test_everything_has_its_place() -> None:
    places = locate(TEXT)
    assert places.value(("title",)) == Position(2, 9)
    assert places.key(("quoted.key",)) == Position(3, 1)
    assert places.key(("a", "b", "c")) == Position(4, 7)
    assert places.value(("a", "b", "c")) == Position(4, 11)
    assert places.key(("table", "x y")) == Position(9, 1)
    assert places.value(("table", "x y", "list", 1, "n", "m", 1, 0)) == Position(11, 28)
    assert places.value(("many", 1, "n")) == Position(19, 5)
    assert places.value(("many", 1, "deep", "z")) == Position(21, 5)
    found = places.keys.keys() | places.values.keys()
    assert set(paths(tomllib.loads(TEXT))) <= found


def test_what_is_not_there_has_the_place_around_it() -> None:
    assert locate(TEXT).key(("many", 1, "missing", "deeper")) == Position(18, 1)
    assert locate("").key(("image",)) == Position(1, 1)


def test_windows_line_ends_count_as_one() -> None:
    assert locate("a = 1\r\nb = [\r\n 2]\r\n").value(("b", 0)) == Position(3, 2)


@pytest.mark.parametrize(
    "image", sorted(Path(__file__).parent.parent.parent.glob("images/*.toml")), ids=lambda p: p.name
)
def test_every_part_of_the_images_has_a_place(image: Path) -> None:
    text = image.read_text()
    places = locate(text)
    assert set(paths(tomllib.loads(text))) <= places.keys.keys() | places.values.keys()


SCALARS = st.sampled_from(
    ["1", "true", '"a\\"]}#"', "'x\\'", "1.5e3", '"""a"b"""', "'''\n]'''", "1979-05-27"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[" + " ,\n# x\n".join(parts) + "]")
        | st.lists(inner, max_size=3).map(
            lambda parts: "{" + ", ".join(f"k{number} = {part}" for number, part in enumerate(parts)) + "}"
        )
    ),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=5))
def test_any_value_has_its_place(values: list[str]) -> None:
    text = "".join(f"k{number} = {value}\n" for number, value in enumerate(values))
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    places = locate(text)
    assert set(paths(document)) <= places.keys.keys() | places.values.keys()
    lines = text.split("\n")
    for number in range(len(values)):
        line, column = places.key((f"k{number}",))
        assert lines[line - 1][column - 1 :].startswith(f"k{number} = ")
