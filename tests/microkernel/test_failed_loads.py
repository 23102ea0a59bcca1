"""Who waits for a server that is being loaded, when the load comes to nothing."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.system.kernel import Load, Slice, SocketBinding, StartFailed, Swap
from atoll.ipc.system.records import KEYSPACE, SliceRow
from atoll.microkernel.boot import take_down

from .nodes import IMAGE, PACKAGES, RealNode, booted

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


def hanging(folder: Path) -> Path:
    """A package that never comes up."""
    package = folder / "hanging"
    package.mkdir()
    for name, text in {"__init__": "", "interface": INTERFACE, "server": SERVER}.items():
        (package / f"{name}.py").write_text(text)
    return package


def test_a_package_that_says_at_length_why_it_is_none_is_quoted_in_part(
    node: RealNode, tmp_path: Path
) -> None:
    package = hanging(tmp_path)
    (package / "server.py").write_text('raise ValueError("x" * 300_000)')
    with node.attach() as attached, pytest.raises(StartFailed, match="import: ValueError: xxx") as told:
        attached.kernel.load.now(Load(server="hanging", package=str(package), level="process"))
    assert len(str(told.value)) < 5000


def test_a_restart_of_a_server_whose_load_fails_meanwhile_finds_nobody(
    node: RealNode, tmp_path: Path
) -> None:
    package = hanging(tmp_path)
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


def test_who_passes_a_capability_to_a_server_whose_load_fails_meanwhile_hears_of_it(
    node: RealNode, tmp_path: Path
) -> None:
    package = hanging(tmp_path)
    with node.attach() as attached:

        def pids() -> list[int]:
            return [row.pid for row in attached.kernel.ps.now() if row.server == "hanging"]

        loading = attached.kernel.load.start(Load(server="hanging", package=str(package), level="process"))
        while not any(found := pids()):
            assert not loading.done()
        root = next(row.number for row in attached.kernel.caps.now("hanging") if row.server == "hanging")
        channel = attached._port(attached.kernel.mint.now(root, 1)).channel
        passing = attached.kernel.transfer.start(attached.kernel.open.now("teller").number, channel)
        assert pids() == found, "it waits: the kernel has heard of it by now"
        os.kill(found[0], signal.SIGKILL)
        with pytest.raises(StartFailed):
            loading.result()
        with pytest.raises(BadRequest, match="one to a server that runs"):
            passing.result()


def test_a_slice_of_a_server_whose_load_fails_meanwhile_is_none(node: RealNode, tmp_path: Path) -> None:
    """It would hold for whoever is loaded under that name next."""
    package = hanging(tmp_path)
    with node.attach() as attached:

        def pids() -> list[int]:
            return [row.pid for row in attached.kernel.ps.now() if row.server == "hanging"]

        loading = attached.kernel.load.start(Load(server="hanging", package=str(package), level="process"))
        while not any(found := pids()):
            assert not loading.done()
        setting = attached.kernel.set_slice.start("hanging", Slice(cpu_weight=200))
        assert pids() == found, "it waits: the kernel has heard of it by now"
        os.kill(found[0], signal.SIGKILL)
        with pytest.raises(StartFailed):
            loading.result()
        with pytest.raises(NotFound):
            setting.result()
        assert attached.keyspace(KEYSPACE, ["read"]).get.now(SliceRow.key_of("server hanging")) is None


async def test_a_node_that_ends_while_a_load_fails_ends_all_that_are_left() -> None:
    """The list of whom to end is made before the first of them has ended."""
    ended: list[str] = []
    node: Any = SimpleNamespace(
        servers={
            name: SimpleNamespace(name=name, changing=trio.Lock(), needs={})
            for name in ("state", "loading", "counter")
        },
        down=trio.Event(),
        down_deadline=1.0,
        failure="ended by the test",
        nursery=SimpleNamespace(cancel_scope=trio.CancelScope()),
        parties={},
        store=SimpleNamespace(flush=trio.lowlevel.checkpoint, end=lambda: ended.append("the store")),
    )

    async def end(server: Any, deadline: float, reason: str) -> None:
        ended.append(server.name)
        node.servers.pop("loading", None)  # its load came to nothing meanwhile

    parts: Any = SimpleNamespace(
        gate=SimpleNamespace(close=lambda: None),
        readers=SimpleNamespace(close=trio.lowlevel.checkpoint),
        supervisor=SimpleNamespace(end=end),
        logs=SimpleNamespace(write_rows=lambda: None),
        authority=SimpleNamespace(closed=lambda server: None),
    )
    await take_down(node, parts)
    assert ended == ["counter", "state", "the store"]


def test_what_the_host_refuses_a_load_or_a_swap_is_told_as_what_it_is(tmp_path: Path) -> None:
    """No room, or no user id that is left: it came as a bug of the kernel."""
    uids = 'account = "all"\nuids = "60010-60012"\n'
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more="").replace(
        'account = "all"\n', uids, 1
    )
    load = Load(server="fourth", package=str(PACKAGES / "counter"))
    with booted(tmp_path, text=text) as node, node.attach() as attached:
        with pytest.raises(BadRequest, match="expected an absolute path"):
            attached.kernel.load.now(Load(server="fourth", package="/no\0path"))
        if not os.geteuid():
            with pytest.raises(StartFailed, match="user ids 60010-60012 are all taken"):
                attached.kernel.load.now(load)
        versions, aside = node.folder / "versions", node.folder / "aside"
        versions.rename(aside)
        versions.touch()  # in its place there can be no copy
        try:
            with pytest.raises(StartFailed, match=r"'fourth' failed at copy: .*File exists"):
                attached.kernel.load.now(load)
            with pytest.raises(StartFailed, match=r"'counter' failed at copy: .*File exists"):
                attached.kernel.swap.now(Swap(server="counter", package=load.package))
        finally:
            versions.unlink()
            aside.rename(versions)
        assert {row.server: row.state for row in attached.kernel.ps.now()}.keys() == {
            "state",
            "counter",
            "teller",
        }


LISTENS = SERVER.replace("import trio\n", "import socket\n\nimport trio\n").replace(
    "    async def start", "    door: socket.socket\n\n    async def start"
)


@pytest.mark.parametrize(
    "listen",
    ["127.0.0.1:99999", "127.0.0.1:\N{SUPERSCRIPT TWO}", "\N{SNOWMAN}" * 70 + ":0", "no\0path"],
    ids=["port", "digit", "host", "path"],
)
def test_an_address_that_nobody_can_listen_at_is_named(node: RealNode, tmp_path: Path, listen: str) -> None:
    package = hanging(tmp_path)
    (package / "server.py").write_text(LISTENS)
    load = Load(server="hanging", package=str(package), needs={"door": SocketBinding(listen=listen)})
    with node.attach() as attached, pytest.raises(BadRequest, match=r"listen: expected HOST:PORT"):
        attached.kernel.load.now(load)
