"""Capabilities and granted buffers as values in messages.

A `Cap[I]` or a `Buffer` in an argument or a reply travels as a MessagePack extension that holds a token. What
a token means is the transport's: its `Translator` asks the kernel to transfer the capability (or to share the
memory) when the message is encoded, and finds what was delivered when it is decoded. A token that was not
delivered is `BadRequest`: numbers guessed by a peer name nothing.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, get_args

from msgspec.msgpack import Ext

from .errors import BadRequest

if TYPE_CHECKING:
    from .interface import Interface
    from .proxy import Transport

I = TypeVar("I", bound="Interface")  # noqa: E741

CAPABILITY_CODE = 1
BUFFER_CODE = 2
_TOKEN_BYTES = 8


class Cap(Generic[I]):
    """A capability as a value: pass it on, or `open` it to call its object."""

    __slots__ = ("interface", "transport")

    def __init__(self, interface: "type[I]", transport: "Transport") -> None:
        self.interface = interface
        self.transport = transport

    @classmethod
    def of(cls, proxy: I) -> "Cap[I]":
        """The capability behind a proxy."""
        from .proxy import transport_of

        return cls(type(proxy), transport_of(proxy))

    def open(self) -> I:
        """A proxy that calls the object."""
        from .proxy import bind

        return bind(self.interface, self.transport)

    def __repr__(self) -> str:
        return f"<Cap[{self.interface.__name__}]>"


Mode = Literal["writable", "readonly", "immutable"]


class Buffer:
    """Granted memory, shared without a copy. `mode` is what its seals allow the holder of this grant; `passed` is how a
    message of its owner passes it on, the same unless it says otherwise.

    `view` is the memory itself, for numpy and the like to work on in place. Unless it is immutable others may write it
    meanwhile, and after its owner has revoked it, it reads zeros.
    """

    __slots__ = ("handle", "mode", "passed", "view")

    def __init__(
        self, view: memoryview, mode: Mode = "writable", handle: int = 0, passed: Mode | None = None
    ) -> None:
        self.view = view if mode == "writable" else view.toreadonly()
        self.mode = mode
        self.handle = handle
        """The transport's number of it."""
        self.passed = passed or mode

    def __len__(self) -> int:
        return self.view.nbytes

    def __repr__(self) -> str:
        return f"<Buffer of {self.view.nbytes} bytes, {self.mode}>"


class Translator(Protocol):
    """What a transport does for messages that carry capabilities or buffers; called while one is encoded or
    decoded."""

    def send_capability(self, capability: Cap[Any]) -> int:
        """Have it transferred to the peer; the token is what the peer was or will be told."""
        ...

    def receive_capability(self, interface: "type[Interface]", token: int) -> Cap[Any] | None:
        """What was delivered under the token; None if nothing was."""
        ...

    def send_buffer(self, buffer: Buffer) -> int:
        """Have it shared with the peer."""
        ...

    def receive_buffer(self, token: int) -> Buffer | None:
        """What was shared under the token; None if nothing was."""
        ...


@lru_cache(maxsize=1024)
def _named(code: int, token: int) -> Ext:
    """The same buffers are named again and again."""
    return Ext(code, token.to_bytes(_TOKEN_BYTES, "big"))


def encode_hook(translator: Translator) -> Callable[[Any], Any]:
    """msgspec's `enc_hook` for messages through that transport."""
    send_buffer = translator.send_buffer

    def encode(value: Any) -> Any:
        if isinstance(value, Buffer):
            return _named(BUFFER_CODE, send_buffer(value))
        if isinstance(value, Cap):
            return _named(CAPABILITY_CODE, translator.send_capability(value))
        raise TypeError(f"a {type(value).__name__} cannot be sent: send a Struct or a built-in type")

    return encode


def decode_hook(translator: Translator, where: str) -> Callable[[type, Any], Any]:
    """msgspec's `dec_hook` for messages through that transport; `where` names the method in faults."""
    receive_buffer, receive_capability = translator.receive_buffer, translator.receive_capability

    def decode(wanted: type, value: Any) -> Any:
        is_buffer = wanted is Buffer
        code, what = (BUFFER_CODE, "a buffer") if is_buffer else (CAPABILITY_CODE, "a capability")
        data: Any = value.data if value.__class__ is Ext and value.code == code else b""
        if len(data) != _TOKEN_BYTES:
            raise BadRequest(where, what, f"`{type(value).__name__}`")
        token = int.from_bytes(data, "big")
        found = receive_buffer(token) if is_buffer else receive_capability(get_args(wanted)[0], token)
        if found is None:
            raise BadRequest(where, f"{what} that was granted to the receiver", "a token that names none")
        return found

    return decode


class NoCapabilities:
    """The translator of a transport that carries neither capabilities nor buffers."""

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self) -> Any:
        raise BadRequest("a capability or buffer in a message", "a transport that carries it", self._why)

    def send_capability(self, capability: Cap[Any]) -> int:
        return int(self._refuse())

    def receive_capability(self, interface: "type[Interface]", token: int) -> Cap[Any] | None:
        return None

    def send_buffer(self, buffer: Buffer) -> int:
        return int(self._refuse())

    def receive_buffer(self, token: int) -> Buffer | None:
        return None
