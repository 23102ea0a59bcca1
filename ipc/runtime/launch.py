"""A server process from its first line to its last: `main` is what the zygote's child, or a fresh start, runs.

Everything it may use comes over the control socket before `start()`: its package's folder, its needs, its channels, its
capability table. When that socket closes the kernel is dead, and the process ends.
"""

import contextlib
import importlib
import math
import mmap
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from atoll.ipc import clock, context, discretion, schema
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.errors import AtollError, NodeDown
from atoll.ipc.future import wait_for
from atoll.ipc.interface import rights as rights_of
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.private.keyspace import Private
from atoll.ipc.serve import Endpoint, Need, Serves, bind, needs, read_config
from atoll.ipc.system import control, handover
from atoll.ipc.system.kernel import Kernel
from atoll.ipc.system.keys import SERVER as KEYS
from atoll.ipc.system.keys import Keys
from atoll.ipc.system.state import State

from . import bytecode, log_lines, own_kernel, resident
from .control_socket import ControlSocket
from .deliveries import Deliveries, Translation
from .loop import ServeLoop
from .recording import Recorder
from .witness import WitnessedView, witnessed

SWITCH_INTERVAL = 1e-4
"""Seconds a Python thread may keep the interpreter while another one wants it. With the usual 5 ms, a busy thread makes
every C call of the loop wait milliseconds."""
KINDS_MOST = 64
"""Kinds of refusal, as (channel, slot, method, why), that are told apart between two packets of the kernel: a client that
forges slots chooses their number, and each costs memory here and a packet."""
NAMED_MOST = 64
"""Names of what keeps a drain from ending that are told apart."""
DELIVERED = (control.Deliver, control.DeliverBuffer, control.WithdrawBuffer)
"""Packets that a message may count on: acted upon in their order as soon as they are read."""
SETTLING = 0.0005
"""Seconds between two looks at what a drain waits for."""
THREAD_CLOCK = 6
"""Of a thread's processor time: the clock's low bits; the others are the complement of the thread's number."""
BUSY_SHARE = 0.5
"""A thread that used more than this share of the time since the last ping is named as busy."""

Load = Callable[[control.Start], type[Serves[Any]]]


class Process:
    """This server process: its control socket, its channels, its loop. Also the `Host` of its client channels."""

    def __init__(
        self, end: socket.socket, load: Load | None = None, leave: Callable[[int], object] = os._exit
    ) -> None:
        """`load`: where not from its package's folder, its class; `leave`: ends the process at once."""
        self.control = ControlSocket(end)
        self._load = load or _load
        self._leave = leave
        self.clients: dict[int, ClientChannel] = {}
        self.deliveries = Deliveries(self.clients, self._pump, heard=True)
        self.loop: ServeLoop | None = None
        self.start: control.Start | None = None
        self._nursery: trio.Nursery | None = None
        self._notice: mmap.mmap | None = None
        self._served: list[tuple[control.OpenChannel, int, int]] = []
        self._waiting: list[tuple[control.ToProcess, list[int]]] = []
        self._hearing = trio.CancelScope()
        self._reading = trio.CancelScope()
        """Around the wait for the next packet."""
        self._doorbells: dict[int, int] = {}
        self._segments: dict[int, mmap.mmap] = {}
        self._home = threading.get_ident()
        self._trio: trio.lowlevel.TrioToken | None = None
        self._cpu: dict[int, tuple[int, int]] = {}
        self._refusals: dict[tuple[int, int, int, str], int] = {}
        self._recorder: Recorder | None = None
        self._took_over: bytes | None = None
        self._stopping = False

    # Host of client channels, Observer of the loop --------------------------------------------------------------------

    def may_block(self, method: str) -> None:
        context.forbid_blocking(method)

    async def wait(self, subscribe: Any) -> None:
        await wait_for(subscribe)

    def sent(self) -> None:
        """The loop looks at every channel."""

    def looping(self) -> bool:
        return threading.get_ident() == self._home

    def owing(self, when_paid: Any, settle: Any) -> None:
        """The loop looks for room, too."""

    def alive(self, wait: float = 0.0) -> bool:
        return True  # the control socket says so, to the task that reads it

    def closed(self, channel: int) -> bool:
        with contextlib.suppress(NodeDown):
            self._pump()
            said = (packet[0] for packet in self._waiting)
            return any(isinstance(each, control.CloseChannel) and each.channel == channel for each in said)
        return True

    def kick(self, channel: int) -> None:
        """The receive loop is its own thread's; and asleep, it looks at nothing: another thread has trio wake it."""
        if threading.get_ident() == self._home:
            self._revive(channel)
        elif self._trio is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(self._look_again, channel)

    def _look_again(self, channel: int) -> None:
        """What the loop was told of a channel while another thread received, it was turned away from, and is told once."""
        self._revive(channel)
        if self.loop is not None and channel in self.clients:
            self.loop.look(self.clients[channel])

    def _revive(self, channel: int) -> None:
        if self.loop is not None:
            self.loop.revive(channel)

    def log(self, level: context.Level, text: str, fields: dict[str, str]) -> None:
        """A line for the log. The socket is this thread's: another one's lines are sent when trio has its turn."""
        line = control.Log(level=level, text=text, fields=fields)
        if threading.get_ident() == self._home:
            self.control.send(line)
        elif self._trio is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(self.control.send, line)

    def misbehaved(self, channel: int, check: str) -> None:
        self.control.send(control.Misbehaved(channel=channel, check=check))

    def refused(self, channel: int, slot: int, method: int, why: Any) -> None:
        """The first of its kind is told at once, further ones with the next packet; a flood of kinds as one kind."""
        key = (channel, slot, method, why)
        if key not in self._refusals and len(self._refusals) >= KINDS_MOST:
            key = (channel, 0, 0, why)
        known = key in self._refusals
        self._refusals[key] = self._refusals.get(key, 0) + 1
        if not known:
            self._report(key)

    def _report(self, key: tuple[int, int, int, Any]) -> None:
        channel, slot, method, why = key
        count = self._refusals[key]
        self._refusals[key] = 0
        if count:
            self.control.send(
                control.Refused(channel=channel, slot=slot, method=method, why=why, count=count)
            )

    def _report_refusals(self) -> None:
        for key in list(self._refusals):
            self._report(key)
        if len(self._refusals) >= KINDS_MOST:
            self._refusals.clear()

    # the beginning ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start up, serve, end."""
        step = "start"
        self._trio = trio.lowlevel.current_trio_token()
        try:
            start, sockets = await self._receive_start()
            step = "import"
            server = self._load(start)
            log_lines.listen_to_structlog()
            step = "needs"
            await self._receive_rest(start)
            if start.server == KEYS or any(need.private for need in needs(server)):
                discretion.keep()
                resident.keep()
            recorder = self._recorder = self._record(start, sockets)
            endpoint = self._endpoint(start, server, sockets)
            loop = self.loop = self._make_loop(start, endpoint)
            step = "start()"
            async with trio.open_nursery() as nursery:
                loop.drain(True)
                loop.hold_idle(True)
                self._nursery = nursery
                nursery.start_soon(self._read_control)
                await nursery.start(loop.serve)
                for ring in endpoint.rings:
                    await nursery.start(ring.run)
                if start.handover:
                    self._ready(endpoint)
                    await self._taken_over.wait()
                await endpoint.server.start()
                loop.hold_idle(False)
                for keyspace in vars(endpoint.server).values():
                    if isinstance(keyspace, Keyspace):
                        await nursery.start(keyspace.follow)
                if endpoint.workflows is not None:
                    await nursery.start(endpoint.workflows.run)
                if recorder is not None:
                    await recorder.open(endpoint, loop.rights, _views(endpoint), self._took_over)
                    nursery.start_soon(recorder.run)
                self._begin(nursery, endpoint)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        except BaseException as error:
            cause = _only(error)
            if isinstance(cause, NodeDown):
                self._leave(1)
            self._failed(step, cause)
            raise

    def _failed(self, step: str, error: BaseException) -> None:
        sentence = context.fitting(discretion.told(error), context.LINE_MOST)
        trace = context.fitting(discretion.trace(error)[-context.FIELDS_MOST :], context.FIELDS_MOST)
        with contextlib.suppress(NodeDown):
            self.control.send(control.Failed(step=step, sentence=sentence, traceback=trace))

    async def _receive_start(self) -> tuple[control.Start, list[int]]:
        message, descriptors = await self.control.receive()
        if not isinstance(message, control.Start):
            raise RuntimeError(f"the first packet was {type(message).__name__}, not Start")
        self.start = message
        notice, status, *sockets = descriptors
        self._notice = mmap.mmap(notice, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        self.deliveries.notice(self._notice)
        self._status = mmap.mmap(status, 0)
        os.close(notice)
        os.close(status)
        self._taken_over, self._ended = trio.Event(), trio.Event()
        return message, sockets

    async def _receive_rest(self, start: control.Start) -> None:
        """The channels and table segments that `Start` announced; whatever else comes in between is kept for later."""
        channels = start.channels
        while channels or len(self._segments) < start.segments:
            message, descriptors = await self.control.receive()
            if isinstance(message, control.OpenChannel):
                self._open(message, descriptors)
                channels -= 1
            elif isinstance(message, control.AddSegment):
                self._segments[message.index] = _mapped(descriptors)
            elif isinstance(message, DELIVERED):
                self._act(message, descriptors)
            else:
                self._waiting.append((message, descriptors))

    def _open(self, opened: control.OpenChannel, descriptors: list[int]) -> None:
        memory, doorbell = descriptors
        if opened.role == "client":
            assert self._notice is not None
            channel = ClientChannel(opened, memory, doorbell, self._notice, self)
            os.close(memory)
            self.clients[opened.channel] = channel
            if threading.get_ident() == self._home:
                self._add_client(channel)
            elif self._trio is not None:
                with contextlib.suppress(trio.RunFinishedError):
                    self._trio.run_sync_soon(self._add_client, channel)
        elif self.loop is None:
            self._served.append((opened, memory, doorbell))
        else:
            self.loop.add(opened, memory, doorbell)
            os.close(memory)
            self._doorbells[opened.channel] = doorbell

    def _add_client(self, channel: ClientChannel) -> None:
        """On the loop's thread: no other one touches what runs in C meanwhile. A thread that calls receives for itself."""
        if self.loop is None or channel.number in self.loop.clients:
            return  # a loop that is made meanwhile begins with it
        if self.clients.get(channel.number) is channel:
            self.loop.add_client(channel)

    def _record(self, start: control.Start, sockets: list[int]) -> Recorder | None:
        """What records this process's calls, if the kernel gave it a tape."""
        bound = start.needs.get(control.CALLS)
        if start.recording is None or not isinstance(bound, control.KeyspaceNeed):
            return None
        memory = sockets.pop()
        recorder = Recorder(start.recording, memory, start, self.deliveries.proxy(State, bound.port))
        os.close(memory)
        recorder.witness()
        return recorder

    def _endpoint(self, start: control.Start, server: type[Serves[Any]], sockets: list[int]) -> Endpoint:
        if start.kernel is not None:
            self.deliveries.system_calls(start.kernel)
            own_kernel.provide(self.deliveries.proxy(Kernel, start.kernel), self.deliveries)
        wanted = {need.name: need for need in needs(server)}
        given = {
            name: self._need(wanted[name], name, sockets, start) for name in start.needs if name in wanted
        }
        return bind(server, given, Translation(self.deliveries, self._peer), start.version)

    def _peer(self) -> int:
        """The channel of the call in hand; 0 outside of any."""
        if self.loop is not None and context.runs_inline():
            return self.loop.channel_in_hand()
        call = context.current_or_none()
        return 0 if call is None else call.client

    def _need(self, wanted: Need, name: str, sockets: list[int], start: control.Start) -> Any:
        recorder = self._recorder
        match start.needs[name]:
            case control.KeyspaceNeed(port=port, keys=control.Port() as keys):
                if recorder is not None and recorder.payloads:
                    raise TypeError(
                        f"the keyspace {name!r} is private, and recorded calls would be rows in the clear"
                    )
                state, holder = self.deliveries.proxy(State, port), self.deliveries.proxy(Keys, keys)
                return Private(state, wanted.type, holder, name=name, boot=start.boot)
            case control.KeyspaceNeed(port=port):
                state = self.deliveries.proxy(State, port)
                view = None
                if recorder is not None and recorder.payloads:
                    state = witnessed(recorder, wanted.name, state)
                    view = WitnessedView[Any](recorder, wanted.name)
                rows = Keyspace[Any](state, wanted.type, boot=start.boot, view=view)
                if "read" not in port.rights:
                    rows.keep_remote()
                return rows
            case control.ServerNeed(port=port):
                proxy = self.deliveries.proxy(wanted.type, port)
                witnesses = recorder is not None and recorder.payloads
                return witnessed(recorder, wanted.name, proxy) if recorder and witnesses else proxy
            case control.ConfigNeed(value=value):
                return read_config(wanted, bytes(value), f"server {start.server!r}")
            case control.SocketNeed(descriptor=index):
                return socket.socket(fileno=sockets[index])
            case control.FolderNeed(path=path):
                return Path(path)

    def _make_loop(self, start: control.Start, endpoint: Endpoint) -> ServeLoop:
        assert self._notice is not None
        rights = {i.__name__: start.rights.get(i.__name__, rights_of(i)) for i in endpoint.interfaces}
        loop = ServeLoop(endpoint, self._notice, self._status, rights, self)
        for index, segment in sorted(self._segments.items()):
            loop.add_segment(index, segment)
        for channel in self.clients.values():
            loop.add_client(channel)
        for opened, memory, doorbell in self._served:
            loop.add(opened, memory, doorbell)
            os.close(memory)
            self._doorbells[opened.channel] = doorbell
        if self._recorder is not None:
            self._recorder.record(loop)
        return loop

    def _ready(self, endpoint: Endpoint) -> None:
        offered = tuple(schema.described(interface) for interface in endpoint.interfaces)
        self.control.send(control.Ready(interfaces=offered, accepts_handover=endpoint.accepts_handover))

    def _begin(self, nursery: trio.Nursery, endpoint: Endpoint) -> None:
        assert self.loop is not None and self.start is not None
        if endpoint.runs:
            nursery.start_soon(endpoint.server.run)
        self._ready(endpoint)
        if not self.start.handover:
            self._serve(self.loop)

    # the kernel's packets ---------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Read what lies on the control socket now: a message names a delivery that must be among it."""
        while self.control.take(self._hear):
            if self._waiting and self._trio is not None:
                with contextlib.suppress(trio.RunFinishedError):
                    self._trio.run_sync_soon(self._stop_reading, idempotent=True)

    def _hear(self, message: control.ToProcess, descriptors: list[int]) -> None:
        """To another thread than the loop's it is nothing whom this process serves."""
        opens = isinstance(message, control.OpenChannel) and (message.role == "client" or self.looping())
        if opens or isinstance(message, DELIVERED):
            self._act(message, descriptors)
        else:
            self._waiting.append((message, descriptors))

    def _stop_reading(self) -> None:
        """Whoever waits for the socket does not know of a packet that was read meanwhile: it would hear later ones first."""
        if self._waiting:
            self._reading.cancel()

    async def _read_control(self) -> None:
        with self._hearing:
            while True:
                while self._waiting:
                    self._handle(*self._waiting.pop(0))
                self._report_refusals()
                with trio.CancelScope() as self._reading:
                    await self.control.take_next(self._hear)

    def _handle(self, message: control.ToProcess, descriptors: list[int]) -> None:
        loop = self.loop
        assert loop is not None
        match message:
            case control.Drain(deadline=deadline, number=number):
                assert self._nursery is not None
                self._drain(loop)  # at once: behind this packet `Resume` may lie
                self._nursery.start_soon(self._settle_and_tell, loop, deadline, number)
            case control.HandOver():
                self._hand_over(loop)
            case control.TakeOver(size=size):
                state = handover.state(size, descriptors[0])
                os.close(descriptors[0])
                self._took_over = state
                loop.endpoint.server.take_over(state)
                self._taken_over.set()
            case control.Resume():
                loop.take_back()
                self._serve(loop)
            case control.Stop(deadline=deadline) if not self._stopping:
                assert self._nursery is not None
                self._stopping = True
                self._drain(loop)
                self._nursery.start_soon(self._stop, loop, deadline)
            case control.Stop():
                pass  # it does so already
            case control.Ping(number=number):
                self.control.send(control.Pong(number=number, busy=self._busy()))
            case _:
                self._act(message, descriptors)

    def _act(self, message: control.ToProcess, descriptors: list[int]) -> None:
        loop = self.loop
        match message:
            case control.OpenChannel():
                self._open(message, descriptors)
            case control.CloseChannel(channel=number):
                if loop is not None:
                    loop.remove(number)
                client = self.clients.pop(number, None)
                if client is not None:
                    client.retire()
                self.deliveries.closed(number)
                doorbell = self._doorbells.pop(number, None)
                if doorbell is not None:
                    os.close(doorbell)
            case control.AddSegment(index=index):
                if loop is not None:
                    loop.add_segment(index, _mapped(descriptors))
            case control.CancelCalls(slot=slot, generation=generation):
                if loop is not None:
                    loop.cancel_calls(slot, generation)
            case control.ReadAt():
                self.deliveries.read_at(message)
            case control.Deliver():
                self.deliveries.deliver(message)
            case control.DeliverBuffer():
                self.deliveries.deliver_buffer(message, descriptors[0])
            case control.WithdrawBuffer():
                self.deliveries.withdraw(message)
            case _:
                raise RuntimeError(f"an unexpected packet: {type(message).__name__}")

    @staticmethod
    def _serve(loop: ServeLoop) -> None:
        loop.tell_clients()
        loop.drain(False)
        if loop.endpoint.workflows is not None:
            loop.endpoint.workflows.go_on()

    @staticmethod
    def _drain(loop: ServeLoop) -> None:
        loop.drain(True)
        loop.let_streams_go()
        if loop.endpoint.workflows is not None:
            loop.endpoint.workflows.pause()

    @staticmethod
    async def _settled(loop: ServeLoop, deadline: int) -> None:
        """Until nothing is in hand but what waits for workflows, which go on elsewhere, and no step of those runs."""
        workflows = loop.endpoint.workflows
        waits = frozenset[str]() if workflows is None else workflows.waits
        with trio.move_on_after(_seconds(deadline)):
            while not waits.issuperset(loop.pending()) or (workflows is not None and workflows.in_steps):
                await trio.sleep(SETTLING)

    async def _settle_and_tell(self, loop: ServeLoop, deadline: int, number: int) -> None:
        """In a task of its own: revocations and pings are heard meanwhile."""
        await self._settled(loop, deadline)
        pending, lost = _counted(loop.pending()), _counted(loop.pending(lost=True))
        self.control.send(control.Drained(pending=pending, lost=lost, number=number))

    async def _stop(self, loop: ServeLoop, deadline: int) -> None:
        """In a task of its own, too: who goes meanwhile is not waited for. To a server that ends nothing is told."""
        await self._settled(loop, deadline)
        self._hearing.cancel()
        with trio.move_on_after(_seconds(deadline)):
            await loop.endpoint.server.stop()
        loop.stop()
        self._ended.set()

    def _hand_over(self, loop: ServeLoop) -> None:
        """Where the server fails over it, the swap is refused, and it goes on: `Resume` comes."""
        try:
            told, memory = handover.write(loop.endpoint.server.hand_over(), loop.positions())
        except Exception as error:
            self._failed("hand_over", error)
            return
        try:
            loop.let_go()
            self.control.send(told, (memory,))
        finally:
            os.close(memory)

    def _busy(self) -> str:
        """The Python thread, other than the loop's, that has kept the interpreter busy since the last ping."""
        now, busiest, share = clock.monotonic_ns(), "", BUSY_SHARE
        known, self._cpu = self._cpu, {}  # of who has ended nothing is kept: no number comes again soon
        for thread in threading.enumerate():
            number = thread.native_id
            if number is None or thread.ident == self._home:
                continue
            with contextlib.suppress(OSError):  # it has ended
                # Not by its `ident`: where that was, the C library would look, and there may be nothing any more.
                used = time.clock_gettime_ns(~number << 3 | THREAD_CLOCK)
                before, when = known.get(number, (used, now - 1))
                self._cpu[number] = (used, now)
                if (used - before) / max(1, now - when) > share:
                    busiest, share = thread.name, (used - before) / max(1, now - when)
        return f"thread {busiest}" if busiest else ""


def _views(endpoint: Endpoint) -> dict[str, int]:
    """By need, how far the local view of a keyspace has come."""
    bound = vars(endpoint.server).items()
    return {name: rows.local.revision for name, rows in bound if isinstance(rows, Keyspace) and rows.followed}


def _only(error: BaseException) -> BaseException:
    """The one error in a group of one, as nurseries wrap it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _counted(names: list[str]) -> dict[str, int]:
    """How many there are of each name. What comes to few is counted together beyond `NAMED_MOST`: a packet has an end."""
    counted = Counter(names).most_common()
    others = sum(count for _, count in counted[NAMED_MOST:])
    return dict(counted[:NAMED_MOST]) | ({"others": others} if others else {})


def _seconds(deadline: int) -> float:
    return max(0.0, deadline / 1e9 - clock.monotonic()) if deadline else math.inf


def _mapped(descriptors: list[int]) -> mmap.mmap:
    mapped = mmap.mmap(descriptors[0], 0, mmap.MAP_SHARED, mmap.PROT_READ)
    os.close(descriptors[0])
    return mapped


def _load(start: control.Start) -> type[Serves[Any]]:
    """The class `Server` of the package, imported from its version's folder under its own name."""
    bytecode.use(start.folder, start.package, bytecode.kept(Path(start.folder)))
    module = importlib.import_module(f"{start.package}.server")
    server = module.Server
    if not (isinstance(server, type) and issubclass(server, Serves)):
        raise TypeError(f"{start.package}/server.py: `Server` is not a class that derives from Serves[...]")
    return server


def main(descriptor: int) -> None:
    """Serve until the kernel says stop. `descriptor`: the control socket."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    process = Process(socket.socket(fileno=descriptor))
    context.set_log_sink(process.log)
    log_lines.listen()
    try:
        trio.run(process.run)
    except AtollError as error:
        sys.exit(f"{start_name(process)}: {error}")
    except Exception as error:
        if not discretion.kept():
            raise
        sys.exit(f"{start_name(process)}: {discretion.trace(error)}")


def start_name(process: Process) -> str:
    return process.start.server if process.start is not None else "server"
