"""A package's modules compiled once, when it is described, and run from there at each start of its server.

Compiling is most of what a start imports: some 50 ms of `state`'s 75. It is done by the process that describes the package,
confined, before any of the package's code runs: so what is kept follows from the sources alone, whose hash names the
version. Whoever cannot use what is kept (another Python, a torn file) compiles the sources.
"""

import _imp
import marshal
import os
import sys
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import MAGIC_NUMBER, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

import msgspec

FILE = ".bytecode"
"""Beside the package, in its version's folder. Hidden: no part of what the hash covers."""
DIGEST_BYTES = 16

Bytecode = dict[str, bytes]
"""Of each module that can be compiled, by its file's path in the package: its code, marshalled."""


def compiled(package: Path) -> Bytecode:
    """What a package's sources compile to. One that does not compile is left out: its import will say why."""
    found = {}
    for source in sorted(package.rglob("*.py")):
        try:
            code = compile(source.read_bytes(), str(source), "exec", dont_inherit=True, optimize=0)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        found[str(source.relative_to(package))] = marshal.dumps(code)
    return found


def packed(bytecode: Mapping[str, bytes]) -> bytes:
    """As it is kept. A file that was written in part is known by its digest, so it need not be durable."""
    content = msgspec.msgpack.encode(bytecode)
    return _digest(content) + content


def kept(folder: Path) -> Bytecode:
    """What is kept in a version's folder; nothing, if that is of no use here."""
    try:
        whole = (folder / FILE).read_bytes()
    except OSError:
        return {}
    digest, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
    return msgspec.msgpack.decode(content, type=Bytecode) if digest == _digest(content) else {}


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=DIGEST_BYTES, salt=MAGIC_NUMBER).digest()


class _Loader(SourceFileLoader):
    """A module of whose file the code is known."""

    def __init__(self, name: str, path: str, code: bytes) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = marshal.loads(self._code)
        # It was compiled elsewhere; tracebacks name the file that runs. As importlib does with its own caches.
        _imp._fix_co_filename(code, self.path)  # type: ignore[attr-defined]
        return code


class Finder(MetaPathFinder):
    """Finds the modules of one package in its bytecode; all else is left to whoever else finds modules."""

    def __init__(self, folder: str, package: str, bytecode: Bytecode) -> None:
        self._place = os.path.join(folder, package)
        self._package = package
        self._bytecode = bytecode

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, *inner = fullname.split(".")
        if package != self._package:
            return None
        folder = "/".join([*inner, "__init__.py"])
        if (code := self._bytecode.get(folder)) is not None:
            return self._spec(fullname, folder, code, [os.path.join(self._place, *inner)])
        file = "/".join(inner) + ".py"
        code = self._bytecode.get(file)
        return None if code is None else self._spec(fullname, file, code, None)

    def _spec(self, name: str, file: str, code: bytes, within: list[str] | None) -> ModuleSpec | None:
        path = os.path.join(self._place, file)
        return spec_from_file_location(
            name, path, loader=_Loader(name, path, code), submodule_search_locations=within
        )


def use(folder: str, package: str, bytecode: Bytecode) -> None:
    """From now on imports of the package, which lies in the folder, find its bytecode first, then its sources."""
    sys.path.insert(0, folder)
    sys.meta_path.insert(0, Finder(folder, package, bytecode))
