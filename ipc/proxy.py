"""The typed client face of an interface.

A proxy is an instance of its interface whose methods are bound objects: `await p.add("x")`, `p.add.now("x")`,
`p.add.start("x")`, `p.add.cast("x")`. The functions behind them are generated once a method with the
signature of the interface (so that a wrong call is a TypeError in the caller's own line) and close over
everything they need: between the caller and the transport lie one Python frame, one Struct and one encode.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec

from . import codec
from .bound import Bound, bind, options_of, statistics, transport_of
from .errors import AtollError, DecodeFaults, PeerMisbehaved
from .future import Future
from .generated import generate
from .method import MethodSpec
from .transport import DEFAULTS, ChannelStatistics, Options, Transport

__all__ = [
    "DEFAULTS",
    "BoundCall",
    "ChannelStatistics",
    "Options",
    "Transport",
    "bind",
    "options_of",
    "statistics",
    "transport_of",
]

P = ParamSpec("P")
R = TypeVar("R")


def bad_reply(spec: MethodSpec, fault: Exception) -> AtollError:
    """What a reply becomes that is not of the type the interface promises."""
    return PeerMisbehaved(f"the reply of {spec.label}", str(fault))


class BoundCall(Generic[P, R]):
    """A method of a proxy. Its generated subclass overrides all four ways to call."""

    __slots__ = ("cast", "now", "spec", "start", "wait")

    def __init__(
        self,
        spec: MethodSpec,
        now: Callable[P, R],
        wait: Callable[P, Coroutine[Any, Any, R]],
        start: Callable[P, Future[R]],
        cast: Callable[P, None],
    ) -> None:
        self.spec = spec
        self.now = now
        """Blocks the thread until the reply is there."""
        self.wait = wait
        self.start = start
        """Sends, and returns at once: many calls may be outstanding."""
        self.cast = cast
        """Sends and forgets: at most once, no reply, no error."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Await the reply, in trio or asyncio."""
        return self.wait(*args, **kwargs)


class Signature:
    """A method's parameters as source text: for the generated functions that share them."""

    def __init__(self, spec: MethodSpec) -> None:
        positional: list[str] = []
        keyword: list[str] = []
        self.defaults: dict[str, Any] = {}
        fields = msgspec.structs.fields(spec.arguments)
        for field in fields:
            text = field.name
            if not field.required:
                holder = f"_default_{field.name}"
                text = f"{field.name}={holder}"
                self.defaults[holder] = (
                    field.default_factory() if field.default is msgspec.NODEFAULT else field.default
                )
            (keyword if field.name in spec.keywords else positional).append(text)
        names = [field.name for field in fields]
        self.parameters = ", ".join(positional + (["*", *keyword] if keyword else []))
        self.values = ", ".join(names)
        self.passed = ", ".join(f"{name}={name}" if name in spec.keywords else name for name in names)
        self.packed = f"_encode(_Arguments({self.values}))" if names else "_nothing"


_CALL = """
class Bound(_BoundCall):
    __slots__ = ()

    def __call__(self, {parameters}):
        return self.wait({passed})

def make(_spec, _transport, _options, _encode, _decode):
    _call_now, _call, _start, _cast = _transport.call_now, _transport.call, _transport.start, _transport.cast

    def now({parameters}):
        try:
            return _decode(_call_now(_spec, {packed}, _options))
        except _faults as fault:
            raise _bad_reply(_spec, fault) from None

    async def wait({parameters}):
        try:
            return _decode(await _call(_spec, {packed}, _options))
        except _faults as fault:
            raise _bad_reply(_spec, fault) from None

    def decode_reply(data):
        try:
            return _decode(data)
        except _faults as fault:
            raise _bad_reply(_spec, fault) from None

    def start({parameters}):
        return _Future(_start(_spec, {packed}, _options), decode_reply)

    def cast({parameters}):
        _cast(_spec, {packed}, _options)

    return Bound(_spec, now, wait, start, cast)
"""

_factories: dict[MethodSpec, Callable[..., Any]] = {}


def _factory(spec: MethodSpec) -> Callable[..., Any]:
    made = _factories.get(spec)
    if made is None:
        signature = Signature(spec)
        source = _CALL.format(
            parameters=signature.parameters, passed=signature.passed, packed=signature.packed
        )
        namespace: dict[str, Any] = {
            "_Arguments": spec.arguments,
            "_BoundCall": BoundCall,
            "_Future": Future,
            "_bad_reply": bad_reply,
            "_faults": DecodeFaults,
            "_nothing": b"\x90",
            **signature.defaults,
        }
        made = _factories[spec] = generate(f"client of {spec.label}", source, namespace)["make"]
    return made


def bound_call(spec: MethodSpec, proxy: Bound) -> BoundCall[Any, Any]:
    """The bound object of a call on a proxy."""
    transport = transport_of(proxy)
    translator = transport.translator
    bound: BoundCall[Any, Any] = _factory(spec)(
        spec,
        transport,
        options_of(proxy),
        codec.encoder(spec, translator),
        codec.decoder(spec, "result", translator),
    )
    return bound
