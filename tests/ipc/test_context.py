"""The call in hand: what handlers see of it, what nested calls inherit, who may not block."""

import logging
import threading

import pytest
import trio

from atoll.ipc import Call, Interface, Serves, call, context, current, errors, testing
from atoll.ipc.context import Fields, SystemClock
from atoll.ipc.transport import Options


class Inner(Interface):
    @call("read")
    def trace(self) -> tuple[int, float | None]: ...

    @call("read")
    def forever(self) -> None: ...


class InnerServer(Serves[Inner]):
    @Inner.trace.serve
    def trace(self) -> tuple[int, float | None]:
        return current().trace, current().remaining()

    @Inner.forever.serve
    async def forever(self) -> None:
        await trio.sleep_forever()


class Outer(Interface):
    @call("read")
    def nested(self) -> tuple[int, int, float | None]: ...

    @call("read")
    def wait_long(self) -> None: ...

    @call("read")
    def block(self) -> int: ...

    @call("read")
    def block_async(self) -> int: ...

    @call("read")
    def block_in_thread(self) -> int: ...

    @call("read")
    def chance(self) -> tuple[float, bytes, float]: ...

    @call("read")
    def speak(self) -> None: ...


class OuterServer(Serves[Outer]):
    inner: Inner

    @Outer.nested.serve
    async def nested(self) -> tuple[int, int, float | None]:
        trace, remaining = await self.inner.with_(deadline=1000).trace()
        return current().trace, trace, remaining

    @Outer.wait_long.serve
    async def wait_long(self) -> None:
        await self.inner.with_(deadline=1000).forever()

    @Outer.block.serve
    def block(self) -> int:
        return self.inner.trace.now()[0]

    @Outer.block_async.serve
    async def block_async(self) -> int:
        return self.inner.trace.now()[0]

    @Outer.block_in_thread.serve
    async def block_in_thread(self) -> int:
        trace = await trio.to_thread.run_sync(self.inner.trace.now)
        return int(trace[0] == current().trace)

    @Outer.chance.serve
    def chance(self) -> tuple[float, bytes, float]:
        return current().random.random(), current().new_id(), current().now()

    @Outer.speak.serve
    def speak(self) -> None:
        current().log.info("hello", key=3)


def test_what_is_done_for_bulk_is_bulk() -> None:
    spec = Inner.trace.spec
    bulk = Call(Fields(method="A.b", service="bulk"), SystemClock())
    assert (
        bulk.inherit(Options(), spec).service
        == bulk.inherit(Options(service="control"), spec).service
        == "bulk"
    )
    usual = Call(Fields(method="A.b"), SystemClock())
    assert usual.inherit(Options(), spec).service is None
    assert usual.inherit(Options(service="bulk"), spec).service == "bulk"


def test_nested_calls_inherit_trace_and_the_lesser_deadline() -> None:
    clock = testing.VirtualClock()
    with (
        testing.node(InnerServer, clock=clock) as inner,
        testing.node(OuterServer, needs={"inner": inner}) as outer,
    ):
        mine, theirs, remaining = outer.nested.now()
        assert mine == theirs != 0
        assert remaining == 1000
    with testing.node(InnerServer) as inner, testing.node(OuterServer, needs={"inner": inner}) as outer:
        _, _, remaining = outer.with_(deadline=50).nested.now()
        assert remaining is not None
        assert remaining <= 50
        with pytest.raises(errors.DeadlineExceeded):
            outer.with_(deadline=0.05).wait_long.now()


@pytest.mark.parametrize("method", ["block", "block_async"])
def test_a_handler_that_would_block_its_loop_is_told_so(method: str) -> None:
    with testing.node(InnerServer) as inner, testing.node(OuterServer, needs={"inner": inner}) as outer:
        with pytest.raises(errors.WouldBlock) as caught:
            getattr(outer, method).now()
        assert str(caught.value) == (
            f"Outer.{method} made the blocking call Inner.trace.now, which would halt its server's loop: "
            "make the handler `async def` and await the call, or return a Deferred"
        )


def test_a_worker_thread_of_a_handler_may_block_and_keeps_the_trace() -> None:
    with testing.node(InnerServer) as inner, testing.node(OuterServer, needs={"inner": inner}) as outer:
        assert outer.block_in_thread.now() == 1


def test_chance_is_repeatable_under_a_seed_and_differs_from_call_to_call() -> None:
    def draw(seed: int | None) -> list[tuple[float, bytes, float]]:
        with (
            testing.node(InnerServer) as inner,
            testing.running(
                OuterServer, needs={"inner": inner}, seed=seed, clock=testing.VirtualClock()
            ) as made,
        ):
            outer = made.client(Outer)
            return [outer.chance.now(), outer.chance.now()]

    first, second = draw(7)
    assert first != second
    assert draw(7) == [first, second]
    assert draw(8)[0] != first
    assert draw(None)[0] != first


def test_a_log_line_names_its_call(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "atoll"),
        testing.node(InnerServer) as inner,
        testing.node(OuterServer, needs={"inner": inner}) as outer,
    ):
        outer.speak.now()
    (record,) = caplog.records
    assert record.getMessage().startswith("hello method=Outer.speak trace=")
    assert record.getMessage().endswith(" key=3")


def test_outside_of_a_handler_there_is_no_call() -> None:
    with pytest.raises(LookupError, match="no call is in hand"):
        current()


def test_the_inline_slot_is_read_only_if_a_handler_asks_and_once_a_message() -> None:
    slot = context.INLINE
    read: list[int] = []

    def fields() -> context.Fields:
        read.append(len(read))
        return context.Fields(method="A.b", badge=len(read))

    slot.read, slot.thread, slot.call = fields, threading.get_ident(), None
    try:
        assert read == []
        first: Call = current()
        assert current() is first
        slot.call = None
        assert (first.badge, current().badge) == (1, 2)
        with pytest.raises(errors.WouldBlock):
            context.forbid_blocking("C.d")
    finally:
        slot.read = slot.call = None
