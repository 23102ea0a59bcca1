"""The needs of a server as a replay plays them: transports under the proxies that it is bound to.

Another server answers what it answered then. The store answers what it answered then, too; what it was not asked it answers
as of then, with the call's own writes over it, which stay here. Nothing leaves the process but reads.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import trio

from atoll.ipc import errors
from atoll.ipc.errors import AtollError, BadRequest, NotFound
from atoll.ipc.future import Payload, RawFuture
from atoll.ipc.method import MethodSpec
from atoll.ipc.runtime.witness import digest_of
from atoll.ipc.system.calls import Asked
from atoll.ipc.system.state import Committed, Compacted, Item, Page, versions_upto
from atoll.ipc.transport import ChannelStatistics, NoCapabilities, Options, RawStream, Transport

from .effects import BY_LABEL, Effects, arguments_of
from .script import Script

Ask = Callable[[str, str, bytes], bytes]
"""Need, method, arguments: what the keyspace was then. Raises what the store says."""
PAST = frozenset(
    {"State.get", "State.range", "State.history", "State.who", "State.revision_at", "State.horizon"}
)
"""What the store is asked as of then."""
_encode = msgspec.msgpack.Encoder().encode
_item = msgspec.msgpack.Decoder(Item | None)
_page = msgspec.msgpack.Decoder(Page)
_history = msgspec.msgpack.Decoder(list[Item])


class Stage:
    """What is played now: a script, with what has come of it so far."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.script = Script([])
        self.effects = Effects()
        self.revision = 0
        """The keyspaces are as of it."""
        self.moved: list[str] = []
        self.silent = False
        """The SDK reads, for a local view: that is no question of the call's."""

    def begin(self, script: Script, revision: int) -> None:
        self.script, self.effects, self.revision = script, Effects(), revision
        self.moved = []

    def token(self, size: int) -> bytes:
        """The chance of this process: the script's."""
        return self.script.token(size)


class Passing(NoCapabilities):
    """The translator of a replay: capabilities and buffers are not recorded."""

    def __init__(self, stage: Stage) -> None:
        super().__init__("a replay, which has none")
        self._stage = stage

    def _refuse(self) -> int:
        self._stage.script.hinder("it passes a capability or a buffer, which is not recorded")
        return super()._refuse()

    def receive_capability(self, interface: type, token: int) -> Transport | None:
        self._stage.script.hinder("it was given a capability, which is not recorded")
        return None


class PlayedServer:
    """A need of a server. See `atoll.ipc.transport.Transport`."""

    def __init__(self, stage: Stage, need: str) -> None:
        self.stage = stage
        self.need = need

    @property
    def translator(self) -> Passing:
        return Passing(self.stage)

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawFuture:
        future = RawFuture()
        try:
            future.complete(self.answer(method, payload))
        except AtollError as error:
            future.fail(error)
        return future

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        await trio.lowlevel.checkpoint()
        return self.answer(method, payload)

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        return self.answer(method, payload)

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        if self.stage.script.answer(self.need, method.label, payload) is None:
            self.stage.script.unasked.append(Asked(self.need, method.label, "cast", payload))

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream:
        self.stage.script.hinder(f"it opens the stream {method.label}, whose items are not recorded")
        raise NotFound(f"recorded stream {method.label} of the need", self.need)

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics()

    def answer(self, method: MethodSpec, payload: bytes) -> bytes:
        """What it was answered then. Raises the fault that it was, or `NotFound`."""
        asked = self.stage.script.answer(self.need, method.label, payload)
        if asked is not None:
            return self.told(asked, method)
        self.stage.script.unasked.append(Asked(self.need, method.label, "call", payload))
        raise NotFound(f"recorded call of {method.label} with these arguments by the need", self.need)

    @staticmethod
    def told(asked: Asked, method: MethodSpec) -> bytes:
        if asked.fault is not None:
            raise errors.decode(asked.fault, method)
        return asked.reply or b""


class PlayedStore(PlayedServer):
    """A keyspace of the server's."""

    def __init__(self, stage: Stage, need: str) -> None:
        super().__init__(stage, need)
        self._made = 0

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        super().cast(method, payload, options)
        self.stage.effects.happened(self.need, method.label, payload, b"")

    def answer(self, method: MethodSpec, payload: bytes) -> bytes:
        stage, label = self.stage, method.label
        if stage.silent:
            return self._past(label, payload)
        asked = stage.script.answer(self.need, label, payload)
        if asked is None:
            stage.script.unasked.append(Asked(self.need, label, "call", payload))
            reply = self._anew(label, payload)
        elif asked.digest:
            reply = self._past(label, payload)
            if digest_of(reply) != asked.digest:
                self._moved(label, payload)
                reply = self._over(label, payload, reply)
        else:
            if label in ("State.get", "State.range") and asked.fault is None:
                self._compare(label, payload, asked.reply or b"")
            try:
                reply = self.told(asked, method)
            except AtollError:
                stage.effects.happened(self.need, label, payload, None)
                raise
        stage.effects.happened(self.need, label, payload, reply)
        return reply

    def _compare(self, label: str, payload: bytes, recorded: bytes) -> None:
        """Whether a read saw then what was there when the call began; but for its own writes."""
        if any(need == self.need for need, _ in self.stage.effects.rows):
            return
        try:
            if self._past(label, payload) != recorded:
                self._moved(label, payload)
        except AtollError as error:
            self.stage.moved.append(f"{label} cannot be read again: {error}")

    def _moved(self, label: str, payload: bytes) -> None:
        given = arguments_of(label, payload)
        key = getattr(given, "key", getattr(given, "start", b""))
        sentence = f"{label} of {self.need}, {key!r}: written by another since the call had begun"
        if sentence not in self.stage.moved:
            self.stage.moved.append(sentence)

    # what was not asked then ----------------------------------------------------------------------------------------

    def _past(self, label: str, payload: bytes) -> bytes:
        """A read, as of then."""
        given = arguments_of(label, payload)
        if hasattr(given, "as_of"):
            given.as_of = self.stage.revision if given.as_of is None else given.as_of
        if hasattr(given, "least"):
            given.least = 0
        try:
            if label == "State.history":
                return self._versions(given)
            return self.stage.ask(self.need, label, _encode(given))
        except Compacted as error:
            self.stage.script.hinder(f"what it read of {self.need} is no longer kept: {error}")
            raise

    def _versions(self, given: Any) -> bytes:
        """Those of a key up to then: the store itself tells of the newest that there are."""

        def newest(most: int) -> list[Item]:
            given.limit = most
            return _history.decode(self.stage.ask(self.need, "State.history", _encode(given)))

        kept = versions_upto(newest, given.limit, self.stage.revision)
        if kept is None:
            self.stage.script.hinder(f"{given.key!r} of {self.need} has more versions since than can be read")
        return _encode(kept or [])

    def _anew(self, label: str, payload: bytes) -> bytes:
        """An answer to what the store was not asked then. Nothing is written but in this process."""
        given = arguments_of(label, payload)
        if label in PAST:
            return self._over(label, payload, self._past(label, payload))
        match label.removeprefix("State."):
            case "read":
                looked = _encode(BY_LABEL["State.get"].arguments(given.key))
                return self._over("State.get", looked, self._past("State.get", looked))
            case "scan":
                return self._scanned(
                    _encode(BY_LABEL["State.range"].arguments(given.start, given.end, given.limit))
                )
            case "head":
                return _encode(self.stage.revision)
            case "commit" | "append":
                return self._committed(joined=bool(given.transaction))
            case "finish":
                return self._committed(joined=False)
            case "begin" if given.transaction:
                return _encode(given.transaction)
            case "begin" | "share":
                return _encode(self.stage.script.token(16))
            case "savepoint":
                self._made += 1
                return _encode(self._made)
            case "undo" | "join" | "retract" | "abort":
                return _encode(None)
        raise self._refused(label)

    def _scanned(self, ranged: bytes) -> bytes:
        """A range as a transaction sees it, with where to go on."""
        past = self._past("State.range", ranged)
        seen, told = _page.decode(past), _page.decode(self._over("State.range", ranged, past))
        rest = seen.items[-1].key + b"\0" if seen.more else b""
        return _encode(msgspec.structs.replace(told, rest=rest))

    def _committed(self, *, joined: bool) -> bytes:
        if joined:
            return _encode(Committed(0, 0))
        self._made += 1
        return _encode(Committed(self.stage.revision + self._made, int(self.stage.script.now() * 1e9)))

    def _refused(self, label: str) -> AtollError:
        self.stage.script.hinder(f"it calls {label}, which a replay does not play")
        return BadRequest(label, "a method that a replay plays", "another one")

    def _over(self, label: str, payload: bytes, reply: bytes) -> bytes:
        """What was there then, under what this call has written."""
        own = {key: value for (need, key), value in self.stage.effects.rows.items() if need == self.need}
        if not own:
            return reply
        given, revision = arguments_of(label, payload), self.stage.revision + 1
        if label == "State.get" and given.as_of is None and given.key in own:
            value = own[given.key]
            return _encode(None if value is None else Item(given.key, value, revision, 0))
        if label == "State.range" and given.as_of is None:
            page = _page.decode(reply)
            edge = page.items[-1].key if page.more and page.items else None
            kept = [item for item in page.items if item.key not in own]
            kept += [
                Item(key, value, revision, 0)
                for key, value in own.items()
                if value is not None and _within(key, given, edge)
            ]
            kept.sort(key=lambda item: item.key, reverse=given.reverse)
            return _encode(Page(kept, page.more, page.revision))
        return reply


def _within(key: bytes, given: Any, edge: bytes | None) -> bool:
    """Whether a key is in a range, and in this page of it, which ends at `edge`."""
    if key < given.start or (given.end and key >= given.end):
        return False
    return edge is None or (key >= edge if given.reverse else key <= edge)
