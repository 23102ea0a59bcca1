"""Calls, casts, errors, deadlines, pipelining, Deferreds, overload: the same by every transport."""

import asyncio
from functools import partial
from typing import Any

import pytest
import trio

from atoll.ipc import InternalFault, errors, interface, proxy, schema

from .conftest import Open
from .suite_server import Colour, Echo, EchoServer, Spent, Suite, SuiteServer, Tree


@pytest.fixture
def suite(open_server: Open) -> Suite:
    return open_server(SuiteServer).client(Suite)


def settle(suite: Suite, names: list[str]) -> None:
    """Until exactly these handlers are in hand. Each look is a call, so the server gets its turn."""
    while suite.holding.now() != names:
        pass


def test_a_blocking_call_brings_the_result_of_an_inline_and_of_an_async_handler(suite: Suite) -> None:
    assert suite.add.now("x") == 1
    assert suite.add.now("x", by=4) == 5
    assert suite.get.now("x") == 5
    assert suite.get.now("x", scale=3) == 15


def test_structs_enums_unions_and_containers_arrive_as_they_were(suite: Suite) -> None:
    tree = Tree("root", [Tree("kid", [Tree("grandkid")])])
    found = suite.mirror.now(tree, Colour.blue, {"a": (1, b"\0\xff")}, None)
    assert found == Tree("root blue None", [tree.kids[0], Tree("a 1 b'\\x00\\xff'")])


async def test_a_trio_task_awaits_the_same_proxy(suite: Suite) -> None:
    assert await suite.add("x", 3) == 3
    assert await suite.get("x") == 3


def test_an_asyncio_task_awaits_the_same_proxy(suite: Suite) -> None:
    async def both() -> list[int]:
        return list(await asyncio.gather(suite.add("x"), suite.add("y", 2)))

    assert asyncio.run(both()) == [1, 2]


def test_calls_that_are_started_together_are_taken_in_order(suite: Suite) -> None:
    assert [future.result() for future in [suite.add.start("x") for _ in range(300)]] == list(range(1, 301))


def test_a_cast_is_delivered_before_the_call_that_follows_it(suite: Suite) -> None:
    suite.add.cast("x", 10)
    assert suite.get.now("x") == 10


def test_a_cast_that_fails_troubles_nobody(suite: Suite) -> None:
    suite.fail.cast("bug")
    assert suite.add.now("x") == 1


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), (("x", 1, 2), {}), (("x",), {"bye": 1}), (("x", 1), {"by": 1})]
)
def test_a_call_that_does_not_fit_the_signature_is_a_type_error_at_the_caller(
    suite: Suite, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    add: Any = suite.add
    for way in (add.now, add.start, add.cast, add):
        with pytest.raises(TypeError):
            way(*args, **kwargs)


def test_an_argument_of_another_type_is_named_with_what_was_expected(suite: Suite) -> None:
    add: Any = suite.add
    with pytest.raises(errors.BadRequest) as caught:
        add.now("x", "three")
    assert str(caught.value) == "Suite.add(by): expected `int`, got `str`"
    mirror: Any = suite.mirror
    with pytest.raises(errors.BadRequest) as caught:
        mirror.now(Tree("a"), "green", {}, None)
    assert caught.value.where == "Suite.mirror(colour)"


def test_a_declared_failure_arrives_as_its_class_with_message_and_fields(suite: Suite) -> None:
    started = suite.add.start("x", 101)
    for result in (partial(suite.add.now, "x", 101), started.result):
        with pytest.raises(Spent) as caught:
            result()
        assert (caught.value.key, caught.value.left) == ("x", 100)
        assert str(caught.value) == "counter 'x' has 100 left: take less"


def test_what_a_handler_did_not_declare_is_an_internal_fault(suite: Suite) -> None:
    with pytest.raises(InternalFault) as caught:
        suite.fail.now("bug")
    assert str(caught.value) == (
        "Suite.fail failed inside its server, which raised ZeroDivisionError: one by none: "
        "this is a bug there; its log has the traceback"
    )
    with pytest.raises(InternalFault, match="Undeclared, which its interface does not declare"):
        suite.fail.now("undeclared")


def test_a_right_that_is_not_held_is_named_with_those_that_are(open_server: Open) -> None:
    reader = open_server(SuiteServer).client(Suite, rights={"read"})
    assert reader.get.now("x") == 0
    with pytest.raises(errors.NotAllowed) as caught:
        reader.add.now("x")
    assert str(caught.value) == (
        "Suite.add needs the right 'write', and this capability holds 'read': ask its grantor for 'write'"
    )


def test_a_handler_sees_badge_and_rights_of_the_capability_and_the_options_of_the_call(
    open_server: Open,
) -> None:
    client = open_server(SuiteServer).client(Suite, badge=77, rights={"read"})
    plain = client.seen.now()
    assert (plain.badge, plain.rights, plain.has_deadline, plain.service) == (77, ["read"], False, "normal")
    assert plain.trace != 0
    timed = client.with_(deadline=30, service="bulk").seen.now()
    assert (timed.has_deadline, timed.service) == (True, "bulk")
    assert client.with_(service="control").seen.now().service in ("control", "normal")


def test_a_deadline_cancels_an_async_handler(suite: Suite) -> None:
    with pytest.raises(errors.DeadlineExceeded) as caught:
        suite.with_(deadline=0.05).hold.now("a")
    assert str(caught.value) == "Suite.hold did not end within 0.05 s: allow more time, or ask for less"
    settle(suite, [])


def test_a_deadline_ends_a_deferred_call_and_a_late_completion_is_dropped(suite: Suite) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        suite.with_(deadline=0.05).defer.now("a")
    assert suite.release.now("a") == 1
    assert suite.add.now("x") == 1


def test_a_call_whose_time_is_over_is_not_begun(suite: Suite) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        suite.with_(deadline=0.0).add.now("x")
    assert suite.get.now("x") == 0


def test_deferred_replies_are_completed_in_a_batch_by_a_later_call(suite: Suite) -> None:
    waiting = [suite.defer.start("group") for _ in range(20)]
    settle(suite, ["group"])
    assert not any(future.done() for future in waiting)
    assert suite.release.now("group") == 20
    assert [future.result() for future in waiting] == [f"group {place}" for place in range(20)]


def test_a_call_that_waits_does_not_hold_up_those_behind_it(suite: Suite) -> None:
    first = suite.hold.start("a")
    assert suite.add.now("x") == 1
    settle(suite, ["a"])
    suite.release.now("a")
    assert first.result() == "released a"


def test_a_future_that_is_cancelled_cancels_its_handler(suite: Suite) -> None:
    future = suite.hold.start("a")
    settle(suite, ["a"])
    future.cancel()
    settle(suite, [])
    with pytest.raises(errors.Aborted):
        future.result()


async def test_cancelling_the_task_that_awaits_cancels_the_handler(suite: Suite) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(suite.hold, "a")
        while await suite.holding() != ["a"]:
            pass
        nursery.cancel_scope.cancel()
    while await suite.holding():
        pass


def test_a_server_with_too_much_in_hand_turns_the_next_call_away(open_server: Open) -> None:
    suite = open_server(SuiteServer, in_hand=4).client(Suite)
    waiting = [suite.defer.start("group") for _ in range(4)]
    with pytest.raises(errors.Overloaded) as caught:
        suite.defer.now("group")
    assert caught.value.where == "Suite.defer"
    for future in waiting:
        future.cancel()


def test_many_threads_may_use_one_proxy(suite: Suite) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(trio.to_thread.run_sync, lambda: [suite.add.now("x") for _ in range(50)])

    trio.run(main)
    assert suite.get.now("x") == 400


def test_a_capability_in_an_argument_is_usable_by_the_server(open_server: Open) -> None:
    echo = open_server(EchoServer)
    suite = open_server(SuiteServer).client(Suite)
    assert suite.through.now(echo.capability(Echo, badge=5), "hello") == "hello 5"


def test_a_capability_in_a_reply_is_usable_by_the_client_and_keeps_its_rights(open_server: Open) -> None:
    echo = open_server(EchoServer)
    suite = open_server(SuiteServer).client(Suite)
    assert suite.back.now(echo.capability(Echo, badge=6)).open().say.now("hi") == "hi 6"
    powerless = suite.back.now(echo.capability(Echo, rights=set())).open()
    with pytest.raises(errors.NotAllowed, match="holds no right"):
        powerless.say.now("hi")


def test_statistics_count_calls_and_errors(suite: Suite) -> None:
    suite.add.now("x")
    suite.add.cast("x")
    with pytest.raises(Spent):
        suite.add.now("x", 101)
    found = proxy.statistics(suite)
    assert (found.calls, found.casts, found.errors, found.pending) == (2, 1, 1, 0)
    assert found.bytes_sent > 0


def test_an_interface_that_does_not_fit_is_refused_with_the_difference() -> None:
    class Other(interface.Interface):
        @interface.call("read")
        def add(self, key: str, by: str) -> int: ...

    expected = schema.describe(Other)
    with pytest.raises(errors.Incompatible) as caught:
        schema.check(expected, schema.describe(Suite))
    assert "expected str, got int, at Other.add(by)" in str(caught.value)
