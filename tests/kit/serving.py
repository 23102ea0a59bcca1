"""A real server process behind real channels, with the test in the kernel's place. (Raw cffi.)

    with serving(Server, clients=2) as served:
        assert served.proxies[0].add.now("x") == 1
        served.crash(); served.restart()

The server runs `launch.main` on a real control socket; memory is sealed as the kernel seals it. What the kernel would
do to it is a method here: revoke, crash, restart, hand over, close a channel. Nothing here has a time limit; the test
run's own does.
"""

import contextlib
import mmap
import os
import signal
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.client.outside import Outside
from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.interface import Interface, Method, methods
from atoll.ipc.interface import rights as rights_of
from atoll.ipc.proxy import bind
from atoll.ipc.serve import Config, Serves, needs
from atoll.ipc.system import control, handover
from atoll.native import ffi, lib

from .memory import Memory, Segment, fresh_base
from .nest import PACKAGE, Nest

I = TypeVar("I", bound=Interface)  # noqa: E741
M = TypeVar("M", bound=control.Message)

STATE_OPEN, STATE_RESTARTING, STATE_CLOSED = 1, 2, 3
PER_LOOP = 4096
FIRST_CHANNEL, FIRST_SLOT, FIRST_BADGE = 7, 5, 100
SEGMENT_BYTES = 65536
"""A table of 1024 entries, and a notice of 1023 channels."""
FOREVER = 0


class Serving:
    """See the module. `proxies`: one a client, each with a channel of its own and every right."""

    def __init__(
        self,
        versions: Sequence[type[Serves[Any]]],
        shape: control.Shape,
        core: int | None,
        config: Config | None,
        in_hand: int | None,
        in_trio: bool,
    ) -> None:
        self.interfaces: list[type[Interface]] = list(versions[0].interfaces)
        self.shape = shape
        self.core = core
        self.channels: list[Memory] = []
        self.clients: dict[int, ClientChannel] = {}
        self.proxies: list[Any] = []
        self.refused: list[control.Refused] = []
        self.misbehaved: list[control.Misbehaved] = []
        self.accused: list[tuple[int, str]] = []
        """(channel, check) of what clients of this process said of the server."""
        self.epoch = 1
        self._next = FIRST_CHANNEL
        self._segments: list[Segment] = []
        self._needs = _config_need(versions[0], config)
        self._slots = FIRST_SLOT
        self._ports: list[control.Port] = []
        self._free: list[tuple[int, int]] = []
        """Slots that were used before, with the generation that is next."""
        self._nest = Nest(versions, in_hand, in_trio)
        self._notice = self._segment("client notice")
        self._client_notice = mmap.mmap(
            self._notice.descriptor, SEGMENT_BYTES, mmap.MAP_SHARED, mmap.PROT_READ
        )
        self.table = self._segment("table")
        self._kernel = os.pidfd_open(os.getpid())
        self._host: Outside | None = None
        self._begin(0, handover=False)
        self._expect(control.Ready)

    def _segment(self, name: str, mode: str = "readonly") -> Segment:
        self._segments.append(Segment(name, SEGMENT_BYTES, mode))
        return self._segments[-1]

    # the server's life ------------------------------------------------------------------------------------------------

    def _begin(self, version: int, *, handover: bool) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = self._nest.start(version, theirs, self.core)
        self.server_notice = self._segment("server notice")
        self.status = self._segment("status", "writable")
        start = control.Start(
            server="served",
            package=PACKAGE,
            folder="/nowhere",
            version="0",
            boot=1,
            process=1,
            needs=self._needs,
            rights={i.__name__: tuple(rights_of(i)) for i in self.interfaces},
            kernel=None,
            handover=handover,
        )
        self._send(start, self.server_notice.descriptor, self.status.descriptor)
        self._send(control.AddSegment(index=0), self.table.descriptor)

    def crash(self) -> int:
        """`kill -9` of the server, and its end; the kernel has noticed nothing yet."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """The server's exit code, once it has ended."""
        with contextlib.suppress(ConnectionError, EOFError):
            while True:
                self._note(self._receive())
        self.control.close()
        return self._nest.wait(self.pid)

    def restart(self, version: int = 0) -> None:
        """What the kernel does after a crash: a new epoch for every channel, clients told, a new process."""
        self.epoch += 1
        for memory in self.channels:
            if not memory.closed:
                memory.epoch, memory.base = self.epoch, fresh_base()
                self._tell(memory, STATE_RESTARTING, memory.taken())
        self._begin(version, handover=False)
        self._expect(control.Ready)
        self._open_all({})

    def hand_over(self, version: int = 0) -> None:
        """A swap: drain the old process, take over in a new one, go on with the same channels."""
        old, old_pid = self.control, self.pid
        self._send(control.Drain(deadline=FOREVER))
        drained = self._expect(control.Drained)
        assert not drained.pending, drained
        self._send(control.HandOver())
        message, descriptors = self._expect_with(control.HandedOver)
        self._begin(version, handover=True)
        self._expect(control.Ready)
        positions = handover.positions(message, descriptors[0])
        self._send(control.TakeOver(size=message.size), descriptors[0])
        os.close(descriptors[0])
        self._expect(control.Ready)
        self._open_all(positions)
        self._send(control.Resume())
        fresh, self.control, self.pid, pid = self.control, old, old_pid, self.pid
        ended = self.stop()
        self.control, self.pid = fresh, pid
        assert ended == 0, f"the old version ended with {ended}"

    def drain(self, deadline: int = FOREVER) -> dict[str, int]:
        """Have the server take nothing more; what is left in hand at the deadline (ns of CLOCK_MONOTONIC)."""
        self._send(control.Drain(deadline=deadline))
        return self._expect(control.Drained).pending

    def begin_drain(self, number: int) -> None:
        """`drain`, waited for by `drained`."""
        self._send(control.Drain(deadline=FOREVER, number=number))

    def drained(self) -> int:
        """The number of the drain that the server has come through."""
        return self._expect(control.Drained).number

    def resume(self) -> None:
        self._send(control.Resume())

    def stop(self, deadline: int = FOREVER) -> int:
        """End it, and calls in hand by the deadline (ns of CLOCK_MONOTONIC). Its exit code."""
        self.begin_stop(deadline)
        return self.wait()

    def begin_stop(self, deadline: int = FOREVER) -> None:
        """`stop`, waited for by `wait`."""
        self._send(control.Stop(deadline=deadline))

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        if self._host is not None:
            self._host.close()
        self.control.close()
        self._nest.close()
        for memory in self.channels:
            memory.close()
        for segment in self._segments:
            segment.close()
        os.close(self._kernel)

    # packets ----------------------------------------------------------------------------------------------------------

    def _send(self, message: control.Message, *descriptors: int) -> None:
        socket.send_fds(self.control, [control.encode(message)], descriptors)

    def _receive(self) -> tuple[control.Message, list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self.control, control.PACKET_LIMIT, 8)
        if not data:
            raise EOFError("the server has ended")
        return control.to_kernel.decode(data), descriptors

    def _note(self, packet: tuple[control.Message, list[int]]) -> None:
        match packet[0]:
            case control.Refused() as refused:
                self.refused.append(refused)
            case control.Misbehaved() as misbehaved:
                self.misbehaved.append(misbehaved)
            case control.Failed() as failed:
                raise AssertionError(
                    f"the server failed at {failed.step}: {failed.sentence}\n{failed.traceback}"
                )

    def _expect_with(self, kind: type[M]) -> tuple[M, list[int]]:
        while True:
            message, descriptors = self._receive()
            if isinstance(message, kind):
                return message, descriptors
            self._note((message, descriptors))

    def _expect(self, kind: type[M]) -> M:
        return self._expect_with(kind)[0]

    def observe(self) -> None:
        """Have `refused` and `misbehaved` hold all that the server has seen until now."""
        for number in (
            1,
            2,
        ):  # what it counted is reported after a packet: after the second all of it has come
            self._send(control.Ping(number=number))
            while self._expect(control.Pong).number != number:
                pass

    def until_misbehaved(self) -> control.Misbehaved:
        """The next `Misbehaved` of the server, waited for; its channel is closed then, as the kernel does."""
        known = len(self.misbehaved)
        while len(self.misbehaved) == known:
            self._note(self._receive())
        found = self.misbehaved[-1]
        for memory in self.channels:
            if memory.number == found.channel:
                self.close_channel(memory)
        return found

    # channels and capabilities ----------------------------------------------------------------------------------------

    def add_channel(self, *, served: bool = True) -> Memory:
        """A channel between this process and the server (or one that nobody serves); nothing is mapped here yet."""
        used = {memory.index for memory in self.channels}
        index = next(index for index in range(len(used) + 1) if index not in used)
        living = {memory.number % PER_LOOP for memory in self.channels if not memory.closed}
        while self._next % PER_LOOP in living:  # as the kernel does
            self._next += 1
        memory = Memory(self._next, self.shape, index, epoch=self.epoch)
        self._next += 1
        self.channels.append(memory)
        self._tell(memory, STATE_OPEN, ffi.NULL)
        if served:
            self._open(memory, ())
        return memory

    def _opened(self, memory: Memory, role: Any, positions: tuple[int, ...] = ()) -> control.OpenChannel:
        return control.OpenChannel(
            channel=memory.number,
            role=role,
            peer="served" if role == "client" else f"client {memory.index}",
            shape=memory.shape,
            epoch=memory.epoch,
            base=memory.base,
            notice=memory.index if role == "client" else 0,
            positions=positions,
        )

    def _open(self, memory: Memory, positions: tuple[int, ...]) -> None:
        self._send(self._opened(memory, "server", positions), memory.descriptor, memory.server_bell.fileno())

    def _open_all(self, positions: dict[int, tuple[int, ...]]) -> None:
        for memory in self.channels:
            if not memory.closed:
                self._open(memory, positions.get(memory.number, ()))

    def _tell(self, memory: Memory, state: int, taken: Any) -> None:
        lib.atoll_notice_channel(self._notice.c, memory.index, memory.epoch, state, memory.base, taken)
        memory.wake_client()

    def client(self, memory: Memory) -> ClientChannel:
        """The client end, mapped in the calling process."""
        if memory.number not in self.clients:
            if self._host is None:
                self._host = Outside(
                    self._kernel, lambda channel, check: self.accused.append((channel, check))
                )
            channel = ClientChannel(
                self._opened(memory, "client"),
                memory.descriptor,
                memory.client_bell.fileno(),
                self._client_notice,
                self._host,
            )
            self._host.add(channel)
            self.clients[memory.number] = channel
        return self.clients[memory.number]

    def close_channel(self, memory: Memory) -> None:
        """What the kernel does when the server is gone for good, or one end misbehaved."""
        memory.closed = True
        self._tell(memory, STATE_CLOSED, ffi.NULL)
        with contextlib.suppress(OSError):  # it is dead: there is nobody to tell
            self._send(control.CloseChannel(channel=memory.number, reason="closed by the test"))

    def forget_channel(self, memory: Memory) -> None:
        """Give back all that the kernel keeps of a channel; its server has closed it, or is told to."""
        if not memory.closed:
            self.close_channel(memory)
        for port in [port for port in self._ports if port.channel == memory.number]:
            self._ports.remove(port)
            self._free.append((port.slot, port.generation + 1))
            lib.atoll_entry_clear(self.table.c, port.slot, port.generation)
        self.channels.remove(memory)
        memory.close()

    def grant(
        self,
        memory: Memory,
        interface: type[Interface],
        *,
        rights: Collection[str] | None = None,
        badge: int | None = None,
        expiry: int = 0,
        service: int = 0,
    ) -> control.Port:
        """Write an entry of the table for this channel; all rights if none are named."""
        names = tuple(rights_of(interface))
        held = names if rights is None else tuple(name for name in names if name in rights)
        slot, generation = self._free.pop() if self._free else (self._slots, 1)
        self._slots = max(self._slots, slot + 1)
        port = control.Port(
            channel=memory.number, slot=slot, generation=generation, interface=interface.__name__, rights=held
        )
        self._ports.append(port)
        bits = sum(1 << names.index(name) for name in held)
        number = self.interfaces.index(interface)
        named = FIRST_BADGE + memory.index if badge is None else badge
        lib.atoll_entry_write(
            self.table.c, slot, memory.number, generation, bits, named, expiry, number, service, 1000 + slot
        )
        return port

    def revoke(self, port: control.Port) -> int:
        """Take a capability back, as the kernel does; returns once no new call can be served. The server's pass count
        (`heartbeat`) at that moment."""
        lib.atoll_entry_clear(self.table.c, port.slot, port.generation)
        lib.atoll_notice_revoked(self.server_notice.c)
        window = lib.atoll_status_window(self.status.c)
        while window & 1 and lib.atoll_status_window(self.status.c) == window:
            time.sleep(0)
        return self.heartbeat()

    def heartbeat(self) -> int:
        return self.status.words[8]

    @staticmethod
    def methods(interface: type[Interface]) -> list[Method]:
        return methods(interface)

    def bind(self, memory: Memory, interface: type[I], port: control.Port) -> I:
        return bind(interface, ChannelTransport(self.client(memory), port))

    def proxy(
        self, interface: type[I], *, badge: int | None = None, rights: Collection[str] | None = None
    ) -> I:
        """A proxy with a channel and a capability of its own."""
        memory = self.add_channel()
        return self.bind(memory, interface, self.grant(memory, interface, rights=rights, badge=badge))

    def add_clients(self, count: int, rights: Collection[str] | None) -> None:
        self.proxies += [self.proxy(self.interfaces[0], rights=rights) for _ in range(count)]


def _config_need(server: type[Serves[Any]], config: Config | None) -> dict[str, control.Need]:
    if config is None:
        return {}
    name = next(need.name for need in needs(server) if need.kind == "config")
    return {name: control.ConfigNeed(value=msgspec.Raw(msgspec.msgpack.encode(config)))}


@contextlib.contextmanager
def serving(
    *versions: type[Serves[Any]],
    clients: int = 1,
    rights: Collection[str] | None = None,
    core: int | None = None,
    config: Config | None = None,
    shape: control.Shape | None = None,
    in_hand: int | None = None,
    in_trio: bool = False,
) -> Iterator[Serving]:
    """Serve the first of `versions` until the block ends; the others are for `restart` and `hand_over`. `in_trio`: its loop
    sleeps in trio, as in a simulation."""
    served = Serving(versions, shape or control.Shape(), core, config, in_hand, in_trio)
    try:
        served.add_clients(clients, rights)
        yield served
    finally:
        served.close()


@contextlib.contextmanager
def halted(served: Serving) -> Iterator[None]:
    """The server stands meanwhile."""
    os.kill(served.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(served.pid, signal.SIGCONT)


__all__ = ["Memory", "Serving", "halted", "serving"]
