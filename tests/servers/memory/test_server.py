"""The memory server as its clients see it, on real sealed memory."""

import fcntl
import mmap
from collections.abc import Callable
from typing import Any

import pytest
import trio

from atoll.ipc.buffer import BufferMode
from atoll.ipc.errors import BadRequest, NotFound, QuotaExceeded
from atoll.ipc.proxy import transport_of
from atoll.servers.memory.interface import HasReaders, Memory, NotShared, Share
from atoll.servers.memory.regions import PAGE
from atoll.servers.memory.server import Server, Settings

from .memfd import MemfdBuffers

CONFIG = Settings(pool=64 * PAGE, per_client=16 * PAGE, regions_per_client=8)


class WithoutKernel(Server):
    def buffers(self) -> MemfdBuffers:
        return MemfdBuffers()


@pytest.fixture
def served(serve: Callable[..., Any]) -> Any:
    return serve(WithoutKernel, config=CONFIG)


def seals(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)


def test_a_writable_share_is_the_memory_itself(served: Any) -> None:
    one, two = served.client(), served.client()
    region = one.allocate.now(5000)
    assert (region.size, region.buffer.mode) == (2 * PAGE, "writable")
    assert bytes(region.buffer.view) == bytes(2 * PAGE)
    held = two.open.now(one.share.now(region.number, writable=True))
    region.buffer.view[100:105] = b"atoll"
    assert bytes(held.buffer.view[100:105]) == b"atoll"
    held.buffer.view[100:102] = b"AT"
    assert bytes(one.map.now(region.number).buffer.view[100:105]) == b"AToll"
    assert two.map.now(region.number).buffer.mode == "writable"


def test_a_reader_maps_the_memory_itself_and_keeps_further_writers_out(served: Any) -> None:
    one, two, three = (served.client() for _ in range(3))
    region = one.allocate.now(PAGE)
    region.buffer.view[:5] = b"early"
    share, writable = one.share.now(region.number), one.share.now(region.number, writable=True)
    assert share == one.share.now(region.number) != writable
    held = two.open.now(share)
    region.buffer.view[:5] = b"later"
    assert bytes(held.buffer.view[:5]) == b"later"
    assert held.buffer.mode == "readonly"
    with pytest.raises(TypeError, match="read-only"):
        held.buffer.view[0] = 1
    assert one.statistics.now().used == PAGE, "there is no copy to be charged"
    with pytest.raises(HasReaders, match="takes no further writer"):
        three.open.now(writable)
    assert three.mine.now() == []
    assert one.map.now(region.number).buffer.mode == "writable", "who wrote before writes on"
    sealed = two.map.now(one.seal.now(region.number).number)
    assert (sealed.buffer.mode, bytes(sealed.buffer.view[:5])) == ("immutable", b"later")
    assert three.open.now(writable).buffer.mode == "immutable"
    assert bytes(held.buffer.view[:5]) == bytes(5)


def test_descriptors_are_sealed_against_what_the_mode_forbids(served: Any) -> None:
    memory: Memory = served.client()
    region = memory.allocate.now(PAGE)
    descriptor = region.buffer.handle
    assert seals(descriptor) & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with pytest.raises(OSError, match="not permitted"):
        __import__("os").ftruncate(descriptor, 0)
    shared = served.client().open.now(memory.share.now(region.number))
    with pytest.raises(OSError, match="not permitted"):
        mmap.mmap(shared.buffer.handle, PAGE)
    region.buffer.view[:4] = b"last"
    sealed = memory.seal.now(region.number)
    assert (sealed.buffer.mode, bytes(sealed.buffer.view[:4])) == ("immutable", b"last")
    assert seals(sealed.buffer.handle) & fcntl.F_SEAL_WRITE
    region.buffer.view[:4] = b"late"
    assert bytes(sealed.buffer.view[:4]) == b"last", "a mapping made before the seal cannot change the region"
    assert memory.seal.now(region.number).buffer.mode == "immutable"


def test_what_is_taken_back_reads_zeros(served: Any) -> None:
    one, two = served.client(), served.client()
    region = one.allocate.now(PAGE)
    region.buffer.view[:6] = b"secret"
    held = two.open.now(one.share.now(region.number))
    assert one.release.now(region.number) is True
    assert bytes(held.buffer.view[:6]) == bytes(6)
    with pytest.raises(NotFound):
        two.map.now(region.number)
    assert one.statistics.now().used == 0


def test_a_dead_clients_regions_are_reclaimed_and_sealed_ones_live_on(served: Any) -> None:
    one, two = served.client(), served.client()
    lost, kept = one.allocate.now(PAGE), one.allocate.now(PAGE)
    kept.buffer.view[:4] = b"kept"
    shares = [one.share.now(region.number) for region in (lost, kept)]
    readers = [two.open.now(share) for share in shares]
    sealed = one.seal.now(kept.number)
    served.gone(one)
    assert [each.number for each in two.mine.now()] == [kept.number]
    assert bytes(sealed.buffer.view[:4]) == b"kept"
    assert bytes(two.map.now(kept.number).buffer.view[:4]) == b"kept"
    assert bytes(readers[0].buffer.view) == bytes(PAGE)
    served.gone(two)
    three = served.client()
    assert three.statistics.now().regions == 0
    assert three.statistics.now().reclaimed == 2
    served.settle()  # the memory itself is given back by a task
    assert len(served.server._buffers) == 0


def test_quotas_and_wrong_calls_are_refused(served: Any) -> None:
    one, two, three = served.client(), served.client(), served.client()
    region = one.allocate.now(16 * PAGE)
    with pytest.raises(QuotaExceeded, match="bytes of memory"):
        one.allocate.now(1)
    two.allocate.now(10 * PAGE)
    with pytest.raises(QuotaExceeded, match="bytes of memory"):
        two.open.now(one.share.now(region.number))
    assert two.statistics.now().refused == 2
    with pytest.raises(NotShared):
        three.open.now(Share(region.number, b"guessed"))
    for call in (three.map.now, three.seal.now, three.share.now, three.release.now):
        with pytest.raises(NotFound):
            call(region.number)
    held = three.open.now(one.share.now(region.number))
    with pytest.raises(BadRequest, match="one that the caller owns"):
        three.seal.now(held.number)
    with pytest.raises(BadRequest, match="above 0"):
        one.allocate.now(0)


def test_numpy_works_on_the_region_itself(served: Any) -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    one, two = served.client(), served.client()
    region = one.allocate.now(8 * 512)
    numbers = numpy.frombuffer(region.buffer.view, dtype=numpy.int64)
    share = one.share.now(region.number, writable=True)
    held = numpy.frombuffer(two.open.now(share).buffer.view, dtype=numpy.int64)
    numbers[:] = range(512)
    assert held.sum() == 512 * 511 // 2
    sealed = numpy.frombuffer(one.seal.now(region.number).buffer.view, dtype=numpy.int64)
    assert sealed.sum() == 512 * 511 // 2
    assert not sealed.flags.writeable


class Gated(MemfdBuffers):
    """Sharing with one client waits, once it is done; another one can have nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = self.full = 0
        self.gate = trio.Event()

    async def share(self, handle: int, client: int, mode: BufferMode) -> None:
        if client == self.full and client not in self._of(handle).clients:
            raise QuotaExceeded("server.memory", "buffers shared over one channel", 1024)
        await super().share(handle, client, mode)
        if client == self.slow:
            await self.gate.wait()


class WithGate(Server):
    def buffers(self) -> Gated:
        return Gated()


@pytest.fixture
def gated(serve: Callable[..., Any]) -> tuple[Any, Gated]:
    served = serve(WithGate, config=CONFIG)
    return served, served.server._buffers


def number(client: Memory) -> int:
    return transport_of(client).number  # type: ignore[attr-defined, no-any-return]


def test_what_is_opened_twice_at_a_time_is_held_though_one_was_given_up(gated: tuple[Any, Gated]) -> None:
    served, buffers = gated
    owner, other = served.client(), served.client()
    region = owner.allocate.now(9 * PAGE).number
    share = owner.share.now(region)
    buffers.slow = number(other)
    first = other.open.start(share)
    served.settle()
    second, third = other.open.start(share), other.open.start(share)
    served.settle()
    first.cancel()
    third.cancel()
    served.settle()
    served.host.submit(buffers.gate.set)
    assert second.result().size == 9 * PAGE
    assert [each.number for each in other.mine.now()] == [region]
    assert served.server._regions.broken() == []
    with pytest.raises(QuotaExceeded):
        other.open.now(owner_share(served))


def owner_share(served: Any) -> Share:
    """Of another region that would be too much for who holds one."""
    owner = served.client()
    return owner.share.now(owner.allocate.now(9 * PAGE).number)


def test_who_gave_up_opening_a_region_does_not_have_it(gated: tuple[Any, Gated]) -> None:
    served, buffers = gated
    owner, other = served.client(), served.client()
    region = owner.allocate.now(PAGE).number
    buffers.slow = number(other)
    opened = other.open.start(owner.share.now(region))
    served.settle()
    opened.cancel()
    served.settle()
    assert other.mine.now() == []
    (held,) = buffers._made.values()
    assert list(held.clients) == [number(owner)]
    buffers.slow = 0
    other.open.now(owner.share.now(region))
    assert set(held.clients) == {number(owner), number(other)}


def test_a_seal_that_comes_to_nothing_leaves_no_memory(gated: tuple[Any, Gated]) -> None:
    """It is the server's account's, and who holds as much as it may could use that up for everybody."""
    served, buffers = gated
    owner, other = served.client(), served.client()
    region = owner.allocate.now(PAGE)
    region.buffer.view[:4] = b"kept"
    held = other.open.now(owner.share.now(region.number))
    buffers.full = number(other)
    for _ in range(3):
        with pytest.raises(QuotaExceeded, match="over one channel"):
            owner.seal.now(region.number)
    assert len(buffers) == 1
    assert bytes(held.buffer.view[:4]) == b"kept"
    buffers.full = 0
    assert bytes(owner.seal.now(region.number).buffer.view[:4]) == b"kept"
    assert len(buffers) == 1


def test_who_opens_a_region_while_it_is_sealed_has_what_it_is_then(gated: tuple[Any, Gated]) -> None:
    """Else the next process of the server would find that it holds nothing."""
    served, buffers = gated
    owner, other = served.client(), served.client()
    region = owner.allocate.now(PAGE).number
    share = owner.share.now(region)
    buffers.slow = number(owner)
    sealing = owner.seal.start(region)
    served.settle()
    other.open.now(share)
    served.host.submit(buffers.gate.set)
    sealing.result()
    (held,) = buffers._made.values()
    assert set(held.clients) == {number(owner), number(other)}


def test_who_lets_a_region_go_while_it_is_sealed_does_not_have_it(gated: tuple[Any, Gated]) -> None:
    served, buffers = gated
    owner, other = served.client(), served.client()
    region = owner.allocate.now(PAGE).number
    other.open.now(owner.share.now(region))
    buffers.slow = number(other)
    sealing = owner.seal.start(region)
    served.settle()
    other.release.now(region)
    served.host.submit(buffers.gate.set)
    sealing.result()
    served.settle()
    (held,) = buffers._made.values()
    assert set(held.clients) == {number(owner)}
