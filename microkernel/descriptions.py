"""What packages say of themselves, each asked in a process of its own."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from atoll.ipc.runtime.describe import Answer, Asked, Description

LONGEST = 60.0
"""Seconds after which a package that does not even import is given up."""


def describe_all(
    packages: Mapping[str, Path], configs: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, Description | str]:
    """By server: its description, with faults of its configuration (`configs`: per server and need), or a
    sentence why there is none. All are asked at once.
    """
    wanted = {
        name: Asked(
            folder=str(package.parent),
            package=package.name,
            configs={need: dict(table) for need, table in configs.get(name, {}).items()},
        )
        for name, package in packages.items()
    }
    if not wanted:
        return {}
    done = subprocess.run(
        [sys.executable, "-m", "atoll.ipc.runtime.describe", str(LONGEST)],
        input=msgspec.json.encode(wanted),
        stdout=subprocess.PIPE,
        check=True,
    )
    answers = msgspec.json.decode(done.stdout, type=dict[str, Answer])
    return {name: answer.description or answer.fault for name, answer in answers.items()}
