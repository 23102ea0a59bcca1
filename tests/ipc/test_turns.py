"""Turns at places: one at a time a place, in the order in which they came, and nobody waits for ever."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc.deferred import Deferred
from atoll.ipc.turns import Turns

MANY = 5000


@given(
    st.lists(st.sets(st.integers(0, 3), min_size=1), max_size=12),
    st.lists(st.integers(0, 11), max_size=60),
)
def test_a_place_is_one_at_a_time_in_order(wanted: list[set[int]], ends: list[int]) -> None:
    """`ends`: which of those that have their turn is over next."""
    turns, began, waiting, over = Turns(), list[int](), dict[int, Deferred[None]](), set[int]()

    def beginning(number: int) -> Callable[[], None]:
        return lambda: began.append(number)

    def end(number: int) -> None:
        over.add(number)
        waiting[number].complete(None)

    for number, places in enumerate(wanted):
        waiting[number] = Deferred()
        turns.take(places, beginning(number), waiting[number])
        if ends and (now := [each for each in began if each not in over]):
            end(now[ends.pop() % len(now)])
    while now := [each for each in began if each not in over]:
        for place in range(4):
            assert sum(place in wanted[each] for each in now) <= 1
        end(now[ends.pop() % len(now) if ends else 0])
    assert sorted(began) == list(range(len(wanted)))
    for place in range(4):
        line = [each for each in began if place in wanted[each]]
        assert line == sorted(line)
    assert not turns._lines


def test_turns_that_end_as_they_begin_do_not_begin_inside_each_other() -> None:
    turns, first, ended = Turns(), Deferred[None](), list[int]()
    turns.take(["row"], lambda: None, first)
    for number in range(MANY):
        done: Deferred[None] = Deferred()
        done.react(lambda _, number=number: ended.append(number), ended.append)  # type: ignore[misc, arg-type]
        turns.take(["row"], lambda done=done: done.complete(None), done)  # type: ignore[misc]
    first.fail(ValueError("the first"))
    assert ended == list(range(MANY))
