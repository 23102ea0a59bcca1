"""Builds `atoll.native._core`, the one compiled extension (cffi, API mode, limited API).

Every `native/NAME.c` is compiled; what Python may call of it is declared in `native/interface/NAME.h`,
which is both the cdef text and, included by `NAME.c`, the C prototype: one truth for both.
"""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
FLAGS = [
    "-std=c11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fstack-protector-strong",
    "-fvisibility=hidden",
]

interfaces = sorted((HERE / "interface").glob("*.h"))
builder = FFI()
for interface in interfaces:
    builder.cdef(interface.read_text())
builder.set_source(
    "atoll.native._core",
    "#include <stdint.h>\n#include <stddef.h>\n"
    + "".join(f'#include "interface/{i.name}"\n' for i in interfaces),
    sources=[os.path.relpath(source) for source in sorted(HERE.glob("*.c")) if source.name != "_core.c"],
    include_dirs=[os.path.relpath(HERE)],
    extra_compile_args=FLAGS + os.environ.get("ATOLL_CFLAGS", "").split(),
    extra_link_args=os.environ.get("ATOLL_LDFLAGS", "").split(),
    py_limited_api=True,
)
