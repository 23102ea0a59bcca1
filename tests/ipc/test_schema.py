"""Two versions of an interface: what is compatible, and the exact difference of what is not."""

import enum
from collections.abc import Callable

import pytest
from msgspec import Struct, structs

from atoll.ipc import Cap, Failure, Interface, call, errors, schema, stream, upload
from atoll.ipc.schema import describe, differences
from atoll.ipc.system import control
from atoll.ipc.system.kernel import Kernel, MechanismMissing, StartFailed, WrongState
from atoll.ipc.system.state import State, StoreFull


def base() -> type[Interface]:
    class Change(Struct):
        key: str
        when: float

    class Gone(Failure):
        key: str

    class Counter(Interface):
        errors = (Gone,)

        @call("write", once=True)
        def add(self, key: str, by: int = 1) -> int: ...

        @stream("read")
        def changes(self, after: int = 0) -> Change: ...

        @upload("write", item=bytes)
        def put(self, name: str) -> int: ...

    return Counter


def grown() -> type[Interface]:
    class Change(Struct):
        key: str
        when: float
        who: str = ""

    class Gone(Failure):
        key: str
        since: int = 0

    class Counter(Interface):
        errors = (Gone,)

        @call("write", once=True)
        def add(self, key: str, by: int = 1, note: str = "") -> int: ...

        @stream("read")
        def changes(self, after: int = 0, limit: int | None = None) -> Change: ...

        @upload("write", item=bytes)
        def put(self, name: str) -> int: ...

        @call("read")
        def more(self) -> None: ...

    return Counter


def told(expected: type[Interface], found: type[Interface]) -> list[str]:
    return [str(each) for each in differences(describe(expected), describe(found))]


def test_an_interface_fits_itself_and_its_fingerprint_is_stable() -> None:
    assert told(base(), base()) == []
    assert schema.fingerprint(describe(base())) == schema.fingerprint(describe(base()))
    assert schema.fingerprint(describe(base())) != schema.fingerprint(describe(grown()))


def test_trailing_arguments_and_fields_with_defaults_fit_in_both_directions() -> None:
    assert told(base(), grown()) == []
    assert [line for line in told(grown(), base()) if "Counter.more" not in line] == []


def test_a_method_that_the_server_lacks_is_a_difference() -> None:
    assert told(grown(), base()) == ["expected a call, got nothing, at Counter.more"]


def changed_argument() -> type[Interface]:
    class Counter(Interface):
        @call("write", once=True)
        def add(self, key: str, by: str = "") -> int: ...

    return Counter


def required_argument() -> type[Interface]:
    class Counter(Interface):
        @call("write", once=True)
        def add(self, key: str, by: int, unit: str) -> int: ...

    return Counter


def renamed_argument() -> type[Interface]:
    class Counter(Interface):
        @call("write", once=True)
        def add(self, name: str, by: int = 1) -> int: ...

    return Counter


def other_result() -> type[Interface]:
    class Counter(Interface):
        @call("write", once=True)
        def add(self, key: str, by: int = 1) -> int | None: ...

    return Counter


def other_right() -> type[Interface]:
    class Counter(Interface):
        @call("add")
        def add(self, key: str, by: int = 1) -> int: ...

    return Counter


def other_kind() -> type[Interface]:
    class Counter(Interface):
        @stream("write")
        def add(self, key: str, by: int = 1) -> int: ...

    return Counter


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (changed_argument, ["expected int, got str, at Counter.add(by)"]),
        (
            required_argument,
            [
                "expected a default, got none, at Counter.add(by)",
                "expected nothing, or a default, got str without a default, at Counter.add(unit)",
            ],
        ),
        (renamed_argument, ["expected 'key' in this place, got 'name', at Counter.add(key)"]),
        (other_result, ["expected int, got int | null, at Counter.add -> int"]),
        (
            other_right,
            [
                "expected right 'write', got right 'add', at Counter.add",
                "expected once True, got once False, at Counter.add",
            ],
        ),
        (other_kind, ["expected a call, got a stream, at Counter.add"]),
    ],
)
def test_each_difference_is_told_with_its_place(
    found: Callable[[], type[Interface]], lines: list[str]
) -> None:
    class Counter(Interface):
        @call("write", once=True)
        def add(self, key: str, by: int = 1) -> int: ...

    assert told(Counter, found()) == lines


def compound(
    field: type, *, closed: bool = False, values: tuple[str, ...] = ("a",), place: bool = False
) -> type[Interface]:
    class Inner(Struct, forbid_unknown_fields=closed):
        value: field  # type: ignore[valid-type]

    Kind = enum.Enum("Kind", {name: name for name in values})  # type: ignore[misc]

    class Outer(Struct, array_like=place):
        inner: dict[str, list[Inner]]
        kind: Kind

    class Things(Interface):
        @stream("read")
        def all(self) -> Outer: ...

    return Things


def test_a_difference_deep_in_a_type_is_found_at_its_path() -> None:
    assert told(compound(int), compound(str)) == [
        "expected int, got str, at Things.all -> Outer.inner -> Inner.value"
    ]
    assert told(compound(int, values=("a", "b")), compound(int)) == [
        "expected a, b, got a, at Things.all -> Outer.kind -> Kind"
    ]
    assert told(compound(int), compound(int, place=True)) == [
        "expected struct, got array, at Things.all -> Outer"
    ]


def test_a_struct_that_forbids_unknown_fields_does_not_grow() -> None:
    def of(extra: bool) -> type[Interface]:
        class Small(Struct, forbid_unknown_fields=True):
            key: str

        class Grown(Struct, forbid_unknown_fields=True):
            key: str
            more: int = 0

        Grown.__name__ = "Small"
        kind = Grown if extra else Small

        class Things(Interface):
            @call("read")
            def one(self) -> kind: ...  # type: ignore[valid-type]

        return Things

    assert told(of(False), of(True)) == [
        "expected exactly its own fields, got others (it forbids unknown fields), at Things.one -> Small"
    ]


class Node(Struct):
    next: "Node | None" = None


class Recursive(Interface):
    @call("read")
    def walk(self, start: Node, echo: "Cap[Recursive]") -> Node: ...


@pytest.mark.parametrize("interface", [Kernel, State, Recursive])
def test_a_shape_travels_whole(interface: type[Interface]) -> None:
    shape = describe(interface)
    assert schema.decode(schema.encode(shape)) == shape
    assert differences(shape, shape) == []
    said = schema.described(interface)
    assert isinstance(said, control.Described)
    assert schema.decode(bytes(said.schema)) == shape
    assert said.fingerprint == schema.fingerprint(shape)


def test_a_client_from_before_is_told_by_the_kernel_that_the_store_is_full() -> None:
    """In the same sentence, by a failure that it does not know."""

    class Before(Interface):
        errors = (WrongState, StartFailed, MechanismMissing)

    now = describe(Kernel)
    before = structs.replace(now, failures=describe(Before).failures)
    assert set(now.failures) - set(before.failures) == {"StoreFull"}
    assert differences(before, now) == []
    refused = StoreFull("the store", 2, 1)
    told_now, told_before = (errors.decode(errors.encode(refused), kind) for kind in (Kernel, Before))
    assert told_now == refused
    assert isinstance(told_before, errors.UnknownFailure) and str(refused) in str(told_before)
