"""The one hierarchy of errors.

Three branches say whose fault it was: `CallerFault` (change the call), `PeerFault` (the other side or the way
there failed; trying again may help) and `InternalFault` (a handler has a bug). A `Failure` is none of them:
it is an outcome that an interface declares, and arrives at the caller as the same class with the same fields.

An error class is written like a Struct: annotations are its fields, `template` (a format string over them) or
a `message` property is its sentence, which says what was wrong, where, and what to do. On the wire an error
is the array `[number, name, fields, message]`; a number once given is never used again for something else.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol, Self, dataclass_transform, get_type_hints

import msgspec
from msgspec import Struct

from .naming import hint, nearest, number_of, some_of

LISTS = {"capability": "atoll caps", "version": "atoll versions"}
"""Commands that list what has no names to choose from."""

_packed = msgspec.msgpack.Encoder()


@dataclass_transform(frozen_default=True, kw_only_default=False)
class AtollError(Exception):
    """Base of everything Atoll raises. `number` is its number on the wire."""

    number: ClassVar[int] = 0
    template: ClassVar[str] = ""
    _defaults: ClassVar[dict[str, Any]] = {}
    _names: ClassVar[tuple[str, ...]] = ()
    _keyword_only: ClassVar[bool] = False
    _shape: ClassVar[type[Struct] | None] = None

    def __init_subclass__(cls, *, frozen: bool = True, kw_only: bool = False) -> None:
        """`frozen` and `kw_only` are accepted as on a Struct; an error is always frozen."""
        super().__init_subclass__()
        if not frozen:
            raise TypeError(f"{cls.__name__}: an error's fields cannot be changed; leave out frozen=False")
        own = [name for name, hint in inspect.get_annotations(cls).items() if not _is_class_variable(hint)]
        cls._names = tuple(dict.fromkeys((*cls._names, *own)))
        cls._defaults = cls._defaults | {name: cls.__dict__[name] for name in own if name in cls.__dict__}
        cls._keyword_only = kw_only
        cls._shape = None
        sentence = cls.__dict__.get("message")
        if isinstance(sentence, str):
            cls.template = sentence
            del cls.message

    def __init__(self, *args: Any, **fields: Any) -> None:
        cls = type(self)
        if len(args) > (0 if cls._keyword_only else len(cls._names)):
            raise TypeError(
                f"{cls.__name__} takes the fields {', '.join(cls._names) or '(none)'}; got {len(args)} values"
            )
        values = dict(zip(cls._names, args, strict=False))
        for name, value in fields.items():
            if name not in cls._names:
                raise TypeError(
                    f"{cls.__name__} has no field {name!r}; it has {', '.join(cls._names) or 'none'}"
                )
            if name in values:
                raise TypeError(f"{cls.__name__} got two values for the field {name!r}")
            values[name] = value
        for name in cls._names:
            if name not in values:
                if name not in cls._defaults:
                    raise TypeError(f"{cls.__name__} needs the field {name!r}")
                values[name] = cls._defaults[name]
        self.__dict__.update(values)
        super().__init__(*values.values())

    @property
    def message(self) -> str:
        """One sentence: what was wrong, where, what to do."""
        if self.template:
            return self.template.format(**self.fields)
        told = ", ".join(f"{name} {value!r}" for name, value in self.fields.items())
        return f"{type(self).__name__}: {told}" if told else type(self).__name__

    @property
    def fields(self) -> dict[str, Any]:
        """The fields by name, in the order of their declaration."""
        return {name: self.__dict__[name] for name in self._names}

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._names:
            raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: make another error")
        super().__setattr__(name, value)

    def __str__(self) -> str:
        return self.message

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, AtollError) and other.fields == self.fields

    def __hash__(self) -> int:
        return hash((type(self), self.message))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.fields)


def _rebuild(kind: type[AtollError], fields: dict[str, Any]) -> AtollError:
    return kind(**fields)


def _is_class_variable(hint: object) -> bool:
    return "ClassVar" in (hint if isinstance(hint, str) else repr(hint))


# the caller's fault
# --------------------------------------------------------------------------------------------------


class CallerFault(AtollError):
    """The call itself was wrong: repeating it unchanged will fail again."""


class NotAllowed(CallerFault):
    """The capability does not carry the right that the method needs."""

    number = 1
    method: str
    needed: str
    held: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        held = ", ".join(repr(right) for right in self.held) or "no right"
        return (
            f"{self.method} needs the right {self.needed!r}, and this capability holds {held}: "
            f"ask its grantor for {self.needed!r}"
        )


class Revoked(CallerFault):
    """The capability was taken back, or its life is over."""

    number = 2
    what: str
    template = "the capability for {what} was revoked or has expired: ask its grantor for a new one"


class QuotaExceeded(CallerFault):
    """An account of the image has nothing left of a resource."""

    number = 3
    account: str
    resource: str
    limit: int
    template = (
        "account {account!r} has used its {limit} of {resource}: "
        "release some, or raise the quota in the image"
    )


class Incompatible(CallerFault):
    """Two versions of an interface cannot speak to each other; each difference is "expected X, got Y, at
    path"."""

    number = 4
    interface: str
    differences: tuple[str, ...]

    @property
    def message(self) -> str:
        return (
            f"interface {self.interface!r} differs from what the server offers: "
            f"{'; '.join(self.differences)}: update the older side"
        )


class BadRequest(CallerFault):
    """An argument does not have the type, or the value, that the method takes."""

    number = 5
    where: str
    expected: str
    got: str
    template = "{where}: expected {expected}, got {got}"


class TooLarge(CallerFault):
    """A message is larger than its way allows, or a transaction larger than the store takes. Sizes in `unit`."""

    number = 6
    what: str
    size: int
    limit: int
    unit: str = "bytes"
    do: str = "send it in pieces (an upload or a stream) or in a Buffer"
    template = "{what} has {size} {unit}, and {limit} is the limit: {do}"


class NotFound(CallerFault):
    """There is nothing of that name. `nearest`, if any, is what may have been meant; `known` are names that exist; `see`, if
    any, is the command that shows what there is."""

    number = 7
    what: str
    name: str
    nearest: str = ""
    known: tuple[str, ...] = ()
    see: str = ""

    @classmethod
    def among(cls, what: str, name: str, known: Iterable[str]) -> Self:
        """With what there is: the nearest name, and a few of them where none is near."""
        names = list(known)
        return cls(what, name, nearest(name, names), some_of(names))

    @property
    def message(self) -> str:
        listed = LISTS.get(self.what.partition(" ")[0])
        todo = (
            (f"see `{self.see}`" if self.see else hint(self.nearest, self.known))
            or (f"see `{listed}`" if listed else "")
            or "look at the names that exist"
        )
        return f"there is no {self.what} {self.name!r}: {todo}"


class WouldBlock(CallerFault):
    """A handler made a blocking call, which would halt the loop that serves everybody."""

    number = 8
    method: str
    inside: str
    template = (
        "{inside} made the blocking call {method}.now, which would halt its server's loop: "
        "make the handler `async def` and await the call, or return a Deferred"
    )


class Purged(CallerFault):
    """Whom it is about was purged: the key that opened it is gone, here and in every backup."""

    number = 9
    what: str
    template = "{what} was purged, and nobody can read it any more: leave it out, or delete it"


# the peer's fault
# ----------------------------------------------------------------------------------------------------


class PeerFault(AtollError):
    """The other side, or the way to it, failed; the same call may succeed later."""


class Overloaded(PeerFault):
    """The server has as much in hand as it takes; the call was not begun."""

    number = 20
    where: str
    template = (
        "{where} has as many calls in hand as it takes, and this one was not begun: "
        "try again later, or more slowly"
    )


class DeadlineExceeded(PeerFault):
    """The time the caller gave was over. `seconds`: what was given, if known."""

    number = 21
    method: str
    seconds: float | None = None

    @property
    def message(self) -> str:
        given = (
            "the deadline of the call that it is part of" if self.seconds is None else f"{self.seconds:g} s"
        )
        return f"{self.method} did not end within {given}: allow more time, or ask for less"


class PeerDied(PeerFault):
    """The serving process ended before it replied."""

    number = 22
    method: str
    outcome_unknown: bool = True

    @property
    def message(self) -> str:
        if self.outcome_unknown:
            return (
                f"the server ended while {self.method} was in its hands, outcome unknown: "
                "look before trying again"
            )
        return f"the server ended before it took {self.method}: try again"


class PeerMisbehaved(PeerFault):
    """The other side broke the protocol. `check` names what did not hold. A channel whose memory shows it is closed,
    and `where` says so."""

    number = 23
    where: str
    check: str
    template = "{where}: the other side broke the protocol ({check})"


class NodeDown(PeerFault):
    """The node's kernel has ended, or never ran. `node` empty: none runs that could be meant."""

    number = 24
    node: str = "the node"
    nearest: str = ""

    @property
    def message(self) -> str:
        if not self.node:
            return "no node runs: start one with `atoll boot IMAGE`"
        return f"{self.node} is down: {hint(self.nearest) or 'boot it again with `atoll boot`'}"


class Aborted(PeerFault):
    """The transaction ended without effect."""

    number = 25
    what: str
    reason: str
    template = "{what} was aborted and nothing was written: {reason}; begin it again"


class Conflict(PeerFault):
    """A precondition of a commit does not hold: somebody else wrote. Revisions; 0 means absent, less: never written.
    `keyspace`: its name, which tells one party's keys from another's where a transaction is shared; of another party's `key`
    is empty."""

    number = 26
    key: bytes
    expected: int
    found: int
    keyspace: str = ""

    @property
    def message(self) -> str:
        where = f" of keyspace {self.keyspace!r}" if self.keyspace else ""
        expected = "not to have been written" if self.expected < 0 else f"at revision {self.expected}"
        key = f"key {self.key!r}" if self.key or not self.keyspace else "a key"
        return f"{key}{where} was expected {expected} and is at {self.found}: read it again and repeat"


class DrainTimedOut(PeerFault):
    """A swap was refused because calls were still in hand at the drain deadline."""

    number = 27
    calls: dict[str, int]
    """By method, how many."""

    @property
    def message(self) -> str:
        named = ", ".join(f"{count} of {label}" for label, count in self.calls.items())
        return (
            f"{sum(self.calls.values())} calls were still in hand at the drain deadline ({named}): "
            "the old version runs on; allow more time, or end them with --force"
        )


class WorkflowCancelled(PeerFault):
    """The workflow was ended before it was done."""

    number = 28
    workflow: str
    template = (
        "workflow {workflow!r} was cancelled: go on with it by `atoll flow resume`, or begin another one"
    )


class Sealed(PeerFault):
    """The keys of a private keyspace are not given to its server."""

    number = 29
    keyspace: str
    why: str
    template = "private keyspace {keyspace!r} stays sealed: {why}"


# our bug ----------------------------------------------------------------------------------------------------


class InternalFault(AtollError):
    """A handler raised what its interface does not declare; the server's log has the traceback."""

    number = 40
    method: str
    raised: str
    template = (
        "{method} failed inside its server, which raised {raised}: "
        "this is a bug there; its log has the traceback"
    )


# outcomes that interfaces declare
# ------------------------------------------------------------------------------------


class Failure(AtollError):
    """Base of the outcomes that an interface declares in `errors`. Numbered by its class name."""

    def __init_subclass__(cls, *, frozen: bool = True, kw_only: bool = False) -> None:
        super().__init_subclass__(frozen=frozen, kw_only=kw_only)
        cls.number = number_of(cls.__name__)


class UnknownFailure(Failure):
    """A failure of a class that this side does not know: a newer server declares it."""

    name: str
    text: str
    details: dict[str, Any]
    template = "the server answered with {name}, which this side does not know: {text}"


class Declares(Protocol):
    """What names the failures a reply may carry, by number: an interface, or one of its methods."""

    @property
    def failures(self) -> Mapping[int, type[Failure]]: ...


class _Wire(Struct, array_like=True, frozen=True):
    number: int
    name: str
    fields: msgspec.Raw
    message: str


DecodeFaults = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes of another: malformed, no UTF-8, or nested without end, also in what it only skips."""

_wire = msgspec.msgpack.Decoder(_Wire)
_details = msgspec.msgpack.Decoder(dict[str, Any])


def _all_below(kind: type[AtollError]) -> list[type[AtollError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _all_below(below))]


_built_in = {
    kind.number: kind for kind in _all_below(AtollError) if kind.number and not issubclass(kind, Failure)
}


def shape(kind: type[AtollError]) -> type[Struct]:
    """The Struct that an error's fields are checked against when they arrive."""
    if kind.__dict__.get("_shape") is None:
        hints = get_type_hints(kind)
        kind._shape = msgspec.defstruct(
            kind.__name__,
            [
                (name, hints[name], kind._defaults[name]) if name in kind._defaults else (name, hints[name])
                for name in kind._names
            ],
            kw_only=True,
        )
    found = kind._shape
    assert found is not None
    return found


def encode(error: AtollError) -> bytes:
    """An error as it travels. One that no message can hold becomes an `InternalFault` that names it: whoever raised it is
    a server's author, and its caller waits for an answer."""
    name = error.name if isinstance(error, UnknownFailure) else type(error).__name__
    try:
        if isinstance(error, UnknownFailure):
            return _packed.encode((number_of(name), name, error.details, error.text))
        return _packed.encode((error.number, name, error.fields, str(error)))
    except Exception as fault:
        return encode(
            InternalFault("a handler", f"{name}, which no message can hold ({type(fault).__name__})")
        )


def decode(payload: bytes | memoryview, declared: Declares | None = None) -> AtollError:
    """The error that `encode` wrote: the same class where it is built in or among `declared.failures`, else
    an `UnknownFailure` that reads the same. Bytes that are no error become `PeerMisbehaved`."""
    try:
        wire = _wire.decode(bytes(payload))
        kind = _built_in.get(wire.number) or (
            declared.failures.get(wire.number) if declared is not None else None
        )
        if kind is None:
            return UnknownFailure(wire.name, wire.message, _details.decode(wire.fields))
        fields = msgspec.msgpack.decode(wire.fields, type=shape(kind))
    except DecodeFaults as fault:
        return PeerMisbehaved("an error reply", str(fault))
    return kind(**{name: getattr(fields, name) for name in kind._names})
