"""A channel whose process has several threads, forks, many descriptors, or a kernel that died at a bad moment."""

import contextlib
import fcntl
import gc
import os
import resource
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from itertools import count, islice

import msgspec
import pytest
import trio

from atoll.ipc import Deferred, Interface, Serves, call, future, stream, upload
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.client.outside import Outside
from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.errors import AtollError, BadRequest, NodeDown
from atoll.ipc.proxy import DEFAULTS, bind, transport_of
from atoll.ipc.runtime.launch import Process
from atoll.ipc.system import control
from atoll.ipc.system.control import Port, Shape
from atoll.native import Kind, ffi, lib
from tests.adversary.attack import Attacker, Record
from tests.kit.forked import forked
from tests.kit.memory import Memory, Segment
from tests.kit.serving import serving

SHAPE = Shape()
OUTER = 900
PARKED = 11
"""Of the status segment's words: the loop sleeps."""


class Depot(Interface):
    @call("use")
    def fetch(self, name: str) -> str: ...


class Desk(Interface):
    @call("use")
    def ask_twice(self) -> str: ...


class DeskServer(Serves[Desk]):
    """Asks a server behind it from its event loop and from a thread, over one channel."""

    def _depot(self) -> Depot:
        process = next(found for found in gc.get_objects() if isinstance(found, Process))
        port = Port(channel=OUTER, slot=0, generation=1, interface="Depot", rights=("use",))
        return bind(Depot, ChannelTransport(process.clients[OUTER], port))

    @Desk.ask_twice.serve
    async def ask_twice(self) -> str:
        depot, answers = self._depot(), {}

        def depot_asked() -> int:
            return transport_of(depot).channel.pending  # type: ignore[attr-defined,no-any-return]

        async def from_the_loop() -> None:
            answers["loop"] = await depot.fetch("loop")

        def from_a_thread() -> None:
            answers["thread"] = depot.fetch.now("thread")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(from_the_loop)
            while not depot_asked():
                await trio.lowlevel.checkpoint()
            thread = threading.Thread(
                target=from_a_thread
            )  # one that trio knows nothing of, and does not wake for
            thread.start()
        thread.join()
        return f"{answers['loop']}, {answers['thread']}"


def test_a_thread_that_stops_receiving_wakes_the_loop_that_sleeps_in_c() -> None:
    """The thread took the word `parked` for itself; the loop, asleep, would never be rung for its own reply."""
    with serving(DeskServer) as served:
        memory = Memory(OUTER, SHAPE, 0)
        lib.atoll_notice_channel(served.server_notice.c, 0, 1, 1, memory.base, ffi.NULL)
        opened = control.OpenChannel(
            channel=OUTER, role="client", peer="depot", shape=SHAPE, epoch=1, base=memory.base, notice=0
        )
        served._send(opened, memory.descriptor, memory.client_bell.fileno())
        served.observe()
        depot = Attacker(memory, server=True)
        asked = served.proxies[0].ask_twice.start()
        requests = numbers_of(memory, 2)  # the loop's first, then the thread's
        until_parked(memory, 1)
        while not served.status.words[PARKED]:
            os.sched_yield()
        answer(depot, requests[1], "of the thread")
        until_parked(memory, 2)  # on its doorbell: the thread is gone, and the loop sleeps again
        answer(depot, requests[0], "of the loop")
        assert asked.result() == "of the loop, of the thread"
        memory.close()


def numbers_of(memory: Memory, count: int) -> list[int]:
    """The request numbers of the first records that a client wrote, once they are there."""
    found: list[int] = []
    position = memory.base
    begin = 4096 + 2 * (1 << SHAPE.ring_bits)
    while len(found) < count:
        at = begin + (position & ((1 << SHAPE.ring_bits) - 1))
        if int.from_bytes(memory.mapped[at : at + 8], "little") != position + 1:
            os.sched_yield()
            continue
        length = int.from_bytes(memory.mapped[at + 8 : at + 12], "little")
        found.append(int.from_bytes(memory.mapped[at + 16 : at + 24], "little"))
        position += 64 + (length + 63) // 64 * 64
    return found


def until_parked(memory: Memory, how: int) -> None:
    while memoryview(memory.mapped).cast("I")[16] != how:
        os.sched_yield()


def answer(depot: Attacker, request: int, text: str) -> None:
    payload = msgspec.msgpack.encode(text)
    depot.write(Record(0, kind=Kind.REPLY, request=request, length=len(payload)), payload)


def test_a_turn_that_comes_as_the_time_is_up_is_handed_on() -> None:
    with serving(CounterServer) as served:
        client = served.client(served.channels[0])
        failures: list[BaseException] = []

        def impatient() -> None:
            try:
                served.proxies[0].double.start(1).result(timeout=0.01)
            except TimeoutError as error:
                failures.append(error)

        other, given = threading.Event(), False
        with client.receiving:  # somebody receives, and stops just as the time of the one who waits is up
            while not given:  # its time may be up before this thread is given any
                thread = threading.Thread(target=impatient)
                thread.start()
                while thread.is_alive() and not given:
                    given = take_turn(client, other)
                thread.join()
            assert failures
            assert other.is_set()


def take_turn(client: ClientChannel, other: threading.Event) -> bool:
    """Whether a thread waited for its turn, which has come now, and before `other` began to wait."""
    for turn in client.turns[:1]:
        client.turns.append(other)
        with contextlib.suppress(ValueError):  # it gave up in between
            client.turns.remove(turn)
            return True
        client.turns.remove(other)
    os.sched_yield()
    return False


# forks ----------------------------------------------------------------------------------------------------------------


class Counter(Interface):
    @call("use")
    def double(self, number: int) -> int: ...

    @call("use")
    def hold(self) -> int:
        """Until `release`."""

    @call("use")
    def release(self) -> None: ...

    @stream("use")
    def numbers(self) -> int: ...

    @upload("use", item=bytes)
    def sizes(self) -> int: ...


class CounterServer(Serves[Counter]):
    def __init__(self) -> None:
        self.held: list[Deferred[int]] = []

    @Counter.double.serve
    def double(self, number: int) -> int:
        return number * 2

    @Counter.hold.serve
    def hold(self) -> Deferred[int]:
        self.held.append(Deferred())
        return self.held[-1]

    @Counter.release.serve
    def release(self) -> None:
        for held in self.held:
            held.complete(7)

    @Counter.numbers.serve
    def numbers(self) -> Iterator[int]:
        yield from count()

    @Counter.sizes.serve
    async def sizes(self, items: AsyncIterator[bytes]) -> int:
        return sum([len(item) async for item in items])


def test_a_proxy_that_a_fork_inherited_is_refused_and_harms_no_one() -> None:
    with serving(CounterServer) as served:
        proxy = served.proxies[0]
        assert proxy.double.now(1) == 2
        read, write = os.pipe()

        def child() -> None:
            for ask in (
                lambda: proxy.double.now(2),
                lambda: proxy.double.start(2),
                lambda: proxy.double.cast(2),
            ):
                with contextlib.suppress(BadRequest):
                    ask()
                    os.write(write, b"served")
            try:
                proxy.double.now(2)
            except BadRequest as error:
                os.write(write, str(error).encode())
            host = served.client(served.channels[0]).host
            assert isinstance(host, Outside)
            host.remove(served.channels[0].number)  # as detaching would

        with forked(child) as pid:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(write)
        assert b"connect anew" in os.read(read, 1000)
        os.close(read)
        assert [proxy.double.now(number) for number in range(100)] == [number * 2 for number in range(100)]

        async def in_a_loop() -> int:
            return int(await proxy.double(5))

        assert trio.run(in_a_loop) == 10
        assert not served.misbehaved


def test_what_a_fork_inherited_in_hand_is_over_there_and_goes_on_here() -> None:
    """A future, a stream and an upload, open when the process forks: the child can touch each, and writes into no ring."""
    with serving(CounterServer) as served:
        proxy = served.proxies[0]
        spec = next(method.spec for method in served.methods(Counter) if method.spec.name == "sizes")
        future, numbers = proxy.hold.start(), proxy.numbers.now()
        upload = transport_of(proxy).open(spec, msgspec.msgpack.encode([]), DEFAULTS)
        assert [next(numbers) for _ in range(3)] == [0, 1, 2]
        read, write = os.pipe()

        def child() -> None:
            for touch in (
                future.result,
                lambda: list(islice(numbers, 100_000)),
                lambda: upload.send_now(msgspec.msgpack.encode(b"x")),
                upload.receive_now,
            ):
                try:
                    touch()
                except AtollError as error:
                    os.write(write, f"{type(error).__name__} ".encode())
            future.cancel()
            upload.finish()
            upload.cancel()
            numbers.cancel()
            os.write(write, b"done")

        with forked(child) as pid:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(write)
        assert os.read(read, 1000).split() == [b"BadRequest"] * 4 + [b"done"]
        os.close(read)
        assert [next(numbers) for _ in range(2000)] == list(range(3, 2003))
        upload.send_now(msgspec.msgpack.encode(b"four"))
        upload.finish()
        assert upload.receive_now() == [msgspec.msgpack.encode(4)]
        proxy.release.now()
        assert future.result() == 7
        assert not served.misbehaved


def test_a_fork_waits_for_no_thread_that_it_has_not() -> None:
    """The lock of all futures may be another thread's at that moment, and that one is not there to give it back: the first
    reply in the child would have waited for ever."""

    def child() -> None:
        os._exit(0 if future._settling.acquire(blocking=False) else 1)

    with future._settling, forked(child) as pid:  # whichever thread has it
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None and ended.si_status == 0


# the kernel's end -----------------------------------------------------------------------------------------------------


def _dead() -> int:
    """The pidfd of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return pidfd


def test_a_kernel_that_died_while_it_wrote_a_notice_is_a_node_that_is_down() -> None:
    notice, memory = Segment("notice", 65536), Memory(7, SHAPE, 0)
    lib.atoll_notice_channel(notice.c, 0, 2, 2, memory.base, ffi.NULL)
    notice.words[8] |= 1  # its sequence: the kernel is in the middle of it, for ever
    kernel = _dead()
    host = Outside(kernel, lambda channel, check: None)
    opened = control.OpenChannel(
        channel=7, role="client", peer="counter", shape=SHAPE, epoch=1, base=memory.base, notice=0
    )
    channel = ClientChannel(opened, memory.descriptor, memory.client_bell.fileno(), notice.memory, host)
    host.add(channel)
    port = Port(channel=7, slot=0, generation=1, interface="Counter", rights=("use",))
    with pytest.raises(NodeDown):
        bind(Counter, ChannelTransport(channel, port)).double.now(1)
    channel.close()
    host.close()
    os.close(kernel)
    memory.close()
    notice.close()


def test_a_program_with_more_than_1024_descriptors_sees_its_kernel() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip(f"{hard} descriptors are allowed, 1200 are needed: raise `ulimit -n`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    low = os.pidfd_open(os.getpid())
    high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1100)
    host = Outside(high, lambda channel, check: None)
    try:
        assert host.alive()
    finally:
        host.close()
        os.close(high)
        os.close(low)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
