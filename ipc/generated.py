"""Functions made from source text: of a proxy's methods, and of what decodes a request and calls its handler.

To compile a dozen lines takes as long as a hundred calls, and a server's process makes some for each of its methods. So a
source names the fields it takes by their place, `_0`, `_1` and so on: methods of as many fields share one, and what the
zygote has compiled its children only fill in.
"""

import linecache
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

_PLACE = re.compile(r"(?<=\.)_\d+\b")


def generate(
    label: str, source: str, namespace: dict[str, Any], attributes: Sequence[str] = ()
) -> dict[str, Any]:
    """Run generated source; tracebacks show its lines. `attributes`: the names of what it has as attributes `_0`, `_1` and
    so on."""
    filename = f"<atoll {label}>"
    names = {f"_{place}": name for place, name in enumerate(attributes)}
    shown = _PLACE.sub(lambda place: names[place[0]], source)
    linecache.cache[filename] = (len(shown), None, shown.splitlines(keepends=True), filename)
    exec(_named(compiled(source), filename, names), namespace)
    return namespace


@lru_cache(maxsize=256)
def compiled(source: str) -> CodeType:
    return compile(source, "<atoll>", "exec")


def _named(code: CodeType, filename: str, names: Mapping[str, str]) -> CodeType:
    return code.replace(
        co_filename=filename,
        co_names=tuple(names.get(name, name) for name in code.co_names),
        co_consts=tuple(
            _named(each, filename, names) if isinstance(each, CodeType) else each for each in code.co_consts
        ),
    )
