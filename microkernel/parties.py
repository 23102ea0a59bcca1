"""Parties: whoever can be the client of a channel. A server's process, an attached program, the kernel itself."""

from __future__ import annotations

import os

import trio

from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.system import control

from .accounts import Cost
from .connections import Connection
from .mechanisms import Process
from .notices import Notice, Status
from .peers import Peer
from .protection import Plan
from .tapes import Tape

KERNEL = "kernel"
"""The kernel's own name as a holder and as a server."""
FIRST_PING = 1 << 32
"""What a swap asks of the new process: a number that no round of the watchdog comes to."""


class Party:
    """Who may call: one conversation over a control socket, one notice, one channel a server it calls (`Channels`).

    `holder` is its name in the capability tree: a server's name, which outlives the process, or `@NUMBER`.
    """

    def __init__(self, number: int, holder: str, account: str) -> None:
        self.number = number
        self.holder = holder
        self.account = account
        self.notice = Notice(holder)
        self.connection: Connection | None = None
        self.session: set[int] = set()
        """Capabilities that end with it."""
        self.cost: Cost = {}
        """What its account is charged for as long as it is there."""
        self.gone = False
        self.retired = False
        """It has handed over to the process that takes its place, and what is the server's is out of its hands."""

    def send(self, message: control.Message, descriptors: tuple[int, ...] = ()) -> None:
        """Say something to it. One that has stopped listening hears nothing more, and is ended where it is heard."""
        if self.connection is None:
            return
        try:
            self.connection.send(message, descriptors)
        except PeerMisbehaved:
            self.connection.close()

    def close(self) -> None:
        """Let go of what only this party had. Its channels were closed before."""
        self.gone = True
        if self.connection is not None:
            self.connection.close()
        self.notice.close()


class Serving(Party):
    """A process of a server."""

    def __init__(
        self, number: int, holder: str, account: str, *, reader: str = "", tape: Tape | None = None
    ) -> None:
        super().__init__(number, holder, account)
        self.reader = reader
        """For a reader process of the store, the name that its channels go by."""
        try:
            self.status = Status(holder)
        except BaseException:
            self.notice.close()
            raise
        self.process: Process | None = None
        self.tape = tape
        """Where its calls are recorded."""
        self.ready = trio.Event()
        """Set by the next `Ready` or `Failed`, and by the process's end."""
        self.offered: control.Ready | None = None
        self.failed: control.Failed | None = None
        self.drain = 0
        """Number of the last drain that it was asked for."""
        self.drained: trio.Event = trio.Event()
        self.pending: dict[str, int] = {}
        """Calls in hand after a drain: by method, how many."""
        self.lost: dict[str, int] = {}
        """Those of them that nobody may send again."""
        self.handed: trio.Event = trio.Event()
        self.handed_over: tuple[control.HandedOver, int] | None = None
        """With the descriptor of the state, this object's until it is taken."""
        self.silent = trio.Event()
        """All that it said was heard."""
        self.ended = trio.Event()
        """The process is gone and what it held was let go."""
        self.expected_end = ""
        """Why it is to end; empty: nobody asked for it."""
        self.served: set[int] = set()
        """Numbers of the channels that it was given to serve."""
        self.started = 0
        """Nanoseconds since the epoch."""
        self.starved_before = 0
        """How many of its group were killed for want of memory before it was."""
        self.version = ""
        """Of the package that it runs."""
        self.plan: Plan | None = None
        """How it is confined."""
        self.first_answered = False
        """It has answered `FIRST_PING`: maybe late, so that is none of the watchdog's count."""
        self.pong = 0
        self.busy = ""

    @property
    def pid(self) -> int:
        """Of its process; 0: there is none yet."""
        return 0 if self.process is None else self.process.pid

    @property
    def serves(self) -> str:
        """The name that the channels it serves go by."""
        return self.reader or self.holder

    def forget_hand_over(self) -> None:
        """Let go of a state that nobody took: it came after its swap was given up, or for none."""
        if self.handed_over is not None:
            os.close(self.handed_over[1])
            self.handed_over = None

    def close(self) -> None:
        super().close()
        self.forget_hand_over()
        self.status.close()
        if self.tape is not None:
            self.tape.close()
        if self.process is not None:
            self.process.close()


class Attached(Party):
    """A program outside that is attached."""

    def __init__(self, number: int, account: str, peer: Peer) -> None:
        super().__init__(number, f"@{number}", account)
        self.pid = peer.pid
        self.uid = peer.uid
        self.program = peer.program
        self.since = 0
        self.operator = False
        self.rights: frozenset[str] = frozenset()
