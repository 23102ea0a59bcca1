"""A protection level is a module: one that is dropped into the package is there, and no other file knows of it."""

import os
from pathlib import Path

import pytest

from atoll.ipc.errors import BadRequest
from atoll.ipc.system.kernel import Swap

from .nodes import IMAGE, PACKAGES, RealNode, interface

Counter = interface("counter", "Counter")

MODULE = """
import msgspec
from atoll.microkernel.protection.level import Level, Mechanism, always


def _modest(confinement, subject, host):
    return msgspec.structs.replace(confinement, nice=7)


LEVEL = Level(name="toy", rank=15, mechanisms=(
    Mechanism(name="modest", stops="getting in the way of others", absent=always, apply=_modest),
))
"""
WITH_ANOTHER = """
import runpy, sys
import atoll.microkernel.protection
atoll.microkernel.protection.__path__.append({folder!r})
sys.argv[0] = "atoll.microkernel"
runpy.run_module("atoll.microkernel", run_name="__main__", alter_sys=True)
"""


class Extended(RealNode):
    """A node of a release that has one level more."""

    def command(self, *more: str) -> list[str]:
        python, _, _, *rest = super().command(*more)
        return [python, "-c", WITH_ANOTHER.format(folder=str(self.folder.parent / "levels")), *rest]


def niceness(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])


def test_a_new_level_is_a_module_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "levels").mkdir()
    (tmp_path / "levels" / "toy.py").write_text(MODULE)
    counter = 'level = "toy"'
    node = Extended(tmp_path, IMAGE.format(level="process", packages=PACKAGES, counter=counter, more=""))
    node.boot()
    try:
        with node.attach() as attached:
            rows = {row.server: row for row in attached.kernel.ps.now()}
            assert (rows["counter"].level, rows["teller"].level) == ("toy", "process")
            assert (niceness(rows["counter"].pid), niceness(rows["teller"].pid)) == (7, os.nice(0))
            shown = attached.kernel.protection.now("counter")
            (modest,) = [each for each in shown.mechanisms if each.name == "modest"]
            assert modest.in_force
            assert attached.open("counter", Counter).add.now("x") == 1
            assert attached.kernel.swap.now(Swap(server="teller", level="toy")).level == "toy"
            with pytest.raises(
                BadRequest, match=r"one of process, toy, seccomp, sandbox.*did you mean 'toy'"
            ):
                attached.kernel.swap.now(Swap(server="teller", level="toyy"))
    finally:
        assert node.stop() == 0
