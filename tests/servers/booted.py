"""A node booted from an image for a test, as a person boots it: the kernel in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOCKET_PATH_MOST = 100
"""Characters of the attach socket's path, less than the 108 that an address has room for."""


@contextmanager
def booted(image: Path, folder: Path) -> Iterator[Path]:
    """Boot, and give the node's folder once it serves; shut it down afterwards, whatever happened."""
    command = [sys.executable, "-P", "-m", "atoll.microkernel", "boot", str(image), f"--folder={folder}"]
    assert len(str(folder)) < SOCKET_PATH_MOST
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as kernel:
        assert kernel.stdout is not None
        told: list[str] = []
        try:
            for line in kernel.stdout:
                told.append(line)
                if " serves: boot " in line:
                    break
            else:
                pytest.fail("the node did not boot:\n" + "".join(told))
            yield folder
        finally:
            kernel.terminate()
            for line in kernel.stdout:
                told.append(line)
    assert kernel.returncode == 0, "".join(told)
