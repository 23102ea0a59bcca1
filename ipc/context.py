"""The call in hand: who calls, with which rights, until when; and where a handler takes time, chance and ids
from.

Inline handlers find it in one slot that the receive loop fills (nothing is read for a handler that does not
ask); async handlers in a context variable of their task. Calls that a handler makes inherit its trace id, and
the lesser of its deadline and their own.
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Final, Literal, Protocol

import msgspec
from msgspec import Struct

from . import chance, clock
from .errors import WouldBlock
from .method import MethodSpec, Service
from .transport import Options

_KEY: Final = 12
"""Bytes of a call's key; what follows stands for its arguments."""


class Clock(Protocol):
    """Where time comes from. Seconds."""

    def time(self) -> float:
        """Since the epoch."""
        ...

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC: what deadlines are told in."""
        ...


class SystemClock:
    """The host's clocks."""

    def time(self) -> float:
        return clock.wall()

    def monotonic(self) -> float:
        return clock.monotonic()


class Fields(Struct, frozen=True, kw_only=True):
    """What a transport knows about a call that it delivers."""

    method: str
    badge: int = 0
    rights: frozenset[str] = frozenset()
    service: Service = "normal"
    deadline: float | None = None
    """CLOCK_MONOTONIC seconds."""
    trace: int = 0
    transaction: bytes | None = None
    key: bytes | None = None
    """Of a call that a step of a workflow makes: 12 bytes that are the same whenever the step is run again, and 4 that say
    by which arguments (zeros: nobody knows)."""
    client: int = 0
    """The channel's number."""
    request: int = 0
    """Unique for (capability, boot); the same when a request is sent again."""
    seed: bytes | None = None
    """Of this call's chance; None: from the host."""


Level = Literal["debug", "info", "warning", "error"]
Sink = Callable[[Level, str, dict[str, str]], None]
"""Takes a log line: level, text, fields."""


def _to_logging(level: Level, text: str, fields: dict[str, str]) -> None:
    told = "".join(f" {name}={value}" for name, value in fields.items())
    logging.getLogger("atoll").log(logging.getLevelNamesMapping()[level.upper()], "%s%s", text, told)


_sink: Sink = _to_logging


def set_log_sink(sink: Sink) -> None:
    """Where the process's log lines go: in a server process, the control socket."""
    global _sink
    _sink = sink


LINE_MOST = 8192
"""Characters of a line's text, or of a field: the kernel keeps no more."""
FIELDS_MOST = 32768
"""Characters of all fields of a line, with their names: one packet holds them, whatever they are."""


def fitting(text: str, most: int) -> str:
    """What can be sent of it: exceptions quote what was in hand, as long as it is and no UTF-8 if it is none."""
    return text[:most].encode(errors="backslashreplace").decode()[:most]


class Log:
    """Log lines that name the call they belong to. Keyword arguments are fields. What is too long for a line is cut."""

    __slots__ = ("_fixed",)

    def __init__(self, **fixed: str) -> None:
        self._fixed = fixed

    def _write(self, level: Level, text: str, fields: dict[str, object]) -> None:
        left, kept = FIELDS_MOST, dict[str, str]()
        for name, value in (self._fixed | fields).items():
            called, told = fitting(name, LINE_MOST), fitting(str(value), LINE_MOST)
            left -= len(called) + len(told)
            if left < 0:
                break
            kept[called] = told
        _sink(level, fitting(text, LINE_MOST), kept)

    def debug(self, text: str, /, **fields: object) -> None:
        self._write("debug", text, fields)

    def info(self, text: str, /, **fields: object) -> None:
        self._write("info", text, fields)

    def warning(self, text: str, /, **fields: object) -> None:
        self._write("warning", text, fields)

    def error(self, text: str, /, **fields: object) -> None:
        self._write("error", text, fields)


class Call:
    """One call, as its handler sees it. Everything here comes from the capability table and the message
    header, never from the payload; `trace` alone is only the caller's claim."""

    __slots__ = ("_clock", "_log", "_random", "fields", "numbers", "thread")

    def __init__(self, fields: Fields, clock: Clock) -> None:
        self.fields = fields
        self.thread = get_ident()
        self.numbers: object = None
        """`ipc.origin` counts the call's commits here."""
        self._clock = clock
        self._random: random.Random | None = None
        self._log: Log | None = None

    @property
    def method(self) -> str:
        return self.fields.method

    @property
    def badge(self) -> int:
        """The object that the capability names; 0 if it is unbadged."""
        return self.fields.badge

    @property
    def rights(self) -> frozenset[str]:
        return self.fields.rights

    @property
    def service(self) -> Service:
        return self.fields.service

    @property
    def deadline(self) -> float | None:
        """CLOCK_MONOTONIC seconds; None if the caller gave none."""
        return self.fields.deadline

    @property
    def trace(self) -> int:
        return self.fields.trace

    @property
    def transaction(self) -> bytes | None:
        return self.fields.transaction

    @property
    def key(self) -> bytes | None:
        """The idempotency key, where a step of a workflow calls; None for other calls."""
        return None if self.fields.key is None else self.fields.key[:_KEY]

    @property
    def told(self) -> bytes:
        """What stands for the arguments of a call that has a key; empty where nobody knows."""
        told = b"" if self.fields.key is None else self.fields.key[_KEY:]
        return told if any(told) else b""

    @property
    def client(self) -> int:
        """The number of the channel it came by."""
        return self.fields.client

    @property
    def request(self) -> int:
        return self.fields.request

    def now(self) -> float:
        """Seconds since the epoch, by the node's clock."""
        return self._clock.time()

    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 at least; None if there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - self._clock.monotonic())

    @property
    def random(self) -> random.Random:
        """Chance of this call, the same again when the call is replayed."""
        if self._random is None:
            self._random = random.Random(chance.token(16) if self.fields.seed is None else self.fields.seed)
        return self._random

    def new_id(self) -> bytes:
        """16 bytes that nothing else is named by."""
        return self.random.randbytes(16)

    @property
    def log(self) -> Log:
        if self._log is None:
            self._log = Log(method=self.method, trace=f"{self.trace:016x}")
        return self._log

    def unhurried(self) -> "Call":
        """This call without its deadline: for what has to be said when that has passed."""
        return Call(msgspec.structs.replace(self.fields, deadline=None), self._clock)

    def inherit(self, options: Options, method: MethodSpec) -> Options:
        """The options of a call of that method that its handler makes."""
        until = self.deadline if options.until is None else options.until
        if self.deadline is not None and until is not None:
            until = min(until, self.deadline)
        # What is done for somebody who does not hurry is not in others' way either; a capability's cap is minded elsewhere.
        service = "bulk" if self.fields.service == "bulk" else options.service
        return msgspec.structs.replace(
            options, trace=options.trace or self.trace, until=until, service=service
        )


class Inline:
    """The slot of a receive loop that runs plain handlers inline. Only the loop's thread touches it.

    The loop sets `read` (and `thread`) when it begins to run handlers and clears it before it awaits
    anything; for each message it sets `call` to None. What `read` returns must not refer to the message.
    """

    __slots__ = ("between", "call", "clock", "read", "thread")

    def __init__(self) -> None:
        self.read: Callable[[], Fields] | None = None
        self.call: Call | None = None
        self.between = False
        """The loop runs code of the server's that belongs to no call in hand."""
        self.thread = 0
        self.clock: Clock = SystemClock()


INLINE = Inline()
_in_task: ContextVar[Call | None] = ContextVar("atoll call", default=None)


def runs_inline() -> bool:
    """Whether this thread is the receive loop, and a plain handler has it now."""
    return INLINE.read is not None and INLINE.thread == get_ident()


def current_or_none() -> Call | None:
    """The call in hand; None outside of a handler."""
    if INLINE.read is not None and INLINE.thread == get_ident():
        if INLINE.call is None:
            INLINE.call = Call(INLINE.read(), INLINE.clock)
        return INLINE.call
    return _in_task.get()


def current() -> Call:
    """The call in hand. LookupError outside of a handler."""
    call = current_or_none()
    if call is None:
        raise LookupError(
            "no call is in hand: current() is for handlers; background work takes what it needs at its call"
        )
    return call


def enter(call: Call) -> None:
    """Make it the call in hand wherever the current context is seen."""
    _in_task.set(call)


@contextmanager
def in_hand(call: Call | None) -> Iterator[None]:
    """Make it the call in hand of this task, or of this stretch of a thread."""
    token = _in_task.set(call)
    try:
        yield
    finally:
        _in_task.reset(token)


@contextmanager
def back_in_hand(call: Call | None) -> Iterator[None]:
    """Make a call of before the one in hand for this stretch, whoever's message the receive loop has in hand meanwhile."""
    read, inline = INLINE.read, runs_inline()
    if inline:
        INLINE.read = None
    try:
        with in_hand(call):
            yield
    finally:
        if inline:
            INLINE.read = read


def inherited(options: Options, method: MethodSpec) -> Options:
    """The options of a call, with what it takes from the call in hand: the trace id, the lesser deadline."""
    call = current_or_none()
    return options if call is None else call.inherit(options, method)


def new_trace() -> int:
    """A trace id for a call that belongs to none: 64 bits, not 0."""
    return random.getrandbits(64) or 1


def trace_of(channel: int, request: int) -> int:
    """By what a call is traced whose caller gave it no trace: 64 bits, of however large a channel's number."""
    return (channel << 40 | request) & (1 << 64) - 1


def forbid_blocking(method: str) -> None:
    """Raise `WouldBlock` if this thread is the loop that runs a handler now."""
    call = current_or_none()
    if call is not None and call.thread == get_ident():
        raise WouldBlock(method, call.method)
    if INLINE.between and INLINE.thread == get_ident():
        raise WouldBlock(method, "what a server does between its calls")
