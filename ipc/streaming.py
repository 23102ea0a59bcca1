"""Streams and uploads as a client sees them: typed items, resumption, cancellation.

A stream whose interface names a position goes on by itself after `PeerDied`: it is opened again from the
position of the last item that was taken, so that no item is lost and none comes twice. It gives up after a
few deaths in a row without an item in between.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

import msgspec

from . import clock, codec
from .bound import Bound, options_of, transport_of
from .errors import DecodeFaults, PeerDied, PeerMisbehaved
from .future import Payload
from .generated import generate
from .method import MethodSpec
from .proxy import Signature, bad_reply
from .transport import Options, RawStream, Transport

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

DEATHS_IN_A_ROW = 8
"""How often a resumable stream is opened again without an item in between."""


class _Source(Generic[T]):
    """What both kinds of stream share: the raw stream, what was received of it and not yet taken, and its
    position."""

    def __init__(self, spec: MethodSpec, proxy: Bound, arguments: msgspec.Struct) -> None:
        self.spec = spec
        self._transport: Transport = transport_of(proxy)
        self._options: Options = options_of(proxy)
        self._until = self._options.expiry(clock.monotonic())
        """When its time is over, however often it is opened."""
        translator = self._transport.translator
        self._encode = codec.encoder(spec, translator)
        self._decode = codec.decoder(spec, "item", translator)
        self._arguments = arguments
        self._ready: Iterator[bytes] = iter(())
        self._deaths = 0
        self._over = False
        self._raw = self._open()

    def _open(self) -> RawStream:
        return self._transport.open(self.spec, self._encode(self._arguments), self._options)

    def _take(self, data: bytes) -> T:
        try:
            item: T = self._decode(data)
        except DecodeFaults as fault:
            self.cancel()
            raise bad_reply(self.spec, fault) from None
        resume = self.spec.resume
        if resume is not None:
            position = getattr(item, resume.field) if resume.field else item
            setattr(self._arguments, self._arguments.__struct_fields__[resume.argument], position)
            self._deaths = 0
        return item

    def _resumes(self) -> bool:
        """After a death: whether the stream was opened again."""
        self._deaths += 1
        if self.spec.resume is None or self._over or self._deaths > DEATHS_IN_A_ROW:
            self._over = True
            return False
        self._options = msgspec.structs.replace(self._options, until=self._until)
        self._raw = self._open()
        return True

    def cancel(self) -> None:
        """End the stream from this side; the server's generator is closed. Harmless after the end."""
        self._over = True
        self._ready = iter(())
        self._raw.cancel()


class BlockingStream(_Source[T]):
    """Items of a stream, for a thread: `for change in p.changes.now(3)`. A context manager that cancels at
    exit."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while True:
            for data in self._ready:
                return self._take(data)
            if self._over:
                raise StopIteration
            try:
                received = self._raw.receive_now()
            except PeerDied:
                if not self._resumes():
                    raise
                continue
            except BaseException:
                self.cancel()
                raise
            if received is None:
                self._over = True
                raise StopIteration
            self._ready = iter(received)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Stream(_Source[T]):
    """Items of a stream, for trio or asyncio: `async for change in p.changes(3)`. An async context manager
    that cancels at exit."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            for data in self._ready:
                return self._take(data)
            if self._over:
                raise StopAsyncIteration
            try:
                received = await self._raw.receive()
            except PeerDied:
                if not self._resumes():
                    raise
                continue
            except BaseException:
                self.cancel()
                raise
            if received is None:
                self._over = True
                raise StopAsyncIteration
            self._ready = iter(received)

    async def aclose(self) -> None:
        """Cancel it: the name that `contextlib.aclosing` calls."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class BoundStream(Generic[P, T]):
    """A stream method of a proxy."""

    __slots__ = ("_open", "now", "spec")

    def __init__(
        self, spec: MethodSpec, open: Callable[P, Stream[T]], now: Callable[P, BlockingStream[T]]
    ) -> None:
        self.spec = spec
        self._open = open
        self.now = now
        """The stream for a thread."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Stream[T]:
        """Open the stream, for trio or asyncio."""
        return self._open(*args, **kwargs)


_STREAM = """
def make(_kind):
    def open({parameters}):
        return _kind(_spec, _proxy, _Arguments({values}))
    return open
"""


def bound_stream(spec: MethodSpec, proxy: Bound) -> BoundStream[Any, Any]:
    """The bound object of a stream method on a proxy."""
    signature = Signature(spec)
    namespace: dict[str, Any] = {
        "_spec": spec,
        "_proxy": proxy,
        "_Arguments": spec.arguments,
        **signature.defaults,
    }
    source = _STREAM.format(parameters=signature.parameters, values=signature.values)
    make = generate(f"client of {spec.label}", source, namespace)["make"]
    return BoundStream(spec, make(Stream), make(BlockingStream))


class BoundUpload(Generic[P, T, R]):
    """An upload method of a proxy: the items come first, then the method's own arguments."""

    __slots__ = ("_decode", "_encode", "_options", "_pack", "_transport", "spec")

    def __init__(self, spec: MethodSpec, proxy: Bound) -> None:
        self.spec = spec
        self._transport = transport_of(proxy)
        self._options = options_of(proxy)
        translator = self._transport.translator
        self._encode = codec.encoder(spec, translator)
        self._decode = codec.decoder(spec, "result", translator)
        signature = Signature(spec)
        self._pack = generate(
            f"client of {spec.label}",
            f"def pack({signature.parameters}): return {signature.packed}",
            {
                "_Arguments": spec.arguments,
                "_encode": self._encode,
                "_nothing": b"\x90",
                **signature.defaults,
            },
        )["pack"]

    def __call__(
        self, items: AsyncIterable[T] | Iterable[T], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Send the items as credit allows, then await the reply; in trio or asyncio."""
        return self._upload(items, self._pack(*args, **kwargs))

    def now(self, items: Iterable[T], *args: P.args, **kwargs: P.kwargs) -> R:
        """Send the items, blocking, then return the reply."""
        raw = self._transport.open(self.spec, self._pack(*args, **kwargs), self._options)
        try:
            for item in items:
                raw.send_now(self._encode(item))
            raw.finish()
            return self._reply(raw.receive_now())
        except BaseException:
            raw.cancel()
            raise

    async def _upload(self, items: AsyncIterable[T] | Iterable[T], payload: bytes) -> R:
        raw = self._transport.open(self.spec, payload, self._options)
        try:
            async for item in _each(items):
                await raw.send(self._encode(item))
            raw.finish()
            return self._reply(await raw.receive())
        except BaseException:
            raw.cancel()
            raise

    def _reply(self, received: list[bytes] | None) -> R:
        if not received:
            raise PeerMisbehaved(f"the reply of {self.spec.label}", "the upload ended without a reply")
        data: Payload = received[0]
        try:
            reply: R = self._decode(data)
        except DecodeFaults as fault:
            raise bad_reply(self.spec, fault) from None
        return reply


async def _each(items: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def bound_upload(spec: MethodSpec, proxy: Bound) -> BoundUpload[Any, Any, Any]:
    """The bound object of an upload method on a proxy."""
    return BoundUpload(spec, proxy)
