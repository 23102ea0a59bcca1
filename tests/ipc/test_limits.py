"""Bounds on what is decoded, held against values built at random and against bytes that are no values."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, Struct

from atoll.ipc import Interface, call, errors
from atoll.ipc.codec import decoder, traits
from atoll.ipc.limits import MAX_DEPTH, depth_within

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=40,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    deepest = max((depth(each) for each in inner), default=0)
    return deepest + (1 if isinstance(value, dict | list) and value else 0)


@given(values)
def test_the_walk_finds_the_depth_that_the_value_has(value: Any) -> None:
    data, deep = msgspec.msgpack.encode(value), depth(value)
    assert depth_within(data, deep)
    assert deep == 0 or not depth_within(data, deep - 1)


@given(st.binary(max_size=200))
def test_the_walk_ends_on_any_bytes(data: bytes) -> None:
    assert depth_within(data, 4) in (True, False)


class Tree(Struct):
    kids: list["Tree"] = []


class Borrower(Struct):
    rest: Raw
    seen: memoryview


class Loose(Interface):
    @call("read")
    def any(self, value: Any) -> None: ...

    @call("read")
    def tree(self, value: Tree) -> None: ...

    @call("read")
    def borrow(self, value: Borrower) -> None: ...

    @call("read")
    def flat(self, value: list[dict[str, tuple[int, bytes]]]) -> None: ...


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


def test_a_type_without_a_depth_of_its_own_is_bounded() -> None:
    decode = decoder(Loose.any.spec, "arguments", None)
    decode(nested(MAX_DEPTH))
    for levels in (MAX_DEPTH + 1, 1_000_000):
        with pytest.raises(errors.BadRequest) as caught:
            decode(nested(levels))
        assert str(caught.value) == (
            "Loose.any: expected at most 64 arrays and maps within each other, got deeper nesting"
        )


def test_a_type_that_contains_itself_is_bounded() -> None:
    deep = b"\x91" + b"\x81\xa4kids\x91" * 40 + b"\x80"
    with pytest.raises(errors.BadRequest, match="deeper nesting"):
        decoder(Loose.tree.spec, "arguments", None)(deep)


def test_traits_are_read_off_the_type() -> None:
    assert traits(Tree).unbounded
    assert traits(list[Any]).unbounded
    assert traits(Borrower) == (False, True, True)
    assert traits(list[dict[str, tuple[int, bytes]]]) == (False, False, False)


def test_nothing_that_was_decoded_refers_to_the_receive_buffer() -> None:
    data = bytearray(msgspec.msgpack.encode([{"rest": [1, "two"], "seen": b"here"}]))
    found = decoder(Loose.borrow.spec, "arguments", None)(memoryview(data)).value
    flat_data = bytearray(msgspec.msgpack.encode([[{"a": (1, b"bytes")}]]))
    flat = decoder(Loose.flat.spec, "arguments", None)(memoryview(flat_data)).value
    data[:] = b"\xff" * len(data)
    flat_data[:] = b"\xff" * len(flat_data)
    assert msgspec.msgpack.decode(found.rest) == [1, "two"]
    assert bytes(found.seen) == b"here"
    assert flat == [{"a": (1, b"bytes")}]
