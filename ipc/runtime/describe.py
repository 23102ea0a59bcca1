"""What a server package says of itself: its interfaces, its needs, and whether a configuration fits.

To know it the package is imported, which runs its code: in a process of its own, confined, whose `main` this is. So whoever
checks an image never imports a server. A package that cannot be described is answered with one sentence.
"""

import importlib
import re
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from atoll.ipc.naming import nearest

from .. import context
from ..published import TableShape, shape
from . import bytecode

LENGTH_BYTES = 8
NeedKind = Literal["keyspace", "server", "config", "socket", "folder"]


class Offer(Struct, frozen=True, kw_only=True):
    """An interface that the server serves."""

    name: str
    rights: tuple[str, ...]
    """In bit order of this version."""
    methods: tuple[str, ...]


class NeedDescription(Struct, frozen=True, kw_only=True):
    """Something the server must be given."""

    kind: NeedKind
    interface: str = ""
    """Of a need of kind `server`: the interface's name."""
    type: str = ""
    """Of keyspaces and configurations: the type of their values."""
    optional: bool = False
    """It starts without, too."""
    private: bool = False
    """Of a keyspace: its values are sealed."""


class ConfigFault(Struct, frozen=True, kw_only=True):
    """What is wrong with a configuration, and where in it."""

    path: tuple[str | int, ...]
    expected: str
    found: str
    suggestion: str = ""
    at_key: bool = False
    """The key is wrong, not its value."""


class Description(Struct, frozen=True, kw_only=True):
    interfaces: tuple[Offer, ...]
    needs: dict[str, NeedDescription]
    accepts_handover: bool
    heavy: bool = False
    """Its processes start by `exec`, whatever the image says."""
    tables: dict[str, TableShape] = {}
    """What it publishes, by name."""
    config_faults: dict[str, ConfigFault] = {}
    """By need; the first fault of each."""
    hash: str = ""
    """The content hash of the package that was described. Who asked says so, not the package."""
    bytecode: bytes = b""
    """Of that package, as it is kept in its version's folder; made before any of its code ran."""

    @property
    def keeps_private(self) -> bool:
        """Whether what it has in hand is somebody's: it has a private keyspace."""
        return any(about.private for about in self.needs.values())


def describe(server: type[Any], configs: Mapping[str, Mapping[str, Any]] | None = None) -> Description:
    """Describes a server class, and holds the configurations given for its needs to their types."""
    from atoll.ipc.interface import methods, rights
    from atoll.ipc.serve import Serves, check_private, needs

    check_private(server)
    offers = tuple(
        Offer(
            name=interface.__name__,
            rights=rights(interface),
            methods=tuple(method.name for method in methods(interface)),
        )
        for interface in server.interfaces
    )
    declared, faults = {}, {}
    for need in needs(server):
        name = getattr(need.type, "__name__", str(need.type))
        optional = need.optional
        if need.kind == "config":
            optional = optional or not any(field.required for field in msgspec.structs.fields(need.type))
            given = (configs or {}).get(need.name)
            fault = None if given is None else _config_fault(given, need.type)
            if fault is not None:
                faults[need.name] = fault
        declared[need.name] = NeedDescription(
            kind=need.kind,
            interface=name if need.kind == "server" else "",
            type=name if need.kind in ("keyspace", "config") else "",
            optional=optional,
            private=need.private,
        )
    return Description(
        interfaces=offers,
        needs=declared,
        accepts_handover=server.take_over is not Serves.take_over,
        heavy=server.heavy,
        tables=_tables(server, declared),
        config_faults=faults,
    )


def _tables(server: type[Any], declared: Mapping[str, NeedDescription]) -> dict[str, TableShape]:
    keyspaces = [name for name, need in declared.items() if need.kind == "keyspace" and not need.private]
    for name, published in server.publishes.items():
        if not name.isidentifier():
            raise TypeError(f"publishes[{name!r}]: expected a name that SQL takes")
        if published.need not in keyspaces:
            raise TypeError(
                f"publishes[{name!r}]: {published.need!r} is no keyspace of this server, only {keyspaces} are"
            )
    return {name: shape(name, published) for name, published in server.publishes.items()}


_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_VALUES = "[...]"
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_EXPECTED = re.compile(r"^Expected (?P<expected>.*), got (?P<found>.*)$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$")


def _config_fault(given: Mapping[str, Any], kind: type[Any]) -> ConfigFault | None:
    try:
        msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        return _fault(str(error), given, kind)
    return None


def _fault(sentence: str, given: object, kind: type[Any]) -> ConfigFault:
    """msgspec's sentence as expectation, finding and path."""
    whole = _AT.match(sentence)
    assert whole is not None
    place, within, rest = (whole["path"] or "").partition(_VALUES)
    path: tuple[str | int, ...] = tuple(int(index) if index else name for name, index in _STEP.findall(place))
    what = whole["what"]
    if within:
        return _fault_within(what, path, within + rest)
    if unknown := _UNKNOWN.match(what):
        known = [field.encode_name for field in msgspec.structs.fields(kind)] if not path else []
        expected = f"a key of {kind.__name__}" + (f": {', '.join(known) or 'none'}" if not path else "")
        found = f"the key {_quoted(unknown['name'])}"
        return ConfigFault(
            path=(*path, unknown["name"]),
            expected=expected,
            found=found,
            suggestion=_suggestion(unknown["name"], known),
            at_key=True,
        )
    if missing := _MISSING.match(what):
        return ConfigFault(path=path, expected=f"the key {_quoted(missing['name'])}", found="none")
    value = given
    for step in path:
        value = value[step]  # type: ignore[index]
    found = _quoted(value) if isinstance(value, str | int | float | bool) else "another kind of value"
    if parts := _EXPECTED.match(what):
        return ConfigFault(path=path, expected=parts["expected"].replace("`", ""), found=found)
    expected = what.removeprefix("Expected ").replace("`", "")
    return ConfigFault(path=path, expected=expected, found=found)


def _fault_within(what: str, path: tuple[str | int, ...], place: str) -> ConfigFault:
    """Of a table whose keys are its author's own: msgspec does not say under which of them."""
    if unknown := _UNKNOWN.match(what):
        expected, found = "a known key", f"the key {_quoted(unknown['name'])}"
    elif missing := _MISSING.match(what):
        expected, found = f"the key {_quoted(missing['name'])}", "none"
    elif parts := _EXPECTED.match(what):
        expected, found = parts["expected"], parts["found"]
    else:
        expected, found = what.removeprefix("Expected "), "another kind of value"
    return ConfigFault(
        path=path, expected=f"{expected} at {place}".replace("`", ""), found=found.replace("`", "")
    )


def _quoted(value: object) -> str:
    if isinstance(value, float):
        return repr(value)  # JSON has no NaN
    return msgspec.json.encode(value).decode()


def _suggestion(found: str, known: list[str]) -> str:
    near = nearest(found, known)
    return f"did you mean {_quoted(near)}?" if near else ""


def find_server(folder: str, package: str) -> type[Any]:
    """A package's class `Server`. Raises what its import raises, TypeError if there is none."""
    from atoll.ipc.serve import Serves

    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    server = getattr(importlib.import_module(f"{package}.server"), "Server", None)
    if not (isinstance(server, type) and issubclass(server, Serves)):
        raise TypeError(f"{package}/server.py: expected a class Server(Serves[...]), found {server!r}")
    return server


class Asked(Struct, frozen=True, kw_only=True):
    """A package to describe, and the configuration given for each of its needs."""

    folder: str
    package: str
    configs: dict[str, dict[str, Any]] = {}


class Answer(Struct, frozen=True, kw_only=True):
    """Its description, or one sentence why there is none."""

    description: Description | None = None
    fault: str = ""


def answer(asked: Asked, find: Callable[[str, str], type[Any]] = find_server) -> Answer:
    """Import the package, here, and describe it. `find`: gives the class of a package in a folder."""
    try:
        return Answer(description=describe(find(asked.folder, asked.package), asked.configs))
    except (Exception, SystemExit) as error:  # whatever a package raises when it is imported
        sentence = " ".join(str(error).split())
        return Answer(fault=context.fitting(f"{type(error).__name__}: {sentence}", context.LINE_MOST))


def framed(code: bytes) -> bytes:
    """Bytecode, as it is sent ahead of the answer."""
    return len(code).to_bytes(LENGTH_BYTES) + code


def heard(told: bytes) -> Answer | None:
    """What was sent as `main` sends it; None if its process ended before it answered. Raises msgspec.DecodeError."""
    end = LENGTH_BYTES + int.from_bytes(told[:LENGTH_BYTES])
    if len(told) <= end:
        return None
    said = msgspec.json.decode(told[end:], type=Answer)
    if said.description is None:
        return said
    code = told[LENGTH_BYTES:end]
    return Answer(description=msgspec.structs.replace(said.description, bytecode=code))


def main(descriptor: int) -> None:
    """Answer the package that the socket's other end names (`Asked`, to the end of what it sends) with its bytecode, which
    is sent before the package is imported, and one `Answer`."""
    with socket.socket(fileno=descriptor) as end, end.makefile("rb") as told:
        asked = msgspec.json.decode(told.read(), type=Asked)
        code = bytecode.compiled(Path(asked.folder) / asked.package)
        end.sendall(framed(bytecode.packed(code)))
        bytecode.use(asked.folder, asked.package, code)
        end.sendall(msgspec.json.encode(answer(asked)))
