"""Interfaces: classes whose methods are typed descriptors.

    class Counter(Interface):
        errors = (Spent,)
        @call("write", once=True)
        def add(self, key: str, by: int = 1) -> int: ...

`Counter.add` is the method itself, with `Counter.add.serve` for a server's handler; `proxy.add` is the call.
A method is known on the wire by the hash of its name; two names with one hash are refused when the class is
made, as is every type that cannot travel. The bodies of methods never run.
"""

import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import (
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    get_type_hints,
    overload,
)

import msgspec

from .bound import Bound, bind, options_of, transport_of
from .codec import arguments_struct, traits_of_all
from .deferred import Deferred
from .errors import Failure
from .method import LANES, Kind, MethodSpec, Resume, Service
from .naming import number_of
from .proxy import BoundCall, bound_call
from .streaming import BoundStream, BoundUpload, bound_stream, bound_upload
from .transport import Options

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
H = TypeVar("H", bound=Callable[..., Any])

SERVED = "__atoll_serves__"
"""Attribute of a handler: the methods it serves."""


class Method:
    """A method of an interface. `spec` is what goes over the wire about it."""

    kind: ClassVar[Kind]

    def __init__(
        self,
        function: Callable[..., Any],
        right: str,
        *,
        idempotent: bool = False,
        once: bool = False,
        local: bool = False,
        service: Service = "normal",
        item: Any = None,
        position: Any = None,
    ) -> None:
        name = function.__qualname__
        if idempotent and once:
            raise TypeError(f"{name}: a method is idempotent, or once, or neither; not both")
        if service not in LANES:
            raise TypeError(
                f"{name}: there is no class of service {service!r}: use {', '.join(map(repr, LANES))}"
            )
        if not right:
            raise TypeError(f"{name}: a method names the right that it needs")
        self.function = function
        self.name = function.__name__
        self.right = right
        self.idempotent = idempotent
        self.once = once
        self.local = local
        self.service: Service = service
        self.item = item
        self.position = position
        self.owner: type[Interface] | None = None
        self._spec: MethodSpec | None = None
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: "type[Interface]", name: str) -> None:
        self.owner = owner

    @property
    def spec(self) -> MethodSpec:
        """The method as data. Resolved at the first use, so that an interface may name itself in its
        types."""
        if self._spec is None:
            self._spec = _specify(self)
        return self._spec

    def __repr__(self) -> str:
        return f"<{self.kind} {self.owner.__name__ if self.owner else '?'}.{self.name}>"

    def _mark(self, handler: H) -> H:
        if not callable(handler):
            raise TypeError(f"{self!r}.serve decorates a handler, not a {type(handler).__name__}")
        setattr(handler, SERVED, (*getattr(handler, SERVED, ()), self))
        return handler


class CallMethod(Method, Generic[P, R]):
    """A call: arguments, one reply."""

    kind = "call"

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: "Interface", owner: type[Any]) -> BoundCall[P, R]: ...
    def __get__(self, instance: "Interface | None", owner: type[Any]) -> Self | BoundCall[P, R]:
        if instance is None:
            return self
        bound: BoundCall[P, R] = bound_call(self.spec, instance)
        instance.__dict__[self.name] = bound
        return bound

    @overload
    def serve(
        self, handler: Callable[Concatenate[S, P], Deferred[R]]
    ) -> Callable[Concatenate[S, P], Deferred[R]]: ...
    @overload
    def serve(
        self, handler: Callable[Concatenate[S, P], Awaitable[R]]
    ) -> Callable[Concatenate[S, P], Awaitable[R]]: ...
    @overload
    def serve(self, handler: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]: ...
    def serve(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate the handler in a server class: it takes the method's arguments and returns R, an awaitable
        of R (`async def`), or a Deferred[R]."""
        return self._mark(handler)


class StreamMethod(Method, Generic[P, T]):
    """A stream from server to client."""

    kind = "stream"

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: "Interface", owner: type[Any]) -> BoundStream[P, T]: ...
    def __get__(self, instance: "Interface | None", owner: type[Any]) -> Self | BoundStream[P, T]:
        if instance is None:
            return self
        bound: BoundStream[P, T] = bound_stream(self.spec, instance)
        instance.__dict__[self.name] = bound
        return bound

    @overload
    def serve(
        self, handler: Callable[Concatenate[S, P], AsyncIterator[T]]
    ) -> Callable[Concatenate[S, P], AsyncIterator[T]]: ...
    @overload
    def serve(
        self, handler: Callable[Concatenate[S, P], Iterator[T]]
    ) -> Callable[Concatenate[S, P], Iterator[T]]: ...
    def serve(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate the handler in a server class: a generator, plain or async, of the items."""
        return self._mark(handler)


class UploadMethod(Method, Generic[P, T, R]):
    """A stream from client to server, then one reply."""

    kind = "upload"

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: "Interface", owner: type[Any]) -> BoundUpload[P, T, R]: ...
    def __get__(self, instance: "Interface | None", owner: type[Any]) -> Self | BoundUpload[P, T, R]:
        if instance is None:
            return self
        bound: BoundUpload[P, T, R] = bound_upload(self.spec, instance)
        instance.__dict__[self.name] = bound
        return bound

    def serve(
        self, handler: Callable[Concatenate[S, AsyncIterator[T], P], Awaitable[R]]
    ) -> Callable[Concatenate[S, AsyncIterator[T], P], Awaitable[R]]:
        """Decorate the handler in a server class: async, taking the items first and then the method's
        arguments."""
        return self._mark(handler)


def call(
    right: str,
    *,
    idempotent: bool = False,
    once: bool = False,
    service: Service = "normal",
    local: bool = False,
) -> Callable[[Callable[Concatenate[Any, P], R]], CallMethod[P, R]]:
    """A call that needs `right`. `idempotent`: may be sent again after a crash; `once`: is sent again and
    takes effect once (its transaction is keyed by the request id); neither: ends with `PeerDied`. `local`:
    never leaves the node."""

    def decorate(function: Callable[Concatenate[Any, P], R]) -> CallMethod[P, R]:
        return CallMethod(function, right, idempotent=idempotent, once=once, service=service, local=local)

    return decorate


def stream(
    right: str, *, position: type | None = None, service: Service = "normal"
) -> Callable[[Callable[Concatenate[Any, P], T]], StreamMethod[P, T]]:
    """A stream of what the signature returns. With `position` it can be resumed: the argument `after`, or
    else the first of that type, takes the position of the last item seen; an item's position is its field
    `position`, or else its first field of that type, or the item itself."""

    def decorate(function: Callable[Concatenate[Any, P], T]) -> StreamMethod[P, T]:
        return StreamMethod(function, right, service=service, position=position)

    return decorate


def upload(
    right: str, *, item: type[T], service: Service = "normal"
) -> Callable[[Callable[Concatenate[Any, P], R]], UploadMethod[P, T, R]]:
    """A stream of `item` from the client, then one reply of what the signature returns."""

    def decorate(function: Callable[Concatenate[Any, P], R]) -> UploadMethod[P, T, R]:
        return UploadMethod(function, right, service=service, item=item)

    return decorate


RESERVED = frozenset({"errors", "failures", "with_", "with_options"})


class Interface(Bound):
    """Base of interfaces. An instance is a proxy: see `atoll.ipc.bound.bind`."""

    errors: ClassVar[tuple[type[Failure], ...]] = ()
    """The failures that its methods may end with."""
    failures: ClassVar[Mapping[int, type[Failure]]] = {}
    """`errors` by number, with those of the interfaces it extends."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for failure in cls.__dict__.get("errors", ()):
            if not (isinstance(failure, type) and issubclass(failure, Failure)):
                raise TypeError(
                    f"{cls.__name__}.errors holds {failure!r}: an interface declares classes of Failure"
                )
        cls.failures = dict(cls.failures) | _by_number(cls.__name__, {f.__name__: f for f in cls.errors})
        for name in RESERVED & cls.__dict__.keys():
            if isinstance(cls.__dict__[name], Method):
                raise TypeError(f"{cls.__name__}.{name}: the name is the SDK's own: choose another")
        _by_number(cls.__name__, {method.name: method for method in methods(cls)})
        for method in methods(cls):
            try:
                _ = method.spec
            except NameError:
                continue  # names a type that is defined further down: resolved at the first use

    def __init__(self) -> None:
        raise TypeError(
            f"{type(self).__name__} is an interface: get a proxy from "
            f"node.open(name, {type(self).__name__}), from a need of your server, or from testing.node"
        )

    def with_(
        self, *, deadline: float | None = None, service: Literal["control", "normal", "bulk"] | None = None
    ) -> Self:
        """The same proxy with options on each call. `deadline`: seconds from the call; `service`: a class of
        service, of which the lesser of this and the capability's counts."""
        old = options_of(self)
        changed = {
            "deadline": old.deadline if deadline is None else deadline,
            "service": service or old.service,
        }
        return bind(type(self), transport_of(self), msgspec.structs.replace(old, **changed))

    def with_options(self, options: Options) -> Self:
        """The same proxy with all its options replaced."""
        return bind(type(self), transport_of(self), options)


def _by_number(owner: str, named: dict[str, T]) -> dict[int, T]:
    numbered: dict[int, str] = {}
    for name in named:
        other = numbered.setdefault(number_of(name), name)
        if other != name:
            raise TypeError(
                f"{owner}: the names {other!r} and {name!r} have the same number "
                f"{number_of(name):#010x}: rename one"
            )
    return {number: named[name] for number, name in numbered.items()}


def methods(interface: type[Interface]) -> list[Method]:
    """The methods of an interface in the order of their declaration, those it inherits first."""
    found: dict[str, Method] = {}
    for base in reversed(interface.__mro__):
        for name, value in base.__dict__.items():
            if isinstance(value, Method):
                found[name] = value
    return list(found.values())


def specs(interface: type[Interface]) -> list[MethodSpec]:
    """`methods` as data."""
    return [method.spec for method in methods(interface)]


def rights(interface: type[Interface]) -> tuple[str, ...]:
    """The rights that its methods name, in the order in which they first appear: bit 0 first."""
    return tuple(dict.fromkeys(method.right for method in methods(interface)))


def _specify(method: Method) -> MethodSpec:
    owner, function = method.owner, method.function
    if owner is None:
        raise TypeError(f"{method.name}: a method belongs to a class that derives from Interface")
    label = f"{owner.__name__}.{method.name}"
    module = vars(sys.modules[function.__module__]) if function.__module__ in sys.modules else {}
    hints = get_type_hints(
        function, {**module, **function.__globals__}, {owner.__name__: owner}, include_extras=True
    )
    if "return" not in hints:
        raise TypeError(f"{label}: give the method a result type (`-> None` if it has none)")
    answer = hints.pop("return")
    parameters = list(inspect.signature(function).parameters.values())[1:]
    arguments = arguments_struct(label, parameters, hints)
    streams = method.kind == "stream"
    result, item = (type(None), answer) if streams else (answer, method.item)
    return MethodSpec(
        interface=owner.__name__,
        name=method.name,
        number=number_of(method.name),
        right=method.right,
        kind=method.kind,
        idempotent=method.idempotent,
        once=method.once,
        local=method.local,
        service=method.service,
        lane=LANES[method.service],
        arguments=arguments,
        keywords=frozenset(
            parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
        ),
        result=result,
        item=item,
        position=method.position,
        resume=_resumption(label, arguments, item, method.position) if streams and method.position else None,
        failures=owner.failures,
        carries=_carries(label, *(hints[name] for name in arguments.__struct_fields__), result, item),
    )


def _carries(label: str, *kinds: Any) -> bool:
    try:
        return traits_of_all(kind for kind in kinds if kind is not None).carries
    except TypeError as fault:
        raise TypeError(f"{label}: {fault}") from None


def _resumption(label: str, arguments: type[msgspec.Struct], item: Any, position: Any) -> Resume:
    taken = [field.name for field in msgspec.structs.fields(arguments) if field.type == position]
    if not taken:
        raise TypeError(
            f"{label}: a stream with positions takes an argument of type {position!r} to go on after"
        )
    wanted = "after" if "after" in taken else taken[0]
    place = [field.name for field in msgspec.structs.fields(arguments)].index(wanted)
    if item == position:
        return Resume(place, "")
    is_struct = isinstance(item, type) and issubclass(item, msgspec.Struct)
    held = [f.name for f in msgspec.structs.fields(item) if f.type == position] if is_struct else []
    if not held:
        raise TypeError(f"{label}: an item carries its position in a field of type {position!r}")
    return Resume(place, "position" if "position" in held else held[0])
