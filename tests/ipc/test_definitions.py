"""What a class statement refuses: interfaces and servers that could not work, each with its sentence."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from atoll.ipc import Cap, Config, Interface, Serves, call, interface, naming, serve, stream
from atoll.ipc.keyspace import Keyspace


def twice_declared() -> None:
    class Bad(Interface):
        @call("read", idempotent=True, once=True)
        def go(self) -> None: ...


def untyped_argument() -> None:
    class Bad(Interface):
        @call("read")
        def go(self, key) -> None: ...  # type: ignore[no-untyped-def]


def untyped_result() -> None:
    class Bad(Interface):
        @call("read")
        def go(self, key: str): ...  # type: ignore[no-untyped-def]


def variable_arguments() -> None:
    class Bad(Interface):
        @call("read")
        def go(self, *keys: str) -> None: ...


def what_cannot_travel() -> None:
    class Bad(Interface):
        @call("read")
        def go(self, where: socket.socket) -> None: ...


def unknown_service() -> None:
    class Bad(Interface):
        @call("read", service="fast")  # type: ignore[arg-type]
        def go(self) -> None: ...


def no_failure() -> None:
    class Bad(Interface):
        errors = (ValueError,)  # type: ignore[assignment]


def the_sdks_own_name() -> None:
    class Bad(Interface):
        @call("read")
        def with_(self) -> None: ...  # type: ignore[override]


def no_place_to_resume() -> None:
    class Bad(Interface):
        @stream("read", position=int)
        def go(self, key: str) -> int: ...


def no_position_in_the_item() -> None:
    class Item(Struct):
        key: str

    class Bad(Interface):
        @stream("read", position=int)
        def go(self, after: int) -> Item: ...


def an_instance() -> None:
    Good()


class Good(Interface):
    @call("read")
    def one(self) -> int: ...

    @call("read")
    def two(self) -> int: ...


class Stranger(Interface):
    @call("read")
    def other(self) -> int: ...


def a_missing_handler() -> None:
    class Server(Serves[Good]):
        @Good.one.serve
        def one(self) -> int:
            return 1


def a_foreign_handler() -> None:
    class Server(Serves[Good]):
        @Good.one.serve
        @Good.two.serve
        def both(self) -> int:
            return 1

        @Stranger.other.serve
        def other(self) -> int:
            return 1


@pytest.mark.parametrize(
    ("attempt", "sentence"),
    [
        (twice_declared, "a method is idempotent, or once, or neither; not both"),
        (untyped_argument, "Bad.go(key): give the argument a type"),
        (untyped_result, "Bad.go: give the method a result type (`-> None` if it has none)"),
        (
            variable_arguments,
            "Bad.go(keys): an argument has a name and a place; *args, **kwargs and / are refused",
        ),
        (what_cannot_travel, "Bad.go: a socket cannot travel: use a Struct or a built-in type"),
        (unknown_service, "there is no class of service 'fast': use 'control', 'normal', 'bulk'"),
        (no_failure, "Bad.errors holds <class 'ValueError'>: an interface declares classes of Failure"),
        (the_sdks_own_name, "Bad.with_: the name is the SDK's own: choose another"),
        (
            no_place_to_resume,
            "Bad.go: a stream with positions takes an argument of type <class 'int'> to go on after",
        ),
        (no_position_in_the_item, "Bad.go: an item carries its position in a field of type <class 'int'>"),
        (
            an_instance,
            "Good is an interface: get a proxy from node.open(name, Good), from a need of your server",
        ),
        (a_missing_handler, "Server has no handler for Good.two: decorate one with @Good.two.serve"),
        (
            a_foreign_handler,
            "Server handles <call Stranger.other> of an interface that is not in its Serves[...]",
        ),
    ],
)
def test_what_could_not_work_is_refused_where_it_is_written(
    attempt: Callable[[], None], sentence: str
) -> None:
    with pytest.raises(TypeError) as caught:
        attempt()
    assert sentence in str(caught.value)


def test_two_names_of_one_number_are_refused() -> None:
    seen: dict[int, str] = {}
    # The first collision among short names: the birthday of 32 bits comes after some 80,000 of them.
    for count in range(1_000_000):
        name = f"m{count}"
        other = seen.setdefault(naming.number_of(name), name)
        if other != name:
            break
    first: Any = call("read")(_named(other))
    second: Any = call("read")(_named(name))
    with pytest.raises(TypeError, match=f"Bad: the names '{other}' and '{name}' have the same number 0x"):
        type("Bad", (Interface,), {other: first, name: second})


def _named(name: str) -> Callable[[Any], int]:
    def method(self: Any) -> int: ...

    method.__name__ = method.__qualname__ = name
    return method


def test_an_interface_may_name_itself_and_what_is_defined_below_it() -> None:
    class Session(Interface):
        @call("read")
        def again(self, how: "Later") -> "Cap[Session]": ...

    assert Session.again.spec.result == Cap[Session]


class Later(Struct):
    value: int


def test_an_extended_interface_has_both_sets_of_methods_and_failures() -> None:
    class More(Good):
        @call("write")
        def three(self) -> int: ...

    assert [method.name for method in interface.methods(More)] == ["one", "two", "three"]
    assert interface.rights(More) == ("read", "write")


class Settings(Config):
    step: int = 1


class Demanding(Config):
    step: int


class Needy(Serves[Good]):
    rows: Keyspace[int]
    config: Settings
    audit: Stranger
    spare: Stranger | None
    listener: socket.socket
    files: Path
    _private: Keyspace[int]
    counted: int
    shared: dict[str, int] = {}  # noqa: RUF012

    @Good.one.serve
    @Good.two.serve
    def both(self) -> int:
        return 1


def test_needs_are_read_off_the_annotations() -> None:
    assert [(need.name, need.kind, need.type, need.optional) for need in serve.needs(Needy)] == [
        ("rows", "keyspace", int, False),
        ("config", "config", Settings, False),
        ("audit", "server", Stranger, False),
        ("spare", "server", Stranger, True),
        ("listener", "socket", socket.socket, False),
        ("files", "folder", Path, False),
    ]


def test_what_is_not_bound_or_is_bound_wrongly_is_named() -> None:
    class Server(Serves[Good]):
        config: Demanding
        audit: Stranger | None

        @Good.one.serve
        @Good.two.serve
        def both(self) -> int:
            return 1

    with pytest.raises(TypeError, match=r"Server\.config \(config\) is not bound"):
        serve.bind(Server, {})
    with pytest.raises(TypeError, match=r"Server\.config needs a Demanding, and was given a Settings"):
        serve.bind(Server, {"config": Settings()})
    with pytest.raises(TypeError, match="Server has no need 'confg'; it has config, audit"):
        serve.bind(Server, {"confg": Settings()})
    assert serve.bind(Server, {"config": Demanding(step=2)}).server.audit is None  # type: ignore[attr-defined]
