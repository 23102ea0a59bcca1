"""Capabilities as values in messages.

A `Cap[I]` or a `Buffer` in an argument or a reply travels as a MessagePack extension that holds a token. What
a token means is the transport's: its `Translator` asks the kernel to transfer the capability (or to share the
memory) when the message is encoded, and finds what was delivered when it is decoded. A token that was not
delivered is `BadRequest`: numbers guessed by a peer name nothing.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar, get_args

from msgspec.msgpack import Ext

from .bound import Bound, bind, transport_of
from .buffer import Buffer
from .errors import BadRequest
from .transport import Translator, Transport

I = TypeVar("I", bound=Bound)  # noqa: E741

CAPABILITY_CODE = 1
BUFFER_CODE = 2
_TOKEN_BYTES = 8


class Cap(Generic[I]):
    """A capability as a value: pass it on, or `open` it to call its object."""

    __slots__ = ("interface", "transport")

    def __init__(self, interface: type[I], transport: Transport) -> None:
        self.interface = interface
        self.transport = transport

    @classmethod
    def of(cls, proxy: I) -> "Cap[I]":
        """The capability behind a proxy."""
        return cls(type(proxy), transport_of(proxy))

    def open(self) -> I:
        """A proxy that calls the object."""
        return bind(self.interface, self.transport)

    def __repr__(self) -> str:
        return f"<Cap[{self.interface.__name__}]>"


@lru_cache(maxsize=1024)
def _named(code: int, token: int) -> Ext:
    """The same buffers are named again and again."""
    return Ext(code, token.to_bytes(_TOKEN_BYTES, "big"))


def buffer_sender(translator: Translator) -> Callable[[Buffer], Ext]:
    """What stands for a buffer in messages through that transport; called while one is encoded."""
    send_buffer = translator.send_buffer
    return lambda buffer: _named(BUFFER_CODE, send_buffer(buffer))


def buffer_receiver(translator: Translator, where: str) -> Callable[[Any], Buffer]:
    """The buffer that an `Ext` of a message stands for; `where` names the method in faults."""
    receive_buffer = translator.receive_buffer

    from_bytes = int.from_bytes

    def receive(value: Any) -> Buffer:
        # As `_token` does, without the call: a hand-over is little more than this.
        data: Any = value.data if value.__class__ is Ext and value.code == BUFFER_CODE else b""
        if len(data) != _TOKEN_BYTES:
            raise _no_token(value, where, "a buffer")
        found = receive_buffer(from_bytes(data, "big"))
        if found is None:
            raise _no_such(where, "a buffer")
        return found

    return receive


def encode_hook(translator: Translator) -> Callable[[Any], Any]:
    """msgspec's `enc_hook` for messages through that transport."""
    buffer_sent = buffer_sender(translator)

    def encode(value: Any) -> Any:
        if isinstance(value, Buffer):
            return buffer_sent(value)
        if isinstance(value, Cap):
            return _named(CAPABILITY_CODE, translator.send_capability(value.interface, value.transport))
        raise TypeError(f"a {type(value).__name__} cannot be sent: send a Struct or a built-in type")

    return encode


def decode_hook(translator: Translator, where: str) -> Callable[[type, Any], Any]:
    """msgspec's `dec_hook` for messages through that transport; `where` names the method in faults."""
    buffer_received = buffer_receiver(translator, where)

    def decode(wanted: type, value: Any) -> Any:
        if wanted is Buffer:
            return buffer_received(value)
        interface = get_args(wanted)[0]
        token = _token(value, CAPABILITY_CODE, where, "a capability")
        transport = translator.receive_capability(interface, token)
        if transport is None:
            raise _no_such(where, "a capability")
        return Cap(interface, transport)

    return decode


def _token(value: Any, code: int, where: str, what: str) -> int:
    data: Any = value.data if value.__class__ is Ext and value.code == code else b""
    if len(data) != _TOKEN_BYTES:
        raise _no_token(value, where, what)
    return int.from_bytes(data, "big")


def _no_token(value: Any, where: str, what: str) -> BadRequest:
    return BadRequest(where, what, f"`{type(value).__name__}`")


def _no_such(where: str, what: str) -> BadRequest:
    return BadRequest(where, f"{what} that was granted to the receiver", "a token that names none")
