"""Granted buffers between real processes: what is shared, what it costs, and what is taken back."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.buffer import Buffer
from atoll.ipc.errors import BadRequest, PeerDied, QuotaExceeded
from atoll.ipc.proxy import transport_of
from atoll.ipc.system.kernel import Swap

from .nodes import PACKAGES, RealNode, booted, interface

Keeper = interface("keeper", "Keeper")
IMAGE = f"""
[image]
name = "test"

[node]
level = "process"
account = "all"

[account.all]
channels = 256
buffers = "300MiB"

[server.state]
needs = {{}}

[server.keeper]
package = "{PACKAGES}/keeper"
needs = {{}}
"""
PAGE = 4096


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("grants"), text=IMAGE) as running:
        yield running


@pytest.fixture
def attached(node: RealNode) -> Iterator[Attached]:
    """Each test has a `keeper` that was never called."""
    with node.attach() as one:
        one.kernel.restart.now("keeper")
        yield one


@pytest.fixture
def keeper(attached: Attached) -> Any:
    return attached.open("keeper", Keeper)


def test_a_large_buffer_holds_up_no_other_call(node: RealNode, attached: Attached) -> None:
    made = threading.Event()

    def make() -> None:
        buffer = attached.buffer(256 << 20)
        attached.kernel.buffer_release.now(buffer.handle)
        made.set()

    with node.attach() as other:
        other.kernel.node.now()
        maker = threading.Thread(target=make)
        maker.start()
        answered = 0
        while not made.is_set():
            other.kernel.node.now()
            answered += 1
        maker.join()
    assert answered > 10, "a few calls at most find room between the steps of a kernel that does nothing else"


def test_what_was_forgotten_is_mapped_again_when_it_is_shared_again(attached: Attached, keeper: Any) -> None:
    buffer = attached.buffer(PAGE)
    buffer.view[:5] = b"atoll"
    keeper.keep.now(buffer)
    assert keeper.maps.now() == 1
    keeper.forget.now()
    assert keeper.maps.now() == 0
    keeper.keep.now(buffer)
    assert (keeper.held.now(5), keeper.maps.now()) == (b"atoll", 1)


def test_a_buffer_that_was_shared_once_costs_no_system_call(attached: Attached, keeper: Any) -> None:
    buffer = attached.buffer(1 << 20)
    where = keeper.name.now(buffer)
    calls = transport_of(attached.kernel).statistics()
    for _ in range(50):
        assert keeper.name.now(buffer) == where, "mapped once, at one place"
    assert transport_of(attached.kernel).statistics() == calls
    assert keeper.maps.now() == 1


@pytest.mark.parametrize("way", ["settle", "settle_in_a_task"])
def test_a_deferred_reply_shares_with_whoever_it_answers(node: RealNode, way: str) -> None:
    """And not with whoever's call happens to complete it."""
    with node.attach() as asking, node.attach() as other:
        asking.kernel.restart.now("keeper")
        keeper = asking.open("keeper", Keeper)
        keeper.lend.now(PAGE)
        lent = keeper.lend_later.start()
        while not getattr(other.open("keeper", Keeper), way).now():
            pass
        other.kernel.node.now()
        other._pump()
        assert not other._deliveries._buffers, "another client has what was lent"
        assert bytes(lent.result().view[:4]) == b"lent"


def test_a_reader_sees_what_is_written_later_and_cannot_write(attached: Attached, keeper: Any) -> None:
    buffer = attached.buffer(2 * PAGE, "readonly")
    assert (buffer.mode, buffer.passed) == ("writable", "readonly")
    assert keeper.keep.now(buffer) == "readonly"
    buffer.view[:5] = b"later"
    assert keeper.held.now(5) == b"later"
    assert "read-only" in keeper.write.now(b"mine")
    with pytest.raises(BadRequest, match="readonly: it is sealed"):
        keeper.keep.now(Buffer(buffer.view, "writable", buffer.handle))


def test_a_read_only_share_of_a_writable_buffer_is_a_copy(attached: Attached, keeper: Any) -> None:
    buffer = attached.buffer(PAGE)
    buffer.view[:5] = b"early"
    assert keeper.keep.now(Buffer(buffer.view, "readonly", buffer.handle)) == "readonly"
    buffer.view[:5] = b"later"
    assert keeper.held.now(5) == b"early"
    assert keeper.keep.now(buffer) == "writable"
    assert keeper.write.now(b"other") == "written"
    assert bytes(buffer.view[:5]) == b"other"


def test_numbers_are_read_and_written_in_place_on_both_sides(attached: Attached, keeper: Any) -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    buffer = attached.buffer(1 << 20, "readonly")
    numbers = numpy.frombuffer(buffer.view, dtype="<i8")
    assert numpy.shares_memory(numbers, numpy.asarray(buffer.view))
    assert numbers.flags.writeable and not numbers.flags.owndata
    keeper.keep.now(buffer)
    numbers[:] = numpy.arange(len(numbers))
    assert keeper.total.now() == sum(range(len(numbers)))
    lent = keeper.lend.now(PAGE)
    theirs = numpy.frombuffer(lent.view, dtype="u1")
    assert not theirs.flags.writeable
    assert bytes(theirs[:4]) == b"lent"
    keeper.write.now(b"else")
    assert bytes(theirs[:4]) == b"else"


@pytest.mark.parametrize("how", ["swap", "crash"])
def test_a_servers_next_process_has_what_was_shared_with_it(
    attached: Attached, keeper: Any, how: str
) -> None:
    buffer = attached.buffer(PAGE, "readonly")
    buffer.view[:5] = b"atoll"
    keeper.keep.now(buffer)
    if how == "swap":
        attached.kernel.swap.now(Swap(server="keeper"))
    else:
        with pytest.raises(PeerDied):
            keeper.die.now()
    calls = transport_of(attached.kernel).statistics()
    keeper.keep.now(buffer)
    assert transport_of(attached.kernel).statistics() == calls, "its token holds: it was not shared again"
    assert keeper.held.now(5) == b"atoll"


def test_a_process_has_what_was_shared_before_it_serves_who_shared_it(
    attached: Attached, keeper: Any
) -> None:
    """A call that names it may wait in the ring, and the process be faster than the kernel that introduces it."""
    keeper.keep.now(attached.buffer(PAGE, "readonly"))
    with pytest.raises(PeerDied):
        keeper.die.now()
    assert keeper.mapped_at_start.now() == 1


def test_what_was_taken_back_reads_zeros_and_is_named_by_no_message(node: RealNode, keeper: Any) -> None:
    with node.attach() as owner:
        theirs = owner.open("keeper", Keeper)
        for mode in ("writable", "readonly"):
            buffer = owner.buffer(2 << 20, mode)  # type: ignore[arg-type]
            buffer.view[:6] = b"secret"
            theirs.keep.now(buffer)
            assert keeper.held.now(6) == b"secret"
            assert owner.kernel.buffer_revoke.now(buffer.handle) == 1
            assert keeper.held.now(6) == bytes(6)
            with pytest.raises(BadRequest, match="not taken back"):
                theirs.keep.now(buffer)
            owner.kernel.buffer_release.now(buffer.handle)


def test_a_copy_that_was_taken_back_is_made_anew(attached: Attached, keeper: Any) -> None:
    buffer = attached.buffer(PAGE)
    share = Buffer(buffer.view, "readonly", buffer.handle)
    for text in (b"one", b"two"):
        buffer.view[:3] = text
        keeper.keep.now(share)
        assert keeper.held.now(3) == text
        assert attached.kernel.buffer_revoke.now(buffer.handle) == 1
        assert keeper.held.now(3) == bytes(3)


def test_memory_is_charged_until_nobody_maps_it(node: RealNode, keeper: Any) -> None:
    most = 200 << 20
    with node.attach() as owner:
        theirs = owner.open("keeper", Keeper)
        buffer = owner.buffer(most, "readonly")
        theirs.keep.now(buffer)
        owner.kernel.buffer_release.now(buffer.handle)
        with pytest.raises(QuotaExceeded):
            owner.buffer(most)
        assert keeper.held.now(1) == b"\0"
        del buffer
        theirs.keep.now(owner.buffer(PAGE))  # it lets go of the one before
        owner.kernel.buffer_release.now(owner.buffer(most).handle)


def test_a_server_unmaps_what_clients_have_given_up(node: RealNode, keeper: Any) -> None:
    for _ in range(3):
        with node.attach() as one:
            theirs = one.open("keeper", Keeper)
            for _ in range(3):
                buffer = one.buffer(PAGE)
                theirs.name.now(buffer)
                one.kernel.buffer_release.now(buffer.handle)
            theirs.name.now(one.buffer(PAGE))
    assert keeper.maps.now() <= 1
