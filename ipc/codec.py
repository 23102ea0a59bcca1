"""How a method's messages are encoded and decoded.

Arguments travel as one array in the order of the signature, so that a trailing argument with a default may be
added in either version. Nothing that is decoded refers to the buffer it came from, since a transport uses
that again: types that would (`memoryview`, `msgspec.Raw`) and types whose depth has no bound are copied
first.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec
import msgspec.inspect as shapes
from msgspec import Struct, structs
from msgspec.msgpack import Ext
from msgspec.structs import FieldInfo, astuple

from .buffer import Buffer
from .capability import Cap, buffer_receiver, buffer_sender, decode_hook, encode_hook
from .limits import check_depth
from .method import MethodSpec
from .transport import Translator

Decode = Callable[[Any], Any]
Encode = Callable[[Any], bytes]


class Traits(NamedTuple):
    """What decoding a type has to mind."""

    carries: bool
    """It may hold a `Cap` or a `Buffer`."""
    unbounded: bool
    """Its values may nest without end."""
    borrows: bool
    """Its values may refer to the buffer they were decoded from."""


NO_TRAITS = Traits(False, False, False)


def traits(kind: Any) -> Traits:
    """What decoding a type has to mind. TypeError for a type that cannot travel."""
    try:
        return _walked(kind)
    except TypeError:  # it cannot travel, or it has no hash: `Annotated` may hold anything
        return _walked.__wrapped__(kind)


def traits_of_all(kinds: Iterable[Any]) -> Traits:
    """Of what holds values of all these types."""
    found = [traits(kind) for kind in kinds]
    return Traits(*(any(column) for column in zip(*found, strict=True))) if found else NO_TRAITS


@lru_cache(maxsize=1024)
def _walked(kind: Any) -> Traits:
    """Most methods share a handful of types: to walk one costs as much as the rest of a method's making."""
    seen: set[type] = set()
    path: set[type] = set()
    carries = unbounded = borrows = False

    def fields(found: Any) -> tuple[Any, ...]:
        return tuple(field.type for field in found.fields)

    def walk(found: Any) -> None:
        nonlocal carries, unbounded, borrows
        match found:
            case shapes.AnyType():
                unbounded = True
            case shapes.RawType():
                unbounded = borrows = True
            case shapes.MemoryViewType():
                borrows = True
            case shapes.CustomType(cls=cls):
                # A value of a custom type is decoded as Any before the hook sees it.
                unbounded = borrows = True
                if cls is not Cap and cls is not Buffer:
                    raise TypeError(f"a {cls.__name__} cannot travel: use a Struct or a built-in type")
                carries = True
            case shapes.UnionType(types=members):
                walk_all(members)
            case shapes.CollectionType(item_type=item):
                walk(item)
            case shapes.TupleType(item_types=members):
                walk_all(members)
            case shapes.DictType(key_type=key, value_type=value):
                walk_all((key, value))
            case shapes.Metadata(type=inner):
                walk(inner)
            case _ if hasattr(found, "fields") and hasattr(found, "cls"):
                if found.cls in path:
                    unbounded = True
                elif found.cls not in seen:
                    path.add(found.cls)
                    walk_all(fields(found))
                    path.discard(found.cls)
                    seen.add(found.cls)
            case _:
                pass

    def walk_all(members: tuple[Any, ...]) -> None:
        for member in members:
            walk(member)

    walk(shapes.type_info(kind))
    return Traits(carries, unbounded, borrows)


def arguments_struct(
    label: str, parameters: Sequence[inspect.Parameter], hints: dict[str, Any]
) -> type[Struct]:
    """The Struct of a method's arguments, with the signature's defaults. `parameters`: without `self`. TypeError names what
    cannot be an argument."""
    fields: list[Any] = []
    for parameter in parameters:
        name = parameter.name
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"{label}({name}): an argument has a name and a place; *args, **kwargs and / are refused"
            )
        if name not in hints:
            raise TypeError(f"{label}({name}): give the argument a type")
        if name.startswith("_"):
            raise TypeError(f"{label}({name}): argument names do not begin with an underscore")
        given = parameter.default
        fields.append((name, hints[name]) if given is parameter.empty else (name, hints[name], given))
    required_after_default = [
        later[0]
        for place, later in enumerate(fields)
        if len(later) == 2 and any(len(f) == 3 for f in fields[:place])
    ]
    if required_after_default:
        raise TypeError(f"{label}({required_after_default[0]}): arguments without a default come first")
    try:
        return msgspec.defstruct(label.replace(".", "_"), fields, array_like=True, gc=False, module=__name__)
    except TypeError as fault:
        raise TypeError(f"{label}: {fault}") from None


_encode: Encode = msgspec.msgpack.Encoder().encode


def encoder(spec: MethodSpec, translator: Translator | None) -> Encode:
    """Encodes arguments, results and items of a method that goes through a transport with that translator."""
    if not spec.carries or translator is None:
        return _encode
    arguments, named = spec.arguments, buffer_sender(translator)
    encode_rest = msgspec.msgpack.Encoder(enc_hook=encode_hook(translator)).encode

    def encode(value: Any) -> bytes:
        # msgspec's hook is for what lies deeper: to go through it takes as long as the rest of a call's encoding.
        if value.__class__ is Buffer:
            value = named(value)
        elif value.__class__ is arguments:
            value = [named(each) if each.__class__ is Buffer else each for each in astuple(value)]
        return encode_rest(value)

    return encode


Role = Literal["arguments", "result", "item"]

_decoders: dict[tuple[MethodSpec, Role], Decode] = {}


def decoder(spec: MethodSpec, role: Role, translator: Translator | None) -> Decode:
    """Decodes one of a method's types from a buffer that is used again afterwards.

    Raises msgspec.DecodeError or UnicodeDecodeError for what is malformed or of another type, `BadRequest`
    for what nests too deep or names a capability that is not there.
    """
    kind = {"arguments": spec.arguments, "result": spec.result, "item": spec.item}[role]
    if spec.carries and translator is not None:
        if role == "arguments" and _only_buffers(spec):
            return _decoder_of_buffers(spec, translator)
        hook = decode_hook(translator, spec.label)
        return _build(spec, role, msgspec.msgpack.Decoder(kind, dec_hook=hook))
    found = _decoders.get((spec, role))
    if found is None:
        found = _decoders[spec, role] = _build(spec, role, msgspec.msgpack.Decoder(kind))
    return found


def _build(spec: MethodSpec, role: Role, decoder: "msgspec.msgpack.Decoder[Any]") -> Decode:
    if role == "arguments":
        found = traits_of_all(spec.arguments.__annotations__.values())
    else:
        found = traits(spec.result if role == "result" else spec.item)
    decode, label = decoder.decode, spec.label
    if found.unbounded:

        def decode_bounded(data: Any) -> Any:
            private = bytes(data)
            check_depth(label, private)
            return decode(private)

        return decode_bounded
    if found.borrows:
        return lambda data: decode(bytes(data))
    return decode


def _only_buffers(spec: MethodSpec) -> bool:
    """Whether some arguments are buffers, and the others need no look before they are decoded."""
    fields = structs.fields(spec.arguments)
    others = [field.type for field in fields if field.type is not Buffer or not field.required]
    return len(others) < len(fields) and not any(traits_of_all(others))


def _decoder_of_buffers(spec: MethodSpec, translator: Translator) -> Decode:
    """Decodes arguments with buffers among them: on the wire these are of a type whose depth has a bound, and need neither
    msgspec's hook nor a copy."""
    wire = msgspec.defstruct(
        spec.arguments.__name__,
        [_on_the_wire(field) for field in structs.fields(spec.arguments)],
        array_like=True,
        gc=False,
        module=__name__,
    )
    decode_wire = msgspec.msgpack.Decoder(wire).decode
    names = [field.name for field in structs.fields(wire) if field.type is Ext]
    received = buffer_receiver(translator, spec.label)

    def decode(data: Any) -> Any:
        arguments = decode_wire(data)
        for name in names:
            setattr(arguments, name, received(getattr(arguments, name)))
        return arguments

    return decode


def _on_the_wire(field: FieldInfo) -> Any:
    if field.required:
        return field.name, Ext if field.type is Buffer else field.type
    default = field.default
    if default is msgspec.NODEFAULT:
        default = msgspec.field(default_factory=field.default_factory)
    return field.name, field.type, default
