"""What packages say of themselves, each asked in a process of its own."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from atoll.ipc.runtime.describe import Description

LONGEST = 60.0
"""Seconds after which a package that does not even import is given up."""


def describe_all(
    packages: Mapping[str, Path], configs: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, Description | str]:
    """By server: its description, with faults of its configuration (`configs`: per server and need), or a
    sentence why there is none. All are asked at once.
    """
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "atoll.ipc.runtime.describe", str(package.parent), package.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, package in packages.items()
    }
    found = {}
    try:
        for name, process in running.items():
            found[name] = _answer(process, msgspec.json.encode(configs.get(name, {})))
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return found


def _answer(process: "subprocess.Popen[bytes]", config: bytes) -> Description | str:
    try:
        out, err = process.communicate(config, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"no answer from its import within {LONGEST:g} s"
    if process.returncode == 0:
        try:
            return msgspec.json.decode(out, type=Description)
        except msgspec.MsgspecError as error:
            return f"a description that cannot be read ({error}): server.py must not print when imported"
    last = err.decode(errors="replace").strip().splitlines()
    return last[-1] if last else f"an end with status {process.returncode}"
