"""What is made from source text: compiled once for methods of one form, and told by its own names."""

import traceback
from collections.abc import Iterator

import pytest

from atoll.ipc import Interface, Serves, call, stream, testing
from atoll.ipc.dispatch import FEW, compile_ahead
from atoll.ipc.generated import compiled, generate
from atoll.ipc.serve import bind

SOURCE = "def run(given):\n    return given._0, given._1._0, given.last\n"


class Given:
    first = "first"
    last = "last"

    @property
    def second(self) -> "Given":
        return self


def test_places_stand_for_names_in_code_and_in_what_a_traceback_shows() -> None:
    run = generate("test", SOURCE, {}, ("first", "second"))["run"]
    assert run(Given()) == ("first", "first", "last")
    with pytest.raises(AttributeError) as failed:
        run("")
    assert "given.first, given.second.first, given.last" in "".join(traceback.format_exception(failed.value))


def test_one_source_has_as_many_meanings_as_names() -> None:
    straight, turned = (
        generate(label, "def run(x): return x._0, x._1", {}, names)["run"]
        for label, names in (("straight", ("real", "imag")), ("turned", ("imag", "real")))
    )
    assert (straight(2 + 3j), turned(2 + 3j)) == ((2.0, 3.0), (3.0, 2.0))


class Two(Interface):
    @call("use")
    def plus(self, left: int, right: int) -> int: ...

    @call("use")
    def minus(self, minuend: int, subtrahend: int) -> int: ...

    @call("use")
    def named(self, minuend: int, *, subtrahend: int) -> int: ...

    @stream("use")
    def between(self, least: int, most: int) -> int: ...

    @call("use")
    def many(self, a: int, b: int, c: int, d: int, e: int, f: int, g: int = 0) -> list[int]: ...


class TwoServer(Serves[Two]):
    @Two.plus.serve
    def plus(self, left: int, right: int) -> int:
        return left + right

    @Two.minus.serve
    async def minus(self, minuend: int, subtrahend: int) -> int:
        return minuend - subtrahend

    @Two.named.serve
    def named(self, minuend: int, *, subtrahend: int) -> int:
        return minuend - subtrahend

    @Two.between.serve
    def between(self, least: int, most: int) -> Iterator[int]:
        yield from range(least, most)

    @Two.many.serve
    def many(self, a: int, b: int, c: int, d: int, e: int, f: int, g: int = 0) -> list[int]:
        return [a, b, c, d, e, f, g]


def test_arguments_come_to_handlers_of_one_form_by_their_own_names() -> None:
    with testing.running(TwoServer) as made:
        two = made.client(Two)
        assert (two.plus.now(5, 3), two.minus.now(5, 3), two.named.now(5, subtrahend=3)) == (8, 2, 2)
        assert list(two.between.now(3, 5)) == [3, 4]
        assert two.many.now(1, 2, 3, 4, 5, 6) == [1, 2, 3, 4, 5, 6, 0]


class Few(Interface):
    @call("use")
    def none(self) -> None: ...

    @call("use")
    def five(self, a: int, b: int, c: int, d: int, e: int) -> None: ...

    @stream("use")
    def items(self, a: int) -> int: ...


class FewServer(Serves[Few]):
    @Few.none.serve
    def none(self) -> None: ...

    @Few.five.serve
    async def five(self, a: int, b: int, c: int, d: int, e: int) -> None: ...

    @Few.items.serve
    def items(self, a: int) -> Iterator[int]:
        yield a


def test_what_was_compiled_ahead_is_all_that_a_server_of_few_arguments_needs() -> None:
    compiled.cache_clear()
    compile_ahead()
    before = compiled.cache_info().misses
    bind(FewServer, {})
    assert compiled.cache_info().misses == before
    assert max(len(entry.spec.arguments.__struct_fields__) for entry in bind(FewServer, {}).table) == FEW
