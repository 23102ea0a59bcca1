"""Servers: a class that serves interfaces, its typed needs, and the dispatch table of an instance.

    class Server(Serves[Counter]):
        rows: Keyspace[int]
        config: Settings
        @Counter.get.serve
        def get(self, key: str) -> int: ...

A class that lacks a handler, or has one for a method of an interface it does not serve, is refused when it is
made. `bind` gives an instance its needs and returns the `Endpoint` that a receive loop, or the in-process
transport, dispatches to.
"""

import math
import socket
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeVarTuple,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Struct

from .dispatch import Run, build_run
from .durable.method import DurableMethod
from .durable.queues import Queue
from .durable.workflows import Workflows
from .errors import BadRequest
from .interface import SERVED, Interface, Method, methods
from .keyspace import Keyspace
from .method import MethodSpec
from .private.keyspace import Private
from .private.ring import Ring
from .published import Published
from .transport import Translator

Ts = TypeVarTuple("Ts")


if TYPE_CHECKING:

    @dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
    class Config:
        """Base of a server's configuration, a Struct: the image's table for it is checked against its fields.

        Every subclass is frozen, takes keywords only and refuses unknown keys, without saying so."""

        def __init_subclass__(cls, *, frozen: bool = True, kw_only: bool = True) -> None: ...

else:

    class _ConfigMeta(msgspec.StructMeta):
        """Gives each Config the options that a Struct does not inherit. The checkers are told by the other
        branch: they do not look at a metaclass's own defaults."""

        def __new__(cls, name, bases, namespace, **options):
            fixed = {"frozen": True, "kw_only": True, "forbid_unknown_fields": True}
            return super().__new__(cls, name, bases, namespace, **options | fixed)

    class Config(Struct, metaclass=_ConfigMeta):
        """See the other branch."""


NeedKind = Literal["keyspace", "config", "server", "socket", "folder"]


class Need(Struct, frozen=True, kw_only=True):
    """Something that a server must be given, declared as an annotation of its class."""

    name: str
    kind: NeedKind
    type: Any
    """The Config class, the Interface class, or the type of a keyspace's values."""
    optional: bool = False
    private: bool = False
    """Of a keyspace: its values are sealed."""


class Serves(Generic[*Ts]):
    """Base of server classes; its parameters are the interfaces. The methods here may be overridden."""

    interfaces: ClassVar[tuple[type[Interface], ...]] = ()
    handlers: ClassVar[Mapping[Method, str]] = {}
    """The attribute that handles each method."""
    heavy: ClassVar[bool] = False
    """It imports what must not be forked with others (torch, tensorflow, jax: threads, a device's context): its process
    always starts by `exec`, whatever the image says."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in cls.__dict__.get("__orig_bases__", ()):
            if isinstance(get_origin(base), type) and issubclass(get_origin(base), Serves):
                cls.interfaces = tuple(kind for kind in get_args(base) if isinstance(kind, type))
        for interface in cls.interfaces:
            if not issubclass(interface, Interface):
                raise TypeError(f"{cls.__name__}: Serves[...] takes interfaces, not {interface.__name__}")
        found = dict(cls.handlers)
        for attribute, value in cls.__dict__.items():
            found |= dict.fromkeys(getattr(value, SERVED, ()), attribute)
        cls.handlers = found
        _check_complete(cls)

    queues: ClassVar[Mapping[str, Queue]] = {}
    """Of its durable methods, by name."""
    workflows_kept: ClassVar[float] = math.inf
    """Seconds for which a workflow that has ended is kept, with its steps: for so long its result can be had, and its id not
    be given to another one."""
    publishes: ClassVar[Mapping[str, Published]] = {}
    """Which of its rows a person may ask for by SQL, by the name of the table."""

    async def start(self) -> None:
        """Before the first call."""

    async def run(self) -> None:
        """Background work; cancelled at stop."""

    async def stop(self) -> None:
        """After the last call."""

    def hand_over(self) -> bytes:
        """At a swap: what the next version needs that is not in the store."""
        return b""

    def take_over(self, state: bytes) -> None:
        """Before `start` of the next version: what `hand_over` gave."""

    def may_go_on(self, method: str, version: str) -> bool:
        """Whether a workflow of this durable method (`Interface.method`), which that other version of the package has
        begun, goes on here. It must ask for the same steps as far as they have been recorded."""
        return False


def _check_complete(server: type[Any]) -> None:
    served = {method: interface for interface in server.interfaces for method in methods(interface)}
    missing = [
        f"{interface.__name__}.{method.name}"
        for method, interface in served.items()
        if method not in server.handlers
    ]
    if missing:
        raise TypeError(
            f"{server.__name__} has no handler for {', '.join(missing)}: "
            f"decorate one with @{missing[0]}.serve"
        )
    foreign = [repr(method) for method in server.handlers if method not in served]
    if foreign:
        raise TypeError(
            f"{server.__name__} handles {foreign[0]} of an interface that is not in its Serves[...]"
        )
    by_number: dict[int, str] = {}
    for method in served:
        other = by_number.setdefault(method.spec.number, repr(method))
        if other != repr(method):
            raise TypeError(f"{server.__name__}: {other} and {method!r} have the same number: rename one")


class Entry:
    """One method of an endpoint."""

    __slots__ = ("interface", "run", "spec")

    def __init__(self, spec: MethodSpec, interface: type[Interface], run: Run) -> None:
        self.spec = spec
        self.interface = interface
        self.run = run
        """See `atoll.ipc.dispatch`."""


class Endpoint:
    """One server instance with its needs; `table` is in the order of the interfaces and their methods."""

    def __init__(self, server: Serves[Any], translator: Translator | None, version: str = "") -> None:
        """`version`: of the server's package, as its workflows remember it."""
        self.server = server
        self.interfaces = list(server.interfaces)
        self.workflows = _workflows(server, version)
        self.table = [
            Entry(
                method.spec,
                interface,
                build_run(method.spec, self._handler(method), translator),
            )
            for interface in server.interfaces
            for method in methods(interface)
        ]
        self.by_number = {entry.spec.number: entry for entry in self.table}
        self.rings: list[Ring] = [bound.ring for bound in vars(server).values() if isinstance(bound, Private)]
        """Whose `run` whoever runs the server has to start before its `start()`."""

    def _handler(self, method: Method) -> Any:
        handler = getattr(self.server, self.server.handlers[method])
        return handler if self.workflows is None else self.workflows.served(method, handler)

    @property
    def runs(self) -> bool:
        """Whether the server has background work."""
        return type(self.server).run is not Serves.run

    @property
    def accepts_handover(self) -> bool:
        return type(self.server).take_over is not Serves.take_over


def _workflows(server: Serves[Any], version: str) -> Workflows | None:
    """Those of a server with durable methods. They lie in its first keyspace."""
    durable = {
        method: getattr(server, attribute)
        for method, attribute in server.handlers.items()
        if isinstance(method, DurableMethod)
    }
    if not durable:
        return None
    check_private(type(server))
    bound = (getattr(server, need.name, None) for need in needs(type(server)) if need.kind == "keyspace")
    rows = next((each for each in bound if isinstance(each, Keyspace)), None)
    if rows is None:
        raise TypeError(
            f"{type(server).__name__} has durable methods and no keyspace to keep their workflows in: "
            "give it one (`rows: Keyspace[...]`)"
        )
    return Workflows(
        rows.state, durable, server.queues, boot=rows.boot, version=version, may_go_on=server.may_go_on,
        kept=server.workflows_kept,
    )  # fmt: skip


def check_private(server: type[Serves[Any]]) -> None:
    """Raises TypeError for a server that would keep in the clear what it is told in private."""
    private = next((need.name for need in needs(server) if need.private), None)
    if private is not None and any(isinstance(method, DurableMethod) for method in server.handlers):
        raise TypeError(
            f"{server.__name__} has durable methods, whose arguments and results are rows in the clear, "
            f"and the private keyspace {private!r}: put one of them into another server"
        )


def needs(server: type[Serves[Any]]) -> list[Need]:
    """What the class must be given, in the order of declaration."""
    hints = get_type_hints(server, include_extras=True)
    return [
        need
        for name, hint in hints.items()
        if not name.startswith("_") and not hasattr(server, name) and (need := _need(name, hint)) is not None
    ]


def _need(name: str, hint: Any) -> Need | None:
    optional = False
    if get_origin(hint) in (Union, UnionType):
        rest = [member for member in get_args(hint) if member is not NoneType]
        optional = len(rest) < len(get_args(hint))
        if len(rest) != 1:
            return None
        hint = rest[0]
    origin = get_origin(hint) or hint
    if getattr(origin, "__atoll_need__", None) == "keyspace":
        return Need(
            name=name,
            kind="keyspace",
            type=(get_args(hint) or (bytes,))[0],
            optional=optional,
            private=getattr(origin, "__atoll_private__", False),
        )
    if not isinstance(origin, type):
        return None
    kinds: list[tuple[type, NeedKind]] = [
        (Config, "config"),
        (Interface, "server"),
        (socket.socket, "socket"),
        (Path, "folder"),
    ]
    for base, kind in kinds:
        if issubclass(origin, base):
            return Need(name=name, kind=kind, type=origin, optional=optional)
    return None


def read_config(need: Need, packed: bytes, where: str) -> Config:
    """A configuration from the image's table as MessagePack. `BadRequest` says what is wrong and at which
    key."""
    try:
        config: Config = msgspec.msgpack.decode(packed, type=need.type)
    except msgspec.ValidationError as fault:
        raise BadRequest(
            f"{where}, configuration {need.name!r}", f"a {need.type.__name__}", str(fault)
        ) from None
    return config


def bind(
    server: type[Serves[Any]],
    given: Mapping[str, object],
    translator: Translator | None = None,
    version: str = "",
) -> Endpoint:
    """An instance with its needs. TypeError names a need that is not given, or something given that is no
    need."""
    wanted = {need.name: need for need in needs(server)}
    unknown = sorted(given.keys() - wanted.keys())
    if unknown:
        raise TypeError(f"{server.__name__} has no need {unknown[0]!r}; it has {', '.join(wanted) or 'none'}")
    instance = server()
    for name, need in wanted.items():
        if name in given:
            value = given[name]
            if need.kind in ("config", "server") and not isinstance(value, need.type):
                raise TypeError(
                    f"{server.__name__}.{name} needs a {need.type.__name__}, "
                    f"and was given a {type(value).__name__}"
                )
            if need.private and not isinstance(value, Private):
                raise TypeError(f"{server.__name__}.{name} is private, and was given a keyspace without keys")
        elif need.kind == "config" and not any(field.required for field in msgspec.structs.fields(need.type)):
            value = need.type()
        elif need.optional:
            value = None
        else:
            raise TypeError(
                f"{server.__name__}.{name} ({need.kind}) is not bound: give it in the image, or as a need"
            )
        setattr(instance, name, value)
    return Endpoint(instance, translator, version)
