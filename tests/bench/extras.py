"""Peers from PyPI that only the benchmark needs: in a folder of their own, off the project's environment."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from .frame import Unavailable

HERE = Path(__file__).parent
FOLDER = HERE / ".extras"


def need(name: str) -> ModuleType:
    """Imports a peer's module; raises Unavailable if it is not installed."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unavailable(f"{name} is not installed: python tests/bench/run.py --install") from None


def install() -> None:
    """Puts what requirements.txt names into the folder."""
    requirements = HERE / "requirements.txt"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(FOLDER)]
    subprocess.run([*command, "-r", str(requirements)], check=True)
