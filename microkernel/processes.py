"""Processes as the kernel holds them: by pidfd, which no other process can come to bear the number of.

`Forge` is the kernel's end of the zygote: it starts it, asks it for confined children and turns their
reports into a `Process` or a sentence.
"""

import array
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import trio
from msgspec import Struct, structs

from atoll.ipc.errors import PeerFault

from .protection.confinement import Confinement
from .protection.layout import STEPS
from .remains import survivors
from .zygote import (
    DESCRIPTORS_MOST,
    END_OF_GROUPS,
    FAREWELL,
    GUARDIAN,
    PACKET_LIMIT,
    SOCKET,
    NotSpawned,
    Spawn,
    encode,
    from_zygote,
)

STATUS = struct.Struct("=iiii")
CLD_EXITED = 1
DEFAULT_ENTRY = "atoll.ipc.runtime.launch:main"
PRELOAD = ("atoll.ipc.runtime.launch", "atoll.ipc.runtime.describe", "atoll.ipc.runtime.rehearsal:rehearse")
ZYGOTE = f"{__package__}.zygote"
RENEW_PAUSE = 0.2
"""Seconds between two zygotes, so that one that cannot live does not keep the kernel busy."""
NAMES = {int(number): number.name for number in signal.Signals}
MEANINGS: dict[int, str] = {
    signal.SIGSYS: "it made a system call that its filter refuses",
    signal.SIGKILL: "by the kernel of the node, its memory limit, or someone with the power to",
    signal.SIGSEGV: "it touched memory that is not there",
    signal.SIGBUS: "a file or shared memory it had mapped was cut short",
    signal.SIGABRT: "it gave up",
    signal.SIGXCPU: "it used up its CPU time",
}


class ZygoteDied(PeerFault):
    template = "the fork server ended twice in one start ({how}): try again"
    how: str


class CannotConfine(PeerFault):
    """The child was made and could not be confined as planned; it has ended and ran nothing."""

    template = "{server} was not started: {step} failed{row}: {reason}"
    server: str
    step: str
    row: str
    reason: str


class _Stillborn(Exception):
    """It was killed before it said how it was confined."""

    def __init__(self, refusal: CannotConfine) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class Exit(Struct, frozen=True):
    """How a process ended: by a status of its own, or by a signal."""

    status: int | None
    signal: int | None = None
    why: str = ""
    """Of a signal that may mean several things: what it did, where that is known."""

    @property
    def clean(self) -> bool:
        return self.status == 0

    def __str__(self) -> str:
        if self.signal is None:
            return f"exited with status {self.status}"
        name = NAMES.get(self.signal, f"signal {self.signal}")
        why = self.why or MEANINGS.get(self.signal)
        return f"was killed by {name} ({why})" if why else f"was killed by {name}"


class Process:
    """A child of this process. Owns its pidfd; `wait` reaps it."""

    def __init__(self, name: str, pid: int, pidfd: int, listener: int | None = None) -> None:
        self.name = name
        self.pid = pid
        self.pidfd = pidfd
        self.listener = listener
        """Of its filter, for the watcher; whoever takes it owns it and sets this to None."""
        self.exit: Exit | None = None
        self._closed = False
        self._turn = trio.Lock()
        """Whose it is to wait for the descriptor: trio lets one task do so."""

    async def wait(self) -> Exit:
        """Wait until it has ended, and reap it. May be called again, and by several tasks."""
        while self.exit is None:
            async with self._turn:
                if self.exit is None:
                    await trio.lowlevel.wait_readable(self.pidfd)
                    self.poll()
        return self.exit

    def poll(self) -> Exit | None:
        """How it ended, or None while it runs."""
        if self.exit is None:
            told = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            if told is not None:
                exited = told.si_code == CLD_EXITED
                self.exit = Exit(told.si_status, None) if exited else Exit(None, told.si_status)
        return self.exit

    def signal(self, number: int) -> None:
        """Send a signal. One that has ended already is left alone."""
        if self.exit is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        """Let go of the descriptors. The process itself is not touched."""
        if not self._closed:
            self._closed = True
            os.close(self.pidfd)
        if self.listener is not None:
            os.close(self.listener)
            self.listener = None


class Forge:
    """The kernel's end of a zygote; a zygote that ended is started again. Used from the kernel's main thread.

    Children die with the thread that started the zygote, so that has to be the main thread.
    """

    def __init__(
        self,
        marker: str,
        groups: Sequence[Path] = (),
        preload: Sequence[str] = PRELOAD,
    ) -> None:
        """`marker` stands on the command lines of zygote and children, and is how survivors are known. `groups` are
        the node's control groups, which the zygote empties if the kernel dies. `preload`: `module`, or
        `module:function`, which is called then."""
        self._marker = marker
        self._groups = tuple(map(str, groups))
        self._preload = tuple(preload)
        self._turn = trio.Lock()
        self._numbers = 0
        self._children: list[Process] = []
        self._socket: trio.socket.SocketType | None = None
        self.process: Process | None = None
        self.renewed: Callable[[str], None] = lambda how: None
        """Told how a zygote ended in whose place there is another now."""

    def start(self) -> Process:
        """Execute the zygote. It answers once its imports are done; `spawn` waits for that. Raises `OSError`; then there is
        none that was not there before."""
        with ExitStack() as made, ExitStack() as given:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            made.callback(ours.close)
            given.callback(theirs.close)
            guardian = os.pidfd_open(os.getpid())
            given.callback(os.close, guardian)
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_LIMIT)
            handed = {SOCKET: theirs.fileno(), GUARDIAN: guardian}
            arguments = (self._marker, *self._groups, END_OF_GROUPS, *self._preload)
            self.process = execute("zygote", arguments, handed)
            made.pop_all()
        self._socket = trio.socket.from_stdlib_socket(ours)
        return self.process

    async def spawn(
        self,
        confinement: Confinement,
        *,
        descriptors: Mapping[int, int],
        arguments: Sequence[int | str],
        entry: str = DEFAULT_ENTRY,
        path: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        groups: Sequence[int] = (),
    ) -> Process:
        """Start a confined child and wait until it is confined. Raises CannotConfine, ZygoteDied.

        `descriptors` maps the numbers they get to descriptors that stay the caller's; `groups` are what
        control groups give to enter them by (`Group.open`).
        """
        targets = tuple(sorted(descriptors))
        handed = [*groups, *(descriptors[target] for target in targets)]
        spawn = Spawn(
            number=0,
            confinement=confinement,
            entry=entry,
            arguments=tuple(arguments),
            path=tuple(path),
            environment=dict(environment),
            groups=len(groups),
            targets=targets,
            marker=self._marker,
        )
        try:
            return await self._attempt(spawn, handed)
        except _Stillborn as killed:
            if not groups:
                raise killed.refusal from None
        # Its group may be one of those that kill what is made in them (native/sandbox.c).
        try:
            return await self._attempt(structs.replace(spawn, born=False), handed)
        except _Stillborn as killed:
            raise killed.refusal from None

    async def _attempt(self, spawn: Spawn, handed: list[int]) -> Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._numbers += 1
        with ours:
            with theirs:
                process = await self._exchange(
                    structs.replace(spawn, number=self._numbers), [theirs.fileno(), *handed]
                )
            try:
                process.listener = await _confined(process, trio.socket.from_stdlib_socket(ours))
            except BaseException:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                process.close()
                raise
        return process

    async def _exchange(self, spawn: Spawn, handed: list[int]) -> Process:
        """Ask and take the answer. Shielded: half an exchange would leave the next caller this one's
        answer."""
        if self._socket is None or self.process is None:
            raise ZygoteDied("it was not started")
        if len(handed) > DESCRIPTORS_MOST:
            raise CannotConfine(
                spawn.confinement.name, "handing over descriptors", "", f"{len(handed)} are too many"
            )
        asked = encode(spawn)
        if len(asked) > PACKET_LIMIT:
            raise CannotConfine(
                spawn.confinement.name, "asking the zygote", "", f"its plan of {len(asked)} bytes is too long"
            )
        async with self._turn:
            with trio.CancelScope(shield=True):
                packet, received = await self._ask(asked, handed)
        reply = from_zygote.decode(packet)
        if isinstance(reply, NotSpawned):
            raise CannotConfine(spawn.confinement.name, "making the process", "", os.strerror(reply.error))
        if not received:  # the kernel has no descriptor left for it: nobody could tell its end
            _end_child(reply.pid)
            raise CannotConfine(spawn.confinement.name, "taking its pidfd", "", os.strerror(errno.EMFILE))
        made = Process(spawn.confinement.name, reply.pid, received[0])
        self._children = [child for child in self._children if child.exit is None] + [made]
        return made

    async def _ask(self, asked: bytes, handed: list[int]) -> tuple[bytes, list[int]]:
        """The zygote's answer; of the next zygote, if this one ends over it. Raises ZygoteDied if that ends, too."""
        how = ""
        for _ in range(2):
            zygote, peer = self.process, self._socket
            if zygote is None or peer is None:
                raise ZygoteDied("it is not running")
            with suppress(BrokenPipeError, ConnectionResetError):
                await _send(peer, asked, handed)
                packet, received, _ = await _receive(peer)
                if packet:
                    return packet, received
            how = str(await zygote.wait())
            self._renew(zygote)
        raise ZygoteDied(how)

    async def keep(self) -> None:
        """Start the zygote again whenever it has ended. Runs as long as the kernel."""
        while (zygote := self.process) is not None and self._socket is not None:
            await zygote.wait()
            async with self._turn:  # whoever is asking that one hears of its end, and has renewed it
                with suppress(OSError):  # no descriptor is left, or no process: there may be later
                    self._renew(zygote)
            await trio.sleep(RENEW_PAUSE)

    def _renew(self, ended: Process) -> None:
        """Another zygote in the place of one that ended, if that was not done or the forge closed meanwhile. A child
        whose making it did not live to report is nobody's: it is ended. Raises `OSError`; then it is to be tried again."""
        before = self._socket
        if self.process is not ended or before is None:
            return
        known = {child.pid for child in self._children} | {ended.pid}
        for left in survivors(self._marker):
            if left.parent == os.getpid() and left.pid not in known and ZYGOTE in left.command:
                _end_child(left.pid)
        self.start()
        before.close()
        ended.close()
        self.renewed(str(ended.exit))

    async def close(self) -> None:
        """End the zygote. Its children go on: they are the kernel's."""
        if self._socket is not None:
            peer, self._socket = self._socket, None
            with suppress(BrokenPipeError, ConnectionResetError):
                await peer.send(FAREWELL)
            peer.close()
        if self.process is not None:
            await self.process.wait()
            self.process.close()


def _end_child(pid: int) -> None:
    """One of which there is no pidfd. Its number is its own until it is reaped here."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


HANDED_DOWN = ("PATH", "LANG", "TZ", "TMPDIR")
"""Variables that a process of the kernel's own gets, beside those of Python, the loader and the locale. Its children have
what it was started with in their memory, so secrets of the session that booted the node must not be among it."""


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in HANDED_DOWN or name.startswith(("PYTHON", "LD_", "LC_"))
    }


def execute(module: str, arguments: Sequence[str], descriptors: Mapping[int, int]) -> Process:
    """Run a module of the kernel's in an interpreter and a session of its own; `descriptors` as in
    `Forge.spawn`.

    Called from the main thread: the child may ask to die with the thread that started it. Raises `OSError`; then there is
    none.
    """
    above = max(descriptors) + 1
    moved = dict[int, int]()
    try:
        for target, given in descriptors.items():
            moved[target] = fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, above)
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", f"{__package__}.{module}", *arguments],
            _environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                *((os.POSIX_SPAWN_DUP2, given, target) for target, given in moved.items()),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGPIPE),
        )
    finally:
        for given in moved.values():
            os.close(given)
    try:
        return Process(module, pid, os.pidfd_open(pid))
    except OSError:
        _end_child(pid)  # before its socket is closed, by which a zygote would take this for the kernel's end
        raise


async def _send(peer: trio.socket.SocketType, packet: bytes, descriptors: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    await peer.sendmsg([packet], rights)


async def _receive(peer: trio.socket.SocketType) -> tuple[bytes, list[int], bool]:
    """A packet, its descriptors, and whether some of them could not be taken."""
    room = socket.CMSG_SPACE(4 * 4)
    packet, control, flags, _ = await peer.recvmsg(PACKET_LIMIT, room, socket.MSG_CMSG_CLOEXEC)
    received = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data)
    return packet, received.tolist(), bool(flags & socket.MSG_CTRUNC)


async def _confined(process: Process, status: trio.socket.SocketType) -> int | None:
    """The listener of a child that is confined as planned, if its filter has one. Raises CannotConfine."""
    word, received, cut = await _receive(status)
    if len(word) != STATUS.size:
        how = await process.wait()
        refusal = CannotConfine(
            process.name, "starting the interpreter", "", f"it {how} before it was confined"
        )
        if how.signal == signal.SIGKILL:
            raise _Stillborn(refusal)
        raise refusal
    step, error, detail, _ = STATUS.unpack(word)
    if error:
        row = f" at row {detail}" if detail >= 0 else ""
        raise CannotConfine(process.name, STEPS.get(step, f"step {step}"), row, os.strerror(error))
    if cut:  # what it is refused would fail unseen
        raise CannotConfine(process.name, "taking its filter's listener", "", os.strerror(errno.EMFILE))
    return received[0] if received else None
