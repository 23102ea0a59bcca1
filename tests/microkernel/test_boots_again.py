"""A boot over rows that fit the image, or the packages, no more: what was granted stays out of hands, and the node boots."""

import importlib.util
import shutil
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import BadRequest, NotFound, PeerDied
from atoll.ipc.system.kernel import Binding, CapabilityRow, Load, ServerBinding, SocketBinding, StartFailed
from atoll.ipc.system.records import KEYSPACE, ServerRow, decode
from atoll.ipc.system.state import State, Write, absolute

from .nodes import IMAGE, PACKAGES, RealNode, booted, interface

INTERFACE = """
from atoll.ipc.interface import Interface, call


class First(Interface):
    @call("read", idempotent=True)
    def first(self) -> int: ...


class Second(Interface):
    @call("read", idempotent=True)
    def second(self) -> int: ...
"""
SERVER = """
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Serves

from .interface import First, Second


class Server(Serves[First, Second]):
    rows: Keyspace[int] | None

    @First.first.serve
    def first(self) -> int:
        return 1

    @Second.second.serve
    def second(self) -> int:
        return 2
"""
ONE = SERVER.replace(", Second", "").partition("    @Second")[0]
USER = """
from atoll.ipc.serve import Serves

from .interface import First, Second


class Server(Serves[First]):
    peer: Second

    @First.first.serve
    def first(self) -> int:
        return 1
"""
WEB = """
import socket

from atoll.ipc.serve import Serves

from .interface import First


class Server(Serves[First]):
    web: socket.socket

    @First.first.serve
    def first(self) -> int:
        end, _ = self.web.accept()
        with end:
            return int(end.recv(100))
"""
NEED = 'rows = { keyspace = "counter", rights = ["read"] }'


def made(folder: Path, name: str, server: str) -> Path:
    package = folder / name
    package.mkdir()
    for module, text in {"__init__": "", "interface": INTERFACE, "server": server}.items():
        (package / f"{module}.py").write_text(text)
    return package


def package_interface(package: Path) -> Any:
    spec = importlib.util.spec_from_file_location("first", package / "interface.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.First


def paired(folder: Path) -> Path:
    """A package of two interfaces and one need, which may be unbound."""
    return made(folder, "paired", SERVER)


def image(package: Path, needs: str) -> str:
    more = f'[server.paired]\npackage = "{package}"\nneeds = {{ {needs} }}'
    return IMAGE.format(level="process", packages=PACKAGES, counter="", more=more)


def capabilities(attached: Attached, holder: str, server: str) -> list[CapabilityRow]:
    rows = attached.kernel.caps.now(holder)
    return [row for row in rows if row.holder == holder and row.server == server and row.parent]


def grant(attached: Attached, server: str, interface: str = "Second") -> int:
    rows = attached.kernel.caps.now(server)
    root = next(row for row in rows if row.interface == interface and not row.parent)
    number: int = attached.kernel.grant.now(root.number, "counter", ["read"])
    return number


def boot_again(node: RealNode) -> None:
    assert node.stop() == 0
    node.boot()


def test_a_need_that_the_image_names_no_more_is_no_power(tmp_path: Path) -> None:
    package = paired(tmp_path)
    with booted(tmp_path, text=image(package, NEED)) as node:
        with node.attach() as attached:
            assert capabilities(attached, "paired", "state")
        assert node.stop() == 0
        node.image.write_text(image(package, ""))
        node.boot()
        assert "  retire need paired.rows (no longer in the image; its capability ends)" in node.said
        with node.attach() as attached:
            assert not capabilities(attached, "paired", "state")
        boot_again(node)
        assert not any("retire" in line for line in node.said)


def test_a_grant_on_an_interface_that_a_package_dropped_waits_for_it(tmp_path: Path) -> None:
    package = paired(tmp_path)
    with booted(tmp_path, text=image(package, "")) as node:
        with node.attach() as attached:
            number = grant(attached, "paired")
        (package / "server.py").write_text(ONE)
        boot_again(node)
        assert any("counter is not given capability" in line for line in node.said)
        with node.attach() as attached:
            (left,) = capabilities(attached, "counter", "paired")
            assert left.number == number
            with pytest.raises(NotFound):
                grant(attached, "paired")
        (package / "server.py").write_text(SERVER)
        boot_again(node)
        assert not any("is not given" in line for line in node.said)


def test_a_grant_on_a_loaded_server_that_cannot_be_there_waits_for_it(tmp_path: Path) -> None:
    package = paired(tmp_path)
    with booted(tmp_path) as node:
        with node.attach() as attached:
            attached.kernel.load.now(Load(server="tool", package=str(package), level="process"))
            number = grant(attached, "tool")
        for version in (node.folder / "versions").iterdir():
            if (version / "paired").exists():
                shutil.rmtree(version)
        boot_again(node)
        assert any("counter is not given capability" in line for line in node.said)
        with node.attach() as attached:
            (left,) = capabilities(attached, "counter", "tool")
            assert left.number == number
            attached.kernel.revoke.now(number)
        boot_again(node)
        assert not any("is not given" in line for line in node.said)


def test_a_grant_on_a_loaded_server_whose_need_is_offered_no_more_waits_for_it(tmp_path: Path) -> None:
    package, user = paired(tmp_path), made(tmp_path, "user", USER)
    with booted(tmp_path, text=image(package, "")) as node:
        with node.attach() as attached:
            needs: dict[str, Binding] = {"peer": ServerBinding(server="paired")}
            attached.kernel.load.now(Load(server="user", package=str(user), level="process", needs=needs))
            grant(attached, "user", "First")
        (package / "server.py").write_text(ONE)
        boot_again(node)
        assert any("server user is left out" in line for line in node.said)
        assert any("counter is not given capability" in line for line in node.said)
        (package / "server.py").write_text(SERVER)
        boot_again(node)
        assert not any("is not given" in line for line in node.said)


def test_a_server_that_is_to_call_itself_is_not_loaded(node: RealNode, tmp_path: Path) -> None:
    guest = made(tmp_path, "guest", USER.replace("peer: Second", "peer: First"))
    needs: dict[str, Binding] = {"peer": ServerBinding(server="guest")}
    with node.attach() as attached, pytest.raises(BadRequest, match="a server other than guest itself"):
        attached.kernel.load.now(Load(server="guest", package=str(guest), level="process", needs=needs))


def test_a_server_whose_row_says_that_it_is_to_call_itself_keeps_no_node_from_booting(tmp_path: Path) -> None:
    """Until lately it was loaded, and only its start failed: a kernel that died meanwhile left the row."""
    guest = made(tmp_path, "guest", USER.replace("peer: Second", "peer: First"))
    needs: dict[str, Binding] = {"peer": ServerBinding(server="paired")}
    load = Load(server="guest", package=str(guest), level="process", needs=needs)
    with booted(tmp_path, text=image(paired(tmp_path), "")) as node:
        with node.attach() as attached:
            attached.kernel.load.now(load)
            state = attached.open("state", State)
            key = absolute(state.keyspaces.now()[KEYSPACE], ServerRow.key_of("guest"))
            found = state.get.now(key)
            assert found is not None
            itself: dict[str, Binding] = {"peer": ServerBinding(server="guest")}
            bound = msgspec.msgpack.encode(structs.replace(load, needs=itself))
            row = structs.replace(decode(ServerRow, found.value or b""), load=bound)
            state.commit.now([Write(key, row.value())])
        boot_again(node)
        assert any(
            "server guest is left out" in line and "other than guest itself" in line for line in node.said
        )
        with node.attach() as attached:
            assert {row.state for row in attached.kernel.ps.now()} == {"serving"}


def test_who_needs_a_server_that_cannot_be_there_is_left_out_too(tmp_path: Path) -> None:
    """In whatever order their rows come: `above` is before `user`, and `visitor` behind it."""
    package, user = paired(tmp_path), made(tmp_path, "user", USER)
    guest = made(tmp_path, "guest", USER.replace("peer: Second", "peer: First"))
    with booted(tmp_path, text=image(package, "")) as node:
        with node.attach() as attached:
            needs: dict[str, Binding] = {"peer": ServerBinding(server="paired")}
            attached.kernel.load.now(Load(server="user", package=str(user), level="process", needs=needs))
            for name, peer in (("visitor", "user"), ("above", "user"), ("highest", "above")):
                needs = {"peer": ServerBinding(server=peer)}
                attached.kernel.load.now(Load(server=name, package=str(guest), level="process", needs=needs))
        (package / "server.py").write_text(ONE)
        boot_again(node)
        for name in ("user", "visitor", "above", "highest"):
            assert any(f"server {name} is left out" in line for line in node.said)
        (package / "server.py").write_text(SERVER)
        boot_again(node)
        with node.attach() as attached:
            assert {row.state for row in attached.kernel.ps.now()} == {"serving"}


def test_who_listens_at_a_path_does_so_also_at_the_next_boot(tmp_path: Path) -> None:
    """The socket's file is left by whoever had it before; where somebody listens there, it is theirs."""
    package, path = made(tmp_path, "web", WEB), tmp_path / "web.sock"
    needs: dict[str, Binding] = {"web": SocketBinding(listen=str(path))}
    what = Load(server="web", package=str(package), level="process", needs=needs)
    with booted(tmp_path) as node:
        with socket.socket(socket.AF_UNIX) as others, node.attach() as attached:
            others.bind(str(path))
            others.listen()
            with pytest.raises(StartFailed, match="Address already in use"):
                attached.kernel.load.now(what)
        with node.attach() as attached:
            nowhere: dict[str, Binding] = {"web": SocketBinding(listen="127.0.0.1:99999")}
            with pytest.raises(BadRequest, match="listen: expected HOST:PORT"):
                attached.kernel.load.now(structs.replace(what, needs=nowhere))
            attached.kernel.load.now(what)
        for _ in range(2):
            with node.attach() as attached, socket.socket(socket.AF_UNIX) as client:
                first = attached.open("web", package_interface(package)).first.start()
                client.connect(str(path))
                client.sendall(b"7")
                assert first.result() == 7
            boot_again(node)
        path.unlink()
        path.write_text("not theirs")
        boot_again(node)
        assert any("server web stays down" in line for line in node.said)
        assert path.read_text() == "not theirs"


def test_who_listens_at_an_abstract_address_is_loaded(node: RealNode, tmp_path: Path) -> None:
    package, address = made(tmp_path, "web", WEB), f"\0{tmp_path}"
    needs: dict[str, Binding] = {"web": SocketBinding(listen=address)}
    with node.attach() as attached, socket.socket(socket.AF_UNIX) as client:
        attached.kernel.load.now(Load(server="web", package=str(package), level="process", needs=needs))
        first = attached.open("web", package_interface(package)).first.start()
        client.connect(address)
        client.sendall(b"7")
        assert first.result() == 7


def test_who_calls_a_server_that_stays_stopped_is_told_so_also_after_a_boot(tmp_path: Path) -> None:
    """As who called it when it was stopped, though the channel is another."""

    def total(attached: Attached) -> int:
        teller = attached.open("teller", interface("teller", "Teller"))
        found: int = teller.with_(deadline=60.0).total.now("x")
        return found

    with booted(tmp_path) as node:
        with node.attach() as attached:
            attached.kernel.stop.now("counter")
            attached.kernel.restart.now("teller")
            with pytest.raises(PeerDied):
                total(attached)
        boot_again(node)
        with node.attach() as attached:
            with pytest.raises(PeerDied):
                total(attached)
            attached.kernel.restart.now("counter")
            assert total(attached) == 0
