"""What an interface looks like from outside: its fingerprint, and the exact difference between two versions
of it.

A client states what it expects, a server what it has. Equal fingerprints need no look. Else every method the
client knows must be there and fit: arguments and fields that one side has more of are compatible if they have
defaults and, where the encoding goes by place, stand last; everything else is a difference, told as "expected
X, got Y, at path".
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec
import msgspec.inspect as shapes
from msgspec import Struct

from . import errors
from .buffer import Buffer
from .capability import Cap
from .errors import Incompatible
from .interface import Interface, rights, specs
from .method import MethodSpec
from .system.control import Described


class FieldShape(Struct, frozen=True, omit_defaults=True):
    name: str
    type: str
    """A name: of a built-in type, or of an entry in `types`."""
    required: bool = True


class TypeShape(Struct, frozen=True, omit_defaults=True):
    """A type that has parts. `kind`: struct, array, enum."""

    kind: str
    fields: tuple[FieldShape, ...] = ()
    values: tuple[str, ...] = ()
    tag: str = ""
    closed: bool = False
    """It refuses fields that it does not know."""


class MethodShape(Struct, frozen=True, omit_defaults=True):
    kind: str
    right: str
    arguments: tuple[FieldShape, ...] = ()
    result: str = "null"
    item: str = ""
    idempotent: bool = False
    once: bool = False


class InterfaceShape(Struct, frozen=True, omit_defaults=True):
    """A whole interface. `types` holds what its methods and failures name, by name."""

    name: str
    methods: dict[str, MethodShape]
    failures: dict[str, tuple[FieldShape, ...]] = {}
    types: dict[str, TypeShape] = {}
    rights: tuple[str, ...] = ()


class Difference(Struct, frozen=True):
    expected: str
    got: str
    path: str

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.got}, at {self.path}"


_pack = msgspec.msgpack.Encoder(order="deterministic").encode
_unpack = msgspec.msgpack.Decoder(InterfaceShape).decode


def describe(interface: type[Interface]) -> InterfaceShape:
    """An interface as data that another process can read."""
    types: dict[str, TypeShape] = {}
    return InterfaceShape(
        name=interface.__name__,
        methods={spec.name: _method(spec, types) for spec in specs(interface)},
        failures={
            failure.__name__: _fields(errors.shape(failure), types) for failure in interface.failures.values()
        },
        types=types,
        rights=rights(interface),
    )


def described(interface: type[Interface]) -> Described:
    """An interface as a process tells the kernel of it."""
    shape = describe(interface)
    return Described(
        name=shape.name,
        fingerprint=fingerprint(shape),
        rights=shape.rights,
        schema=msgspec.Raw(encode(shape)),
    )


def encode(shape: InterfaceShape) -> bytes:
    """The shape as MessagePack, the same bytes for equal shapes."""
    return _pack(shape)


def decode(data: bytes) -> InterfaceShape:
    """What `encode` wrote. msgspec.DecodeError for anything else."""
    return _unpack(data)


def fingerprint(shape: InterfaceShape) -> bytes:
    """16 bytes, equal for equal shapes."""
    return blake2b(_pack(shape), digest_size=16).digest()


def check(expected: InterfaceShape, found: InterfaceShape) -> None:
    """Raise `Incompatible`, naming every difference, if a client that expects one cannot use the other."""
    different = differences(expected, found)
    if different:
        raise Incompatible(expected.name, tuple(map(str, different)))


def differences(expected: InterfaceShape, found: InterfaceShape) -> list[Difference]:
    """All that keeps a client of `expected` from using `found`; empty if they are compatible."""
    comparison = _Comparison(expected, found)
    told: list[Difference] = []
    for name, method in expected.methods.items():
        label = f"{expected.name}.{name}"
        if name not in found.methods:
            told.append(Difference(f"a {method.kind}", "nothing", label))
        else:
            told.extend(comparison.method(label, method, found.methods[name]))
    for name, fields in found.failures.items():
        if name in expected.failures:
            told.extend(
                comparison.fields(f"{expected.name} !{name}", expected.failures[name], fields, by_place=False)
            )
    return list(dict.fromkeys(told))


def _method(spec: MethodSpec, types: dict[str, TypeShape]) -> MethodShape:
    return MethodShape(
        kind=spec.kind,
        right=spec.right,
        arguments=_fields(spec.arguments, types),
        result=_name(shapes.type_info(spec.result), types),
        item="" if spec.item is None else _name(shapes.type_info(spec.item), types),
        idempotent=spec.idempotent,
        once=spec.once,
    )


def _fields(struct: type[Struct], types: dict[str, TypeShape]) -> tuple[FieldShape, ...]:
    found = shapes.type_info(struct)
    assert isinstance(found, shapes.StructType)
    return _field_shapes(found, types)


def _field_shapes(found: Any, types: dict[str, TypeShape]) -> tuple[FieldShape, ...]:
    return tuple(
        FieldShape(field.encode_name, _name(field.type, types), field.required) for field in found.fields
    )


def _name(found: shapes.Type, types: dict[str, TypeShape]) -> str:
    """The text that stands for a type; types with parts are entered into `types` under theirs."""
    match found:
        case shapes.UnionType(types=members):
            return " | ".join(sorted(_name(member, types) for member in members))
        case shapes.CollectionType(item_type=item):
            kind = type(found).__name__.removesuffix("Type").lower().replace("vartuple", "list")
            return f"{kind}[{_name(item, types)}]"
        case shapes.TupleType(item_types=members):
            return f"tuple[{', '.join(_name(member, types) for member in members)}]"
        case shapes.DictType(key_type=key, value_type=value):
            return f"dict[{_name(key, types)}, {_name(value, types)}]"
        case shapes.LiteralType(values=values):
            return f"literal[{', '.join(sorted(map(repr, values)))}]"
        case shapes.Metadata(type=inner):
            return _name(inner, types)
        case shapes.CustomType(cls=cls):
            return {Cap: "capability", Buffer: "buffer"}[cls]
        case shapes.EnumType(cls=cls):
            types[cls.__name__] = TypeShape("enum", values=tuple(sorted(str(member.value) for member in cls)))
            return str(cls.__name__)
        case _ if hasattr(found, "fields") and hasattr(found, "cls"):
            return _compound(found, types)
        case _:
            return _plain(found)


def _compound(found: Any, types: dict[str, TypeShape]) -> str:
    name = str(found.cls.__name__)
    if name not in types:
        types[name] = TypeShape("struct")  # stands for itself while its own fields are walked
        by_place = getattr(found, "array_like", isinstance(found, shapes.NamedTupleType))
        types[name] = TypeShape(
            "array" if by_place else "struct",
            fields=_field_shapes(found, types),
            tag="" if getattr(found, "tag", None) is None else str(found.tag),
            closed=getattr(found, "forbid_unknown_fields", False),
        )
    return name


def _plain(found: shapes.Type) -> str:
    """A type without parts, with its constraints: `int(ge=0)`."""
    name = {"NoneType": "null"}.get(type(found).__name__, type(found).__name__.removesuffix("Type").lower())
    bounds = [f"{key}={value!r}" for key, value in msgspec.structs.asdict(found).items() if value is not None]
    return f"{name}({', '.join(bounds)})" if bounds else name


class _Comparison:
    def __init__(self, expected: InterfaceShape, found: InterfaceShape) -> None:
        self._expected = expected.types
        self._found = found.types
        self._walked: set[str] = set()

    def method(self, label: str, expected: MethodShape, found: MethodShape) -> Iterator[Difference]:
        if expected.kind != found.kind:
            yield Difference(f"a {expected.kind}", f"a {found.kind}", label)
            return
        for what in ("right", "idempotent", "once"):
            mine, theirs = getattr(expected, what), getattr(found, what)
            if mine != theirs and (what == "right" or mine):
                yield Difference(f"{what} {mine!r}", f"{what} {theirs!r}", label)
        yield from self.fields(label, expected.arguments, found.arguments, by_place=True)
        yield from self.type(f"{label} -> {expected.result}", expected.result, found.result)
        if expected.item or found.item:
            arrow = "->" if expected.kind == "stream" else "<-"
            yield from self.type(f"{label} {arrow} {expected.item}", expected.item, found.item)

    def fields(
        self, path: str, expected: tuple[FieldShape, ...], found: tuple[FieldShape, ...], *, by_place: bool
    ) -> Iterator[Difference]:
        def place(name: str) -> str:
            return f"{path}({name})" if "->" not in path and "!" not in path else f"{path}.{name}"

        if by_place:
            common = min(len(expected), len(found))
            for mine, theirs in zip(expected, found, strict=False):
                if mine.name != theirs.name:
                    yield Difference(f"{mine.name!r} in this place", f"{theirs.name!r}", place(mine.name))
                    return
            pairs = list(zip(expected, found, strict=False))
            only_mine, only_theirs = expected[common:], found[common:]
        else:
            mine_by, theirs_by = {f.name: f for f in expected}, {f.name: f for f in found}
            pairs = [(f, theirs_by[f.name]) for f in expected if f.name in theirs_by]
            only_mine = tuple(f for f in expected if f.name not in theirs_by)
            only_theirs = tuple(f for f in found if f.name not in mine_by)
        for mine, theirs in pairs:
            yield from self.type(place(mine.name), mine.type, theirs.type)
            if mine.required != theirs.required and theirs.required:
                yield Difference("a default", "none", place(mine.name))
        for field in only_mine:
            if field.required:
                yield Difference(field.type, "nothing", place(field.name))
        for field in only_theirs:
            if field.required:
                yield Difference(
                    "nothing, or a default", f"{field.type} without a default", place(field.name)
                )

    def type(self, path: str, expected: str, found: str) -> Iterator[Difference]:
        if expected != found:
            yield Difference(expected, found, path)
            return
        for name in _names_in(expected):
            if name in self._expected and name in self._found and name not in self._walked:
                self._walked.add(name)
                yield from self.compound(path if path.endswith(name) else f"{path} -> {name}", name)

    def compound(self, path: str, name: str) -> Iterator[Difference]:
        mine, theirs = self._expected[name], self._found[name]
        if (mine.kind, mine.tag) != (theirs.kind, theirs.tag):
            told = [f"{shape.kind} {shape.tag!r}" if shape.tag else shape.kind for shape in (mine, theirs)]
            yield Difference(told[0], told[1], path)
        elif mine.values != theirs.values:
            yield Difference(", ".join(mine.values), ", ".join(theirs.values), path)
        else:
            yield from self.fields(path, mine.fields, theirs.fields, by_place=mine.kind == "array")
            if (mine.closed or theirs.closed) and {f.name for f in mine.fields} != {
                f.name for f in theirs.fields
            }:
                yield Difference("exactly its own fields", "others (it forbids unknown fields)", path)


def _names_in(text: str) -> list[str]:
    """The type names that stand in a type's text."""
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text).split()
    return list(dict.fromkeys(words))
