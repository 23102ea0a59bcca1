"""What a call did then and what it does now, side by side, as the types of its interface and of its rows."""

from collections.abc import Mapping
from typing import Any

import msgspec

from atoll.ipc import codec, errors
from atoll.ipc.errors import AtollError
from atoll.ipc.local_view import RESERVED, decode_key
from atoll.ipc.method import MethodSpec
from atoll.ipc.system.calls import Asked, Recorded

from .effects import BY_LABEL, Effects, arguments_of
from .messages import Change, Played, Question
from .needs import Passing, Stage

Outcome = bytes | AtollError
"""A reply as it travels, or a fault."""


def plain(value: Any) -> Any:
    """A value as dicts and lists, names of fields kept."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bytes | str | int | float | bool | None):
        return value
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def compared(
    spec: MethodSpec, call: Recorded, outcome: Outcome, stage: Stage, types: Mapping[str, Any], leaned: list[str],
    log: list[tuple[str, str]],
) -> Played:  # fmt: skip
    """The report of a call that was run again. `types`: of rows, by need."""
    then = _then(spec, call)
    now: Any = str(outcome) if isinstance(outcome, AtollError) else _reply(spec, outcome, stage)
    changes = _changes(stage, types)
    return Played(
        then=str(then) if isinstance(then, AtollError) else plain(then),
        now=plain(now),
        then_failed=isinstance(then, AtollError), now_failed=isinstance(outcome, AtollError),
        answered=call.reply is not None,
        same_answer=call.reply is not None and _same(spec, call, then, outcome, now),
        changes=changes, questions=_questions(stage),
        leaned=leaned, moved=stage.moved, hindrances=stage.script.hindrances, log=log,
    )  # fmt: skip


def _then(spec: MethodSpec, call: Recorded) -> Any:
    if call.reply is None:
        return None
    if call.failed:
        return errors.decode(call.reply, spec)
    return _decoded(codec.decoder(spec, "result", None), call.reply)


def _reply(spec: MethodSpec, reply: bytes, stage: Stage) -> Any:
    return _decoded(codec.decoder(spec, "result", Passing(stage)), reply)


def _decoded(decode: Any, packed: bytes) -> Any:
    """A changed version may not know a type as it was: then without one."""
    try:
        return decode(packed)
    except (msgspec.DecodeError, AtollError):
        return msgspec.msgpack.decode(packed)


def _same(spec: MethodSpec, call: Recorded, then: Any, outcome: Outcome, now: Any) -> bool:
    if isinstance(then, AtollError) and isinstance(outcome, AtollError):
        return errors.encode(then) == errors.encode(outcome)
    if isinstance(then, AtollError) or isinstance(outcome, AtollError):
        return False
    return bool(call.reply == outcome or then == now)


def _changes(stage: Stage, types: Mapping[str, Any]) -> list[Change]:
    then = Effects()
    for asked in stage.script.asked:
        if asked.method in BY_LABEL:
            reply = b"" if asked.kind == "cast" else asked.reply
            then.happened(asked.need, asked.method, asked.arguments, reply)
    before, after = then.rows, stage.effects.rows
    return [
        Change(
            need=need, key=decode_key(key),
            then=_value(types, need, key, before.get((need, key))), now=_value(types, need, key, after.get((need, key))),
            deleted_then=(need, key) in before and before[need, key] is None,
            deleted_now=(need, key) in after and after[need, key] is None,
            same=((need, key) in before) == ((need, key) in after) and before.get((need, key)) == after.get((need, key)),
        )
        for need, key in {**before, **after}
    ]  # fmt: skip


def _value(types: Mapping[str, Any], need: str, key: bytes, packed: bytes | None) -> Any:
    if packed is None:
        return None
    kind = types.get(need, Any) if key < RESERVED else Any
    try:
        return plain(msgspec.msgpack.decode(packed, type=kind))
    except msgspec.DecodeError:
        return packed


def _questions(stage: Stage) -> list[Question]:
    """Of other servers, not of the store: what is written there is compared by itself, and what is read there is no
    difference that anybody sees."""
    pairs = [(asked, True) for asked in stage.script.left()] + [
        (asked, False) for asked in stage.script.unasked
    ]
    return [
        Question(need=asked.need, method=asked.method, arguments=_arguments(asked), then=then)
        for asked, then in pairs
        if asked.method not in BY_LABEL
    ]


def _arguments(asked: Asked) -> Any:
    if asked.method in BY_LABEL:
        return plain(arguments_of(asked.method, asked.arguments))
    return msgspec.msgpack.decode(asked.arguments)
