"""Serving processes: one module of this package each, started fresh, gone with their parent."""

import ctypes
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PACKAGE = __name__.rpartition(".")[0]
ROOT = Path(__file__).resolve().parents[len(PACKAGE.split("."))]
_PR_SET_PDEATHSIG = 1


@contextmanager
def served(
    module: str, *arguments: object, core: int | None = None, descriptors: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `main(arguments)` of a module of this package, pinned, until the block ends.

    Yields once the child has said that it is ready (one byte on its standard output). Descriptors keep
    their numbers. Raises RuntimeError if it ends before that.
    """
    command = [
        sys.executable,
        "-m",
        f"{PACKAGE}.children",
        f"{PACKAGE}.{module}",
        "" if core is None else str(core),
    ]
    child = subprocess.Popen(
        command + [str(argument) for argument in arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=descriptors,
        cwd=ROOT,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        if not child.stdout.read(1):
            raise RuntimeError(
                f"the serving process of {module} ended with {child.wait()} before it was ready"
            )
        yield child
    finally:
        child.stdin.close()
        child.stdout.close()
        child.terminate()
        child.wait()


def ready() -> None:
    """Tells the parent that calls may come."""
    os.write(1, b".")


def _main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    module, core, *arguments = sys.argv[1:]
    if core:
        os.sched_setaffinity(0, {int(core)})
    importlib.import_module(module).main(arguments)


if __name__ == "__main__":
    _main()
