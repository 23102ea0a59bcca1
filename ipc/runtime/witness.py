"""What stands between a recorded server and its needs: it notes what they answered, and how far local views have come."""

from hashlib import blake2b
from typing import Any, Final, TypeVar

import msgspec

from atoll.ipc import errors
from atoll.ipc.bound import Bound, bind, options_of, transport_of
from atoll.ipc.context import Call, current_or_none
from atoll.ipc.errors import AtollError
from atoll.ipc.future import Payload, RawReply
from atoll.ipc.local_view import LocalView
from atoll.ipc.method import MethodSpec
from atoll.ipc.origin import CALL, IDS
from atoll.ipc.system.calls import AHEAD, ASKED, VIEW, Ahead, Asked, Viewed
from atoll.ipc.system.state import State
from atoll.ipc.transport import ChannelStatistics, Layer, Options, RawStream, Translator, Transport

from .recording import Recorder

I = TypeVar("I", bound=Bound)  # noqa: E741
T = TypeVar("T")

WHOLE: Final = 1024
"""Bytes of a reply of the store that are recorded; of a longer one its digest, since it can be read again."""
READS: Final = frozenset({State.get.spec, State.range.spec, State.history.spec})
DIGEST: Final = 16
COMMITS: Final[dict[MethodSpec, Any]] = {
    method: msgspec.msgpack.Decoder(method.arguments) for method in (State.commit.spec, State.append.spec)
}
_encode = msgspec.msgpack.Encoder().encode


def digest_of(reply: Payload) -> bytes:
    """What stands for a long reply of the store."""
    return blake2b(reply, digest_size=DIGEST).digest()


def witnessed(recorder: Recorder, need: str, proxy: I) -> I:
    """The proxy of a need, with what it is asked and answers noted."""
    return bind(type(proxy), Witness(recorder, need, transport_of(proxy)), options_of(proxy))


class Witness(Layer):
    """See `atoll.ipc.transport.Transport`."""

    def __init__(self, recorder: Recorder, need: str, inner: Transport) -> None:
        super().__init__(inner)
        self._recorder = recorder
        self._need = need

    @property
    def translator(self) -> Translator | None:
        return self.inner.translator

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        of = self._of(method, payload)
        try:
            reply = self.inner.call_now(method, payload, options)
        except AtollError as error:
            self._failed(of, method, payload, error)
            raise
        self._replied(of, method, payload, reply)
        return reply

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        of = self._of(method, payload)
        try:
            reply = await self.inner.call(method, payload, options)
        except AtollError as error:
            self._failed(of, method, payload, error)
            raise
        self._replied(of, method, payload, reply)
        return reply

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        of = self._of(method, payload)
        started = self.inner.start(method, payload, options)

        def note() -> None:
            try:
                reply = started.result(0)
            except AtollError as error:
                self._failed(of, method, payload, error)
            else:
                self._replied(of, method, payload, reply)

        started.add_done_callback(note)
        return started

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        self._note(self._of(method, payload), Asked(self._need, method.label, "cast", payload))
        self.inner.cast(method, payload, options)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream:
        self._note(self._of(method, payload), Asked(self._need, method.label, "stream", payload))
        return self.inner.open(method, payload, options)

    def statistics(self) -> ChannelStatistics:
        return self.inner.statistics()

    # what is noted ----------------------------------------------------------------------------------------------------

    def _of(self, method: MethodSpec, payload: bytes) -> tuple[int, int] | None:
        """The call for which it is made; (0, 0): for the server's start; None: for neither.

        A commit that follows from a call after its handler has returned says by its id whose it is."""
        call: Call | None = current_or_none()
        if call is not None:
            return (call.client, call.request) if call.request else None  # else a workflow's
        if self._recorder.starting:
            return 0, 0
        if method in COMMITS:
            id = COMMITS[method].decode(payload).id
            if len(id) in IDS:
                _, channel, _, request = CALL.unpack_from(id)
                return channel, request
        return None

    def _replied(
        self, of: tuple[int, int] | None, method: MethodSpec, payload: bytes, reply: Payload
    ) -> None:
        if of is None:
            return
        if method in READS and len(reply) > WHOLE:
            asked = Asked(self._need, method.label, "call", payload, digest=digest_of(reply))
        else:
            asked = Asked(self._need, method.label, "call", payload, bytes(reply))
        self._note(of, asked)

    def _failed(
        self, of: tuple[int, int] | None, method: MethodSpec, payload: bytes, error: AtollError
    ) -> None:
        self._note(of, Asked(self._need, method.label, "call", payload, fault=errors.encode(error)))

    def _note(self, of: tuple[int, int] | None, asked: Asked) -> None:
        if of is not None:
            self._recorder.note_of(*of, ASKED, _encode(asked))


class WitnessedView(LocalView[T]):
    """A local view of which is noted how far it has come."""

    __slots__ = ("_need", "_recorder")

    def __init__(self, recorder: Recorder, need: str) -> None:
        super().__init__()
        self._recorder = recorder
        self._need = need

    def wrote(self, key: str, value: T, revision: int) -> None:
        super().wrote(key, value, revision)
        self._ahead(key, revision)

    def erased(self, key: str, revision: int) -> None:
        super().erased(key, revision)
        self._ahead(key, revision)

    def pass_to(self, revision: int) -> None:
        super().pass_to(revision)
        self._recorder.note_of(0, 0, VIEW, _encode(Viewed(self._need, revision)))

    def _ahead(self, key: str, revision: int) -> None:
        if revision > self.revision:
            self._recorder.note_of(0, 0, AHEAD, _encode(Ahead(self._need, key, revision)))


__all__ = ["Witness", "WitnessedView", "digest_of", "witnessed"]
