"""Simulated programs outside the node: they attach, call, hand out and take back power, and keep book of what they were
told."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import trio

from atoll.ipc import attach, errors
from atoll.ipc.durable import Start
from atoll.ipc.errors import AtollError, InternalFault, NodeDown, PeerMisbehaved
from atoll.ipc.runtime.control_socket import ControlSocket
from atoll.ipc.runtime.deliveries import Deliveries
from atoll.ipc.system import control
from atoll.ipc.system.kernel import Load, Slice, Swap, WrongState
from atoll.microkernel.gate import HELLO_WITHIN

from . import mechanisms
from .node import PACKAGES, Node
from .packages.counter.interface import Counter
from .packages.teller.interface import Teller
from .world import SECOND, Process, World

NEVER = (PeerMisbehaved, InternalFault, errors.Incompatible)
"""What no fault of the world excuses."""
TRY_AGAIN = 0.05
GATHERED = 4
"""Steps of a workflow."""


class Program(attach.Node):
    """An attachment that is entered without halting the thread."""

    def __init__(self, end: socket.socket) -> None:
        self._control = ControlSocket(end)
        self._channels = {}
        self._deliveries = Deliveries(self._channels, self._pump, heard=False)
        self._later = []
        import threading

        self._lock = threading.RLock()
        self._came: list[Any] = []

    async def enter(self, name: str) -> None:
        self._control.send(control.Hello(name=name))
        first = await self._control.receive()
        self._came.append(first)
        if isinstance(first[0], control.Welcome):
            for _ in range(first[0].channels):
                self._came.append(await self._control.receive())
        self._welcome()

    def _receive(self) -> Any:
        return self._came.pop(0)

    async def opened(self, server: str, interface: Any) -> tuple[int, Any]:
        """`open`, awaited: the number of the capability and its proxy."""
        opened = await self.kernel.open(server, interface.__name__)
        self._check(interface, opened)
        return opened.number, self._deliveries.proxy(interface, self._port(opened.token))

    def proxy(self, interface: Any, token: int) -> Any:
        return self._deliveries.proxy(interface, self._port(token))


class Book:
    """What was asked for and answered, of all programs: what the world must never contradict."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.told: set[str] = set()
        self.revoked: set[int] = set()
        """Badges whose revocation has returned."""
        self.granted: dict[int, bool] = {}
        """Lasting grants by number: whether it stands; those whose outcome is unknown are in neither."""
        self.gathered: set[str] = set()
        """Workflows whose beginning was acknowledged."""
        self.badges = 0
        self.calls = 0

    def badge(self) -> int:
        self.badges += 1
        return self.badges

    def serves(self, badge: int) -> str:
        return (
            f"a call was served after the revocation of badge {badge} returned"
            if badge in self.revoked
            else ""
        )


class Client:
    def __init__(self, world: World, node: Node, book: Book, number: int, end: int) -> None:
        self.world = world
        self.node = node
        self.book = book
        self.name = f"client-{number}"
        self.end = end
        """CLOCK_MONOTONIC ns after which it detaches."""
        self.process: Process | None = None
        self._socket: socket.socket | None = None
        self._keys = 0

    def start(self) -> None:
        self.process = self.world.start(self.name, self.run)
        self.process.at_death.append(self._died)

    def _died(self) -> None:
        if self._socket is not None and self._socket.fileno() >= 0:
            self._socket.close()

    async def run(self) -> None:
        while self.world.now < self.end:
            try:
                await self._attached()
            except* (AtollError, OSError) as group:
                for error in _leaves(group):
                    self._heard(error)
            await trio.sleep(TRY_AGAIN)

    def _heard(self, error: BaseException) -> None:
        self.world.note(f"{self.name} hears {type(error).__name__}", str(error))
        if isinstance(error, NEVER):
            self.world.wrong(f"{self.name} heard {type(error).__name__}: {error}")

    def connected(self) -> tuple[Program, socket.socket]:
        """A socket that bears this process's number, connected to the node. Raises `OSError`."""
        assert self.process is not None
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = end
        end.setblocking(False)
        end.bind(mechanisms.address(self.world, self.process))
        try:
            attach._connect(end, self.node.place.folder)
        except OSError:
            end.close()
            raise
        return Program(end), end

    async def _attached(self) -> None:
        program, end = self.connected()
        try:
            with trio.fail_after(HELLO_WITHIN * 2):
                await program.enter(self.name)
            async with trio.open_nursery() as nursery:
                for _ in range(self.world.chance.randrange(1, 4)):
                    nursery.start_soon(self._work, program)
                nursery.start_soon(self._hear, program)
                while self.world.now < self.end and self.world.chance.random() < 0.97:
                    await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
        except trio.TooSlowError:
            self.world.note(f"{self.name} was not welcomed in time")
        finally:
            if not end.fileno() < 0:
                end.close()

    async def _hear(self, program: Program) -> None:
        """A real program hears the kernel's end by its pidfd; so does this one, and goes."""
        await trio.lowlevel.wait_readable(program._kernel_process)
        raise NodeDown()

    async def _work(self, program: Program) -> None:
        counter = teller = None
        while True:
            chance = self.world.chance
            try:
                with trio.move_on_after(20.0) as slow:
                    if counter is None or teller is None:
                        _, counter = await program.opened("counter", Counter)
                        _, teller = await program.opened("teller", Teller)
                    action = chance.choice(ACTIONS)
                    self.world.note(f"{self.name} {action.__name__}")
                    self.book.calls += 1
                    await action(self, program, counter, teller)
                if slow.cancelled_caught:
                    self.world.note(f"{self.name} gave up")
            except NodeDown:
                raise
            except AtollError as error:
                self._heard(error)
                if isinstance(error, WrongState) and error.server in ("counter", "teller"):
                    with contextlib.suppress(AtollError):  # it crashed too often, or somebody stopped it
                        await program.kernel.restart(error.server, 0.5)
                if isinstance(error, errors.PeerDied | errors.Revoked | errors.NotFound):
                    counter = None
                    await trio.sleep(TRY_AGAIN)
            await trio.sleep(chance.expovariate(200))

    def _told(self, key: str) -> None:
        self.book.told.add(key)
        self.world.note(f"{self.name} is told", key)

    # what it does ----------------------------------------------------------------------------------------------

    async def add(self, program: Program, counter: Any, teller: Any) -> None:
        self._keys += 1
        key = f"{self.name}:{self._keys}"
        self.book.asked.add(key)
        found = await counter.add(key)
        if found != 1:
            self.world.wrong(f"{key} was added once and is {found}")
        self._told(key)

    async def adds(self, program: Program, counter: Any, teller: Any) -> None:
        keys, futures = [], []
        for _ in range(self.world.chance.randrange(2, 30)):
            self._keys += 1
            keys.append(f"{self.name}:{self._keys}")
            self.book.asked.add(keys[-1])
            futures.append(counter.add.start(keys[-1]))
        for key, future in zip(keys, futures, strict=True):
            found = await future
            if found != 1:
                self.world.wrong(f"{key} was added once and is {found}")
            self._told(key)

    async def gather(self, program: Program, counter: Any, teller: Any) -> None:
        """A workflow, whose id is enough to be owed its result; perhaps nobody waits for that now."""
        self._keys += 1
        id = f"{self.name}:{self._keys}"
        await counter.gather.begin(Start(id=id), id, GATHERED)
        self.book.gathered.add(id)
        self.world.note(f"{self.name} has begun", id)
        if self.world.chance.random() < 0.5 and await counter.gather.result(id) != GATHERED:
            self.world.wrong(f"workflow {id} gave another result than it has")

    async def get(self, program: Program, counter: Any, teller: Any) -> None:
        if self.book.told:
            key = self.world.chance.choice(
                sorted(k for k in self.book.told if k.startswith(self.name)) or [""]
            )
            found = await counter.get(key)
            if key and found != 1:
                self.world.wrong(f"{key} was acknowledged and reads as {found}")

    async def ask_teller(self, program: Program, counter: Any, teller: Any) -> None:
        self._keys += 1
        key = f"{self.name}:{self._keys}"
        self.book.asked.add(key)
        await teller.tell(key, 1)
        self._told(key)

    async def muse(self, program: Program, counter: Any, teller: Any) -> None:
        await counter.muse(self.world.chance.uniform(0, 0.2))

    async def hurried(self, program: Program, counter: Any, teller: Any) -> None:
        with contextlib.suppress(errors.DeadlineExceeded):
            await counter.with_(deadline=self.world.chance.uniform(0.0001, 0.02)).muse(0.02)

    async def moody(self, program: Program, counter: Any, teller: Any) -> None:
        await counter.moody()

    async def listen(self, program: Program, counter: Any, teller: Any) -> None:
        before = 0
        with trio.move_on_after(self.world.chance.uniform(0.01, 0.3)):
            async for tick in counter.ticks():
                if tick.number != before + 1:
                    self.world.wrong(f"a stream went from {before} to {tick.number}")
                before = tick.number

    async def lend(self, program: Program, counter: Any, teller: Any) -> None:
        """Mint, call under it, revoke while calls are under way."""
        chance = self.world.chance
        whole, _ = await program.opened("counter", Counter)
        badge = self.book.badge()
        number = await program.kernel.mint(whole, badge, ["read", "write"])
        lent = program.proxy(Counter, number)

        async def use() -> None:
            with contextlib.suppress(AtollError):
                while True:
                    kind = chance.choice((0, 1, 2, 3, 3, 3))
                    if kind == 0:
                        await lent.get("x")
                    elif kind == 1:
                        await lent.muse(0.0)
                    elif kind == 2:
                        await lent.moody()
                    else:
                        async for _ in lent.ticks():
                            break

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(use)
            await trio.sleep(chance.uniform(0, 0.02))
            target = number
            if chance.random() < 0.3:
                target = whole
            elif chance.random() < 0.3:
                await program.kernel.derive(number, ["read"])
            await program.kernel.revoke(target)
            self.book.revoked.add(badge)
            with trio.move_on_after(0.05):
                await lent.get("x")
                self.world.wrong(f"badge {badge} was revoked, and its holder was answered")
            nursery.cancel_scope.cancel()

    async def lend_for_a_time(self, program: Program, counter: Any, teller: Any) -> None:
        """A capability that ends by itself."""
        whole, _ = await program.opened("counter", Counter)
        term = self.world.chance.uniform(0.01, 0.2)
        badge = self.book.badge()
        began = self.world.now
        number = await program.kernel.mint(whole, badge, ["read", "write"], term)
        answered = self.world.now
        lent = program.proxy(Counter, number)
        with contextlib.suppress(errors.Revoked):
            while self.world.now < answered + int(term * SECOND):
                await lent.get("x")
                await trio.sleep(0.01)
            self.book.revoked.add(badge)
            await lent.get("x")
            took = (self.world.now - began) / SECOND
            self.world.wrong(f"badge {badge} was lent for {term:g} s, and served after {took:g} s")

    async def grant(self, program: Program, counter: Any, teller: Any) -> None:
        """A lasting grant to a server, perhaps taken back."""
        chance = self.world.chance
        whole, _ = await program.opened("counter", Counter)
        number = await program.kernel.grant(whole, "teller", ["read"])
        self.book.granted[number] = True
        await trio.sleep(chance.uniform(0, 0.05))
        if chance.random() < 0.7:
            del self.book.granted[number]  # while it is under way nobody knows
            await program.kernel.revoke(number)
            self.book.granted[number] = False

    async def restart(self, program: Program, counter: Any, teller: Any) -> None:
        await program.kernel.restart(self.world.chance.choice(["counter", "teller", "state"]), 0.5)

    async def swap(self, program: Program, counter: Any, teller: Any) -> None:
        chance = self.world.chance
        server = chance.choice(["counter", "counter", "teller", "state"])
        package = {"counter": chance.choice([PACKAGES / "counter", self.node.second])}.get(server, "")
        await program.kernel.swap(
            Swap(
                server=server,
                package=str(package),
                deadline=chance.uniform(0.05, 1.0),
                force=chance.random() < 0.2,
            )
        )

    async def load(self, program: Program, counter: Any, teller: Any) -> None:
        name = f"extra-{self.world.chance.randrange(4)}"
        with contextlib.suppress(errors.BadRequest):  # there is one of that name
            await program.kernel.load(Load(server=name, package=str(PACKAGES / "counter")))
        _, extra = await program.opened(name, Counter)
        await extra.add(f"{self.name}:{name}")

    async def stop(self, program: Program, counter: Any, teller: Any) -> None:
        name = f"extra-{self.world.chance.randrange(4)}"
        await program.kernel.stop(name, 0.2)
        await program.kernel.restart(name, 0.2)

    async def freeze(self, program: Program, counter: Any, teller: Any) -> None:
        await program.kernel.freeze("counter", "to see it stand")
        await trio.sleep(self.world.chance.uniform(0, 0.1))
        await program.kernel.thaw("counter")

    async def limit(self, program: Program, counter: Any, teller: Any) -> None:
        await program.kernel.set_slice("counter", Slice(processes=self.world.chance.randrange(10, 100)))

    async def look(self, program: Program, counter: Any, teller: Any) -> None:
        await program.kernel.ps()
        await program.kernel.caps()


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


C = Client
ACTIONS: list[Any] = [
    *(C.add,) * 4, *(C.adds,) * 2, *(C.get,) * 2, *(C.ask_teller,) * 2, C.gather, C.muse, C.hurried, C.moody, C.listen,
    *(C.lend,) * 3, C.lend_for_a_time, *(C.grant,) * 2, C.restart, *(C.swap,) * 2, C.load, C.stop, C.freeze, C.limit, C.look,
]  # fmt: skip
"""As often as they stand here."""
