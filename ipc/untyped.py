"""Calls without an interface class: by method name, through the schema that the server itself gave.

For `atoll call` and for whoever explores a node. Arguments and replies are plain values, as JSON has them; bytes are
base64 in both directions, as msgspec's JSON has them. The server checks the arguments' types like anybody's.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import msgspec

from .errors import BadRequest, NotFound
from .method import LANES, MethodSpec
from .naming import nearest, number_of
from .schema import InterfaceShape, MethodShape
from .transport import DEFAULTS, Options, Transport

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class UntypedProxy:
    """A capability on a server whose interface is known only as a shape."""

    def __init__(self, shape: InterfaceShape, transport: Transport) -> None:
        self.shape = shape
        self._transport = transport

    def now(self, method: str, arguments: dict[str, Any] | list[Any], deadline: float | None = None) -> Any:
        """Call and block for the reply, for `deadline` seconds at most; of a stream, an iterator of its items.

        Raises `NotFound` for an unknown method, `BadRequest` for arguments that cannot be those of the method.
        """
        found = self.shape.methods.get(method)
        if found is None:
            raise NotFound.among(f"method of {self.shape.name} called", method, self.shape.methods)
        spec = self._spec(method, found)
        options = DEFAULTS if deadline is None else Options(deadline=deadline)
        payload = _encode(self._positional(spec.label, found, arguments))
        if found.kind == "stream":
            return self._items(spec, payload, options)
        if found.kind == "upload":
            raise BadRequest(spec.label, "a call or a stream", "an upload: use a typed proxy for it")
        return _plain(_decode(bytes(self._transport.call_now(spec, payload, options))))

    def _items(self, spec: MethodSpec, payload: bytes, options: Options) -> Iterator[Any]:
        stream = self._transport.open(spec, payload, options)
        try:
            while (received := stream.receive_now()) is not None:
                for item in received:
                    yield _plain(_decode(item))
        finally:
            stream.cancel()

    def _positional(self, label: str, method: MethodShape, given: dict[str, Any] | list[Any]) -> list[Any]:
        names = [field.name for field in method.arguments]
        if isinstance(given, list):
            given = (
                dict(zip(names, given, strict=False))
                if len(given) <= len(names)
                else _too_many(label, names, given)
            )
        unknown = sorted(given.keys() - set(names))
        if unknown:
            near = nearest(unknown[0], names)
            got = f"`{unknown[0]}`" + (f"; did you mean `{near}`?" if near else "")
            raise BadRequest(label, f"arguments named {', '.join(names) or '(none)'}", got)
        values: list[Any] = []
        for place, field in enumerate(method.arguments):
            if field.name in given:
                values.append(self._value(f"{label}({field.name})", field.type, given[field.name]))
            elif field.required:
                raise BadRequest(label, f"the argument `{field.name}` of type {field.type}", "none")
            else:
                later = [name for name in names[place:] if name in given]
                if later:
                    raise BadRequest(label, f"`{field.name}` to be given too, since `{later[0]}` is", "none")
                break
        return values

    def _value(self, where: str, kind: str, value: Any) -> Any:
        """A JSON value as the wire has it: bytes out of base64, array-like Structs out of objects."""
        if kind == "bytes" and isinstance(value, str):
            try:
                return base64.b64decode(value, validate=True)
            except binascii.Error as fault:
                raise BadRequest(where, "bytes as base64", f"`{value}` ({fault})") from None
        if kind.startswith("list[") and isinstance(value, list):
            return [self._value(f"{where}[{place}]", kind[5:-1], item) for place, item in enumerate(value)]
        shape = self.shape.types.get(kind)
        if shape is None or not isinstance(value, dict):
            return value
        parts = {
            f.name: self._value(f"{where}.{f.name}", f.type, value[f.name])
            for f in shape.fields
            if f.name in value
        }
        if shape.kind != "array":
            return {**value, **parts}
        names = [field.name for field in shape.fields]
        missing, last = [name for name in names if name not in parts], next(reversed(parts), "")
        if missing and last and names.index(missing[0]) < names.index(last):  # it would be taken for that
            raise BadRequest(where, f"`{missing[0]}` to be given too, since `{last}` is", "none")
        return list(parts.values())

    def _spec(self, name: str, shape: MethodShape) -> MethodSpec:
        return MethodSpec(
            interface=self.shape.name,
            name=name,
            number=number_of(name),
            right=shape.right,
            kind=shape.kind,  # type: ignore[arg-type]
            idempotent=shape.idempotent,
            once=shape.once,
            local=False,
            service="normal",
            lane=LANES["normal"],
            arguments=msgspec.Struct,
            keywords=frozenset(),
            result=Any,
            item=Any,
            position=None,
            resume=None,
            failures={},
            carries=False,
        )


def _too_many(label: str, names: list[str], given: list[Any]) -> dict[str, Any]:
    raise BadRequest(label, f"{len(names)} arguments at most", f"{len(given)}")


def _plain(value: Any) -> Any:
    """What JSON can show of a reply: capabilities and buffers are told as such."""
    if isinstance(value, msgspec.msgpack.Ext):
        return "<capability>" if value.code == 1 else "<buffer>"
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
