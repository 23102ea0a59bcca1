"""Compiles `bare.c` once a version of it (cffi, API mode, GIL released by each call) and loads it.

Built outside the package's own core on purpose: a floor that shared code with what it is a floor for would
move with it.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from cffi import FFI  # type: ignore[import-untyped]

HERE = Path(__file__).parent
BUILD = HERE / ".build"
FLAGS = ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"]


def load() -> ModuleType:
    """The module with `ffi` and `lib`; compiles it if the sources or this interpreter are new."""
    interface, source = (HERE / "bare.h").read_text(), (HERE / "bare.c").read_text()
    tag = hashlib.blake2b(
        (interface + source + " ".join(FLAGS) + sys.version).encode(), digest_size=6
    ).hexdigest()
    name = f"bare_{tag}"
    built = sorted(BUILD.glob(f"{name}.*.so"))
    path = built[0] if built else _compile(name, interface)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(name: str, interface: str) -> Path:
    builder = FFI()
    builder.cdef(interface)
    # The full API, not the limited one: what cffi wraps around each call is then as cheap as it gets.
    builder.set_source(
        name,
        '#include <stddef.h>\n#include <stdint.h>\n#include "bare.h"\n',
        sources=[str(HERE / "bare.c")],
        include_dirs=[str(HERE)],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
        py_limited_api=False,
    )
    BUILD.mkdir(exist_ok=True)
    return Path(builder.compile(tmpdir=str(BUILD)))
