"""The process of a replay, from its first line to its last: the server's class, bound to needs that are played.

It was given one socket, to the program that asked, and confined like a server that nobody trusts. What its handlers write
stays in its memory; what they read the program reads for it, as of then.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import trio

from atoll.ipc import chance, context, errors
from atoll.ipc.bound import bind as proxy_of
from atoll.ipc.context import Call, Fields, in_hand, trace_of
from atoll.ipc.deferred import Deferred
from atoll.ipc.dispatch import as_reply
from atoll.ipc.errors import AtollError, NodeDown, NotFound
from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.method import Service
from atoll.ipc.runtime import log_lines
from atoll.ipc.runtime.describe import find_server
from atoll.ipc.serve import Endpoint, Entry, Need, Serves, bind, needs, read_config
from atoll.ipc.system.calls import Recorded
from atoll.ipc.system.state import Item, State

from .comparison import Outcome, compared
from .jumping import JumpingClock
from .messages import Answer, Ask, Case, Played, framed, received, to_process
from .needs import Passing, PlayedServer, PlayedStore, Stage
from .script import PlayedClock, Script

PATIENCE = 10.0
"""Seconds of the replay's own clock, which jumps over what is slept, for a handler to come to its end."""
_SERVICES: dict[int, Service] = {0: "control", 1: "normal", 2: "bulk"}
_ID = 16
_item = msgspec.msgpack.Decoder(Item | None)
_encode = msgspec.msgpack.Encoder().encode


class Replay:
    """One case, in this process."""

    def __init__(self, end: socket.socket, folder: str, package: str) -> None:
        self._end = end
        self._folder = folder
        self._package = package
        self._file = end.makefile("rb")
        self.stage = Stage(self._ask)
        self.log: list[tuple[str, str]] = []
        self.case = self._case()
        self._types: dict[str, Any] = {}
        self._leaned: set[str] | None = None

    # the other end ----------------------------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        packed = received(self._file.read)
        if not packed:
            raise NodeDown()
        return packed

    def _case(self) -> Case:
        message = to_process.decode(self._receive())
        assert isinstance(message, Case)
        return message

    def _ask(self, need: str, method: str, arguments: bytes) -> bytes:
        self._end.sendall(framed(Ask(need=need, method=method, arguments=arguments)))
        answer = to_process.decode(self._receive())
        assert isinstance(answer, Answer)
        if answer.fault is not None:
            raise errors.decode(answer.fault, State.get.spec)
        return answer.reply or b""

    # the server -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        chance.follow(self.stage.token)
        context.set_log_sink(lambda level, text, fields: self.log.append((level, _line(text, fields))))
        case, opening = self.case, self.case.opening
        self.stage.begin(Script(case.start), case.revisions[-1])
        sys.path.insert(0, self._folder)
        server = find_server(self._folder, self._package)
        log_lines.listen_to_structlog()
        endpoint = bind(server, self._given(server), Passing(self.stage), opening.version)
        if opening.took_over is not None:
            endpoint.server.take_over(opening.took_over)
        await endpoint.server.start()
        self._watch(endpoint.server)
        for place, call in enumerate(case.before):
            await self._perform(endpoint, call, case.revisions[place])
        self.log.clear()
        played = await self._play(endpoint, case.call)
        self._end.sendall(framed(played))

    def _given(self, server: type[Serves[Any]]) -> dict[str, Any]:
        given, opening = {}, self.case.opening
        for need in needs(server):
            bound = opening.needs.get(need.name)
            if bound is not None and bound.kind == need.kind:
                given[need.name] = self._need(need, bound.config)
            elif not need.optional and need.kind != "config":
                raise NotFound("recorded binding of the need", need.name)
        return given

    def _need(self, need: Need, config: bytes) -> Any:
        match need.kind:
            case "keyspace":
                self._types[need.name] = need.type
                state = proxy_of(State, PlayedStore(self.stage, need.name))
                return Keyspace(state, need.type, boot=self.case.opening.boot)
            case "server":
                return proxy_of(need.type, PlayedServer(self.stage, need.name))
            case "config":
                return read_config(need, config, f"server {self.case.opening.server!r}")
            case "folder":
                return Path(tempfile.mkdtemp())
            case "socket":
                return socket.socketpair()[0]

    def _watch(self, server: Serves[Any]) -> None:
        """From now on it is noted which attributes its handlers read that nobody gave it but itself."""
        given = {need.name for need in needs(type(server))}
        kind = type(server)

        def read(instance: Any, name: str) -> Any:
            value = object.__getattribute__(instance, name)
            own = name not in given and name in object.__getattribute__(instance, "__dict__")
            if self._leaned is not None and own and not name.startswith("__"):
                self._leaned.add(name)
            return value

        server.__class__ = type(
            kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__}
        )

    # a call -----------------------------------------------------------------------------------------------------------

    async def _play(self, endpoint: Endpoint, call: Recorded) -> Played:
        entry = endpoint.by_number.get(call.method)
        if entry is None:
            raise NotFound("method in this version with the number", f"{call.method:#010x}")
        leaned = self._leaned = set()
        try:
            if self.case.debug:
                from .debugger import stopping_at  # it is large, and few want it

                with stopping_at(_handler(endpoint, entry)):
                    outcome = await self._perform(endpoint, call, self.case.revisions[-1])
            else:
                outcome = await self._perform(endpoint, call, self.case.revisions[-1])
        finally:
            self._leaned = None
        return compared(entry.spec, call, outcome, self.stage, self._types, sorted(leaned), self.log[-100:])

    async def _perform(self, endpoint: Endpoint, call: Recorded, revision: int) -> Outcome:
        """Run it; what it is answered."""
        self.stage.begin(Script.of(call), revision)
        await self._view(endpoint, call, revision)
        entry = endpoint.by_number[call.method]
        arguments = memoryview(call.arguments or b"")
        hand = Call(self._fields(entry, call), PlayedClock(self.stage.script))
        with in_hand(hand):
            try:
                with trio.fail_after(PATIENCE):
                    return await _settled(entry.run(arguments))
            except trio.TooSlowError:
                self.stage.script.hinder("it waits for something that no recording has")
                return errors.Aborted(entry.spec.label, "it did not end in its replay")
            except AtollError as error:
                return error
            except Exception as error:
                return as_reply(entry.spec, error)

    def _fields(self, entry: Entry, call: Recorded) -> Fields:
        rights = self.case.opening.rights[call.interface]
        transaction, key = call.context[:_ID], call.context[_ID : 2 * _ID]
        return Fields(
            method=entry.spec.label,
            badge=call.badge,
            rights=frozenset(name for bit, name in enumerate(rights) if call.rights >> bit & 1),
            service=_SERVICES[call.lane],
            deadline=call.deadline / 1e9 if call.deadline else None,
            trace=call.trace or trace_of(call.channel, call.request),
            transaction=transaction if any(transaction) else None,
            key=key if any(key) else None,
            client=call.channel,
            request=call.request,
        )

    async def _view(self, endpoint: Endpoint, call: Recorded, revision: int) -> None:
        """Have every local view as the call had it."""
        stage = self.stage
        stage.silent = True
        try:
            for need, came in call.views.items():
                rows = getattr(endpoint.server, need, None)
                if not isinstance(rows, Keyspace):
                    continue
                stage.revision = came
                rows.forget()
                await rows.load()
                for own in call.ahead:
                    if own.need == need:
                        rows.apply(self._ahead(need, own.key, own.revision))
        finally:
            stage.silent, stage.revision = False, revision

    def _ahead(self, need: str, key: str, revision: int) -> Item:
        raw = key.encode("utf-8", "surrogateescape")
        item = _item.decode(self.stage.ask(need, "State.get", _encode((raw, revision))))
        return item if item is not None else Item(raw, None, revision, 0)


def _handler(endpoint: Endpoint, entry: Entry) -> Any:
    """The method of the server's that serves an entry."""
    server = endpoint.server
    return next(
        getattr(server, attribute)
        for method, attribute in server.handlers.items()
        if method.spec.number == entry.spec.number
    )


async def _settled(result: Any) -> bytes:
    if isinstance(result, bytes):
        return result
    if isinstance(result, Deferred):
        reply: bytes = await settled(result)
        return reply
    awaited: bytes = await result
    return awaited


def _line(text: str, fields: dict[str, str]) -> str:
    return " ".join([text, *(f"{name}={value}" for name, value in fields.items())])


def main(descriptor: int, folder: str, package: str) -> None:
    """Replay what the other end of the socket says, with the package that is in the folder."""
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 (it lasts as long as we)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ["TERM"] = "dumb"
    log_lines.listen()
    with socket.socket(fileno=descriptor) as end:
        replay = Replay(end, folder, package)
        try:
            trio.run(replay.run, clock=JumpingClock())
        except BaseException as error:
            _failed(end, error, replay.stage.script.hindrances)


def _failed(end: socket.socket, error: BaseException, hindrances: list[str]) -> None:
    """What keeps the server from being played at all: what its script met, which says more, or the error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, SystemExit):
        raise error
    sentence = str(error) if isinstance(error, AtollError) else f"{type(error).__name__}: {error}"
    end.sendall(framed(Played(hindrances=hindrances or [sentence])))
