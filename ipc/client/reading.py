"""Reads of the store go to a reader process where the kernel has named one (`ReadAt`), all else to the writer.

A reader sees a commit as soon as it is durable, hence before it is acknowledged to anyone. Each read says so all the same:
it carries the newest revision that this client has seen, and a reader that has not got that far answers `Ahead`. Whatever
a reader cannot do, having died for instance, is done by the writer, which knows everything: reads may be repeated, so
their callers never hear of a reader's end.
"""

import threading
from collections.abc import Callable, Generator
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from atoll.ipc.errors import (
    AtollError,
    DecodeFaults,
    InternalFault,
    NotAllowed,
    Overloaded,
    PeerDied,
    PeerMisbehaved,
    Revoked,
)
from atoll.ipc.future import Payload, RawFuture, RawReply
from atoll.ipc.method import MethodSpec
from atoll.ipc.system.control import Port
from atoll.ipc.system.state import Ahead, State
from atoll.ipc.transport import Options, Translator

from .channel import ClientChannel
from .pending import Pending
from .stream import ChannelStream
from .transport import ChannelTransport

LOOK_EVERY: Final = 64
"""Reads after which a program that nobody wakes looks whether the kernel has said something. It looks sooner at first: who
asks one question of a keyspace, and reads all of it, is to read at a reader too."""
GONE: Final = (PeerDied, PeerMisbehaved, Revoked, InternalFault)
"""After one of these nothing more is asked of this reader."""
ELSEWHERE: Final = (*GONE, NotAllowed, Overloaded, Ahead)
"""What a reader says that the writer may know better."""


class _Item(Struct, array_like=True):
    key: Raw
    value: Raw
    revision: int


class _Page(Struct, array_like=True):
    items: Raw
    more: bool
    revision: int


class _Revised(Struct, array_like=True):
    """What begins with its revision: `Committed`, `Change`."""

    revision: int


_item = msgspec.msgpack.Decoder(_Item | None)
_items = msgspec.msgpack.Decoder(list[_Item])
_page = msgspec.msgpack.Decoder(_Page)
_revised = msgspec.msgpack.Decoder(_Revised)


def _of_item(reply: Payload) -> int:
    item = _item.decode(reply)
    return 0 if item is None else item.revision


def _of_items(reply: Payload) -> int:
    items = _items.decode(reply)
    return items[0].revision if items else 0


def _of_page(reply: Payload) -> int:
    return _page.decode(reply).revision


def _of_revised(reply: Payload) -> int:
    return _revised.decode(reply).revision


Tells = Callable[[Payload], int]
_COMMITS: Final[dict[MethodSpec, Tells]] = {
    State.commit.spec: _of_revised,
    State.finish.spec: _of_revised,
    State.append.spec: _of_revised,
}
_READS: Final[dict[MethodSpec, Tells | None]] = {
    State.get.spec: _of_item,
    State.range.spec: _of_page,
    State.history.spec: _of_items,
    State.who.spec: None,
}
_TELLS: Final[dict[MethodSpec, Tells | None]] = {**_READS, **_COMMITS}
"""How each method's reply says which revision its caller has seen by it."""
_BOUND: Final = {
    method: msgspec.msgpack.Decoder(method.arguments)
    for method in _READS
    if "least" in method.arguments.__struct_fields__
}
"""Reads that can be bound to a least revision; the others name their revision themselves."""
_STREAMS: Final = (State.watch.spec, State.changes.spec, State.export.spec)
_encode = msgspec.msgpack.Encoder().encode


class Reads:
    """What the transports of one capability share: where its reads go, and what its holder has seen."""

    def __init__(self) -> None:
        self.reader: ChannelTransport | None = None
        self.seen = 0
        """The newest revision in any reply."""

    def go_to(self, channel: ClientChannel, port: Port, translator: Translator | None) -> None:
        self.reader = ChannelTransport(channel, port, translator)
        self.reader.streams = self.watched

    def stay(self) -> None:
        """The kernel has taken the reader back."""
        self.reader = None

    def at(self) -> ChannelTransport | None:
        """The reader, if there is one that lives."""
        reader = self.reader
        if reader is not None and reader.channel.failed is not None:
            self.refused(reader, PeerDied("State", False))
            return None
        return reader

    def refused(self, reader: ChannelTransport, error: AtollError) -> None:
        """A reader did not do what the writer must do now."""
        if isinstance(error, GONE) and self.reader is reader:
            self.reader = None

    def saw(self, tells: Tells, reply: Payload) -> None:
        try:
            revision = tells(reply)
        except DecodeFaults:
            return  # whoever decodes the whole reply says so
        self.seen = max(self.seen, revision)

    def at_least(self, method: MethodSpec, payload: bytes) -> bytes:
        """The arguments of a read, bound to what was seen."""
        decoder = _BOUND.get(method)
        if decoder is None or not self.seen:
            return payload
        arguments: Any = decoder.decode(payload)
        arguments.least = max(arguments.least, self.seen)
        return _encode(arguments)

    def watched(self, channel: ClientChannel, pending: Pending) -> ChannelStream:
        return _Watched(channel, pending, self)


class _Watched(ChannelStream):
    """A watch, or an export: what it brings was seen."""

    def __init__(self, channel: ClientChannel, pending: Pending, reads: Reads) -> None:
        super().__init__(channel, pending)
        self._reads = reads

    def arrived(self, items: list[bytes]) -> None:
        if items:
            self._reads.saw(_of_revised, items[-1])
        super().arrived(items)


class StoreTransport(ChannelTransport):
    """A capability on the store: `channel` and `port` are the writer's."""

    def __init__(
        self,
        channel: ClientChannel,
        port: Port,
        translator: Translator | None,
        reads: Reads,
        look: Callable[[], None] | None,
    ) -> None:
        """`look` hears what the kernel has said, where nobody else does."""
        super().__init__(channel, port, translator)
        self.streams = reads.watched
        self._reads = reads
        self._look = look
        self._looks_after = self._until_look = 1

    def _reader(self) -> ChannelTransport | None:
        if self._look is not None:
            self._until_look -= 1
            if self._until_look <= 0:
                self._looks_after = min(2 * self._looks_after, LOOK_EVERY)
                self._until_look = self._looks_after
                self._look()
        return self._reads.at()

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> bytes | memoryview:
        reads = self._reads
        reader = self._reader() if method in _READS else None
        if reader is not None:
            try:
                reply = reader.call_now(method, reads.at_least(method, payload), options)
            except ELSEWHERE as error:
                reads.refused(reader, error)
                reply = super().call_now(method, payload, options)
        else:
            reply = super().call_now(method, payload, options)
        tells = _TELLS.get(method)
        if tells is not None:
            reads.saw(tells, reply)
        return reply

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> bytes | memoryview:
        reads = self._reads
        reader = self._reader() if method in _READS else None
        if reader is not None:
            try:
                reply = await reader.call(method, reads.at_least(method, payload), options)
            except ELSEWHERE as error:
                reads.refused(reader, error)
                reply = await super().call(method, payload, options)
        else:
            reply = await super().call(method, payload, options)
        tells = _TELLS.get(method)
        if tells is not None:
            reads.saw(tells, reply)
        return reply

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        tells = _TELLS.get(method)
        reader = self._reader() if method in _READS else None
        started: RawReply
        if reader is None:
            started = super().start(method, payload, options)
        else:
            started = self._start_at(reader, method, payload, options)
        if tells is not None:
            started.add_done_callback(lambda: self._done(started, tells))
        return started

    def _start_at(
        self, reader: ChannelTransport, method: MethodSpec, payload: bytes, options: Options
    ) -> RawReply:
        def instead(error: AtollError) -> RawReply:
            self._reads.refused(reader, error)
            return super(StoreTransport, self).start(method, payload, options)

        try:
            first = reader.start(method, self._reads.at_least(method, payload), options)
        except ELSEWHERE as error:
            return instead(error)
        return _Rerouted(first, instead)

    def _done(self, started: RawReply, tells: Tells) -> None:
        try:
            reply = started.result(0)
        except AtollError:
            return  # its caller gets it
        self._reads.saw(tells, reply)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> ChannelStream:
        reader = self._reader() if method in _STREAMS else None
        if reader is not None:
            try:
                return reader.open(method, payload, options)
            except ELSEWHERE as error:
                self._reads.refused(reader, error)
        return super().open(method, payload, options)


class _Rerouted:
    """A read that was started at a reader, and is started again at the writer if that comes to nothing."""

    def __init__(self, first: RawReply, instead: Callable[[AtollError], RawReply]) -> None:
        self._first = first
        self._instead = instead
        self._turn = threading.Lock()
        self._settled: RawReply | None = None
        """Where the outcome is: known once the first try is done."""

    def _outcome(self) -> RawReply:
        """Once the first try is done."""
        with self._turn:
            if self._settled is None:
                self._settled = self._choose()
            return self._settled

    def _choose(self) -> RawReply:
        try:
            self._first.result(0)
        except ELSEWHERE as error:
            try:
                return self._instead(error)
            except AtollError as refusal:
                failed = RawFuture()
                failed.fail(refusal)
                return failed
        except AtollError:
            return self._first
        return self._first

    def done(self) -> bool:
        return self._first.done() and self._outcome().done()

    def result(self, timeout: float | None = None) -> Payload:
        try:
            return self._first.result(timeout)
        except ELSEWHERE:
            return self._outcome().result(timeout)

    def cancel(self) -> None:
        (self._outcome() if self._first.done() else self._first).cancel()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        self._first.add_done_callback(lambda: self._outcome().add_done_callback(callback))

    def __await__(self) -> Generator[Any, Any, Payload]:
        return self._wait().__await__()

    async def _wait(self) -> Payload:
        try:
            return await self._first
        except ELSEWHERE:
            return await self._outcome()
