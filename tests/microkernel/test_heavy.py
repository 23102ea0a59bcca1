"""A heavy server starts by `exec`, whatever the image or whoever loads it says: nothing that it imports is forked."""

import shutil
from pathlib import Path

from atoll.ipc.system.kernel import Load, Swap

from .nodes import IMAGE, PACKAGES, booted, interface

Counter = interface("counter", "Counter")


def heavy(folder: Path) -> Path:
    """The package `counter`, which says that it is heavy."""
    package = folder / "counter"
    shutil.copytree(PACKAGES / "counter", package)
    server = package / "server.py"
    server.write_text(
        server.read_text().replace("(Serves[Counter]):", "(Serves[Counter]):\n    heavy = True\n")
    )
    return package


def executed(pid: int) -> bool:
    """Whether a process is an interpreter of its own, and no fork of the zygote."""
    return b"--exec" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def test_a_heavy_server_is_executed_from_the_image_by_load_and_after_a_swap(tmp_path: Path) -> None:
    package = heavy(tmp_path / "heavy")
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more="")
    text = text.replace(f"{PACKAGES}/counter", str(package))
    with booted(tmp_path, text=text) as node, node.attach() as attached:

        def how(server: str) -> tuple[str, bool]:
            row = {row.server: row for row in attached.kernel.ps.now()}[server]
            return row.start, executed(row.pid)

        assert how("counter") == ("exec", True)
        assert how("teller") == ("zygote", False)
        assert attached.open("counter", Counter).add.now("x") == 1
        attached.kernel.load.now(Load(server="second", package=str(package), start="zygote"))
        assert how("second") == ("exec", True)
        attached.kernel.swap.now(Swap(server="second", package=str(PACKAGES / "counter")))
        assert how("second") == ("zygote", False)
