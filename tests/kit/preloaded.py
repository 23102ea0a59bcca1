"""A small C library that is loaded before the C library into whatever a test starts, and the file that tells it what to
do."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def preloaded(source: Path, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file with the orders, empty at first; the library knows its path as the macro `name`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip(f"{source.name} is a small C library, and there is no compiler")
    # Servers have users of their own: they must reach it.
    orders = Path(f"/dev/shm/atoll-{name.lower()}-{os.getpid()}")
    orders.touch()
    orders.chmod(0o666)
    library = folder / f"{source.stem}.so"
    words = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        f'-D{name}="{orders}"',
        "-o",
        str(library),
        str(source),
        "-ldl",
    ]
    try:
        subprocess.run(words, check=True)
        monkeypatch.setenv("LD_PRELOAD", str(library))
        yield orders
    finally:
        orders.unlink()
