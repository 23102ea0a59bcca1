"""Deferred replies: order, errors, and that they are done once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc import Deferred


def test_reactions_run_in_order_at_completion_and_at_once_afterwards() -> None:
    made: Deferred[int] = Deferred()
    told: list[object] = []
    made.react(lambda value: told.append(("first", value)), told.append)
    made.react(lambda value: told.append(("second", value)), told.append)
    assert not made.done
    made.complete(3)
    made.react(lambda value: told.append(("late", value)), told.append)
    assert told == [("first", 3), ("second", 3), ("late", 3)]
    assert made.result() == 3


@given(st.booleans(), st.booleans())
def test_then_transforms_a_value_and_passes_an_error_on(early: bool, fails: bool) -> None:
    made: Deferred[int] = Deferred()

    def end() -> None:
        made.fail(ValueError("no")) if fails else made.complete(4)

    if early:
        end()
    following = made.then(lambda value: value + 1).then(str)
    if not early:
        end()
    if fails:
        with pytest.raises(ValueError, match="no"):
            following.result()
    else:
        assert following.result() == "5"


def test_an_error_in_then_is_the_following_ones() -> None:
    with pytest.raises(ZeroDivisionError):
        Deferred.resolved(0).then(lambda value: 1 // value).result()


def test_it_is_done_once() -> None:
    made = Deferred.resolved(1)
    with pytest.raises(RuntimeError, match="done already"):
        made.complete(2)
    with pytest.raises(RuntimeError, match="done already"):
        made.fail(ValueError())
    with pytest.raises(RuntimeError, match="is not done"):
        Deferred[int]().result()
    with pytest.raises(ValueError, match="no"):
        Deferred[int].failed(ValueError("no")).result()
