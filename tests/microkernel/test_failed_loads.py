"""Who waits for a server that is being loaded, when the load comes to nothing."""

import os
import signal
from pathlib import Path

import pytest

from atoll.ipc.errors import NotFound
from atoll.ipc.system.kernel import Load, StartFailed

from .nodes import RealNode

INTERFACE = """
from atoll.ipc.interface import Interface, call


class Hanging(Interface):
    @call("look", idempotent=True)
    def pulse(self) -> int: ...
"""
SERVER = """
import trio

from atoll.ipc.serve import Serves

from .interface import Hanging


class Server(Serves[Hanging]):
    async def start(self) -> None:
        await trio.sleep_forever()

    @Hanging.pulse.serve
    def pulse(self) -> int:
        return 1
"""


def test_a_restart_of_a_server_whose_load_fails_meanwhile_finds_nobody(
    node: RealNode, tmp_path: Path
) -> None:
    package = tmp_path / "hanging"
    package.mkdir()
    for name, text in {"__init__": "", "interface": INTERFACE, "server": SERVER}.items():
        (package / f"{name}.py").write_text(text)

    with node.attach() as attached:

        def pids() -> list[int]:
            return [row.pid for row in attached.kernel.ps.now() if row.server == "hanging"]

        loading = attached.kernel.load.start(Load(server="hanging", package=str(package), level="process"))
        while not any(found := pids()):
            assert not loading.done()
        restarting = attached.kernel.restart.start("hanging", 1.0)
        assert pids() == found, "it waits: the kernel has heard of it by now"
        os.kill(found[0], signal.SIGKILL)
        with pytest.raises(StartFailed):
            loading.result()
        with pytest.raises(NotFound):
            restarting.result()
        assert pids() == []
