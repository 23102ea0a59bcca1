"""What a server is configured with is rows: since when, and what it was before."""

from pathlib import Path

import msgspec
import pytest

from atoll.ipc.errors import BadRequest
from atoll.ipc.system import kernel as calls
from atoll.ipc.system import records
from atoll.ipc.system.kernel import Load, StartFailed, Swap
from atoll.ipc.system.records import BootRow, ConfigurationRow, after, decode
from atoll.ipc.system.state import Item, State

from .nodes import IMAGE, PACKAGES, RealNode, booted

INTERFACE = """
from atoll.ipc.interface import Interface, call

class Pacer(Interface):
    @call("read", idempotent=True)
    def step(self) -> int: ...
"""
SERVER = """
from atoll.ipc.serve import Config, Serves
from .interface import Pacer

class Settings(Config):
    step: int = 1

class Server(Serves[Pacer]):
    config: Settings

    @Pacer.step.serve
    def step(self) -> int:
        return self.config.step
"""
WITH_MORE = SERVER.replace("    config: Settings\n", "    config: Settings\n    tempo: Settings\n")
HANGS = "\n    async def run(self) -> None:\n        __import__('time').sleep(1000)\n"
"""In its first turn: the row is committed by then."""


def a_package(folder: Path, server: str = SERVER) -> Path:
    package = folder / "pacer"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("interface", INTERFACE), ("server", server)):
        (package / f"{name}.py").write_text(text)
    return package


def image(package: Path, needs: str) -> str:
    more = f'[server.pacer]\npackage = "{package}"\nneeds = {needs}\n'
    return IMAGE.format(level="process", packages=PACKAGES, counter="", more=more)


def rows(state: State, revision: int | None = None) -> dict[tuple[str, str], tuple[Item, object]]:
    """What the pacers are given, and with which version of the row."""
    start = ConfigurationRow.key_of()
    found = state.range.now(start, after(start), as_of=revision).items
    each = [(item, decode(ConfigurationRow, item.value or b"")) for item in found]
    return {(row.server, row.need): (item, row.given) for item, row in each if row.server != "state"}


def given(node: RealNode) -> dict[tuple[str, str], object]:
    with node.attach() as attached:
        state = attached.keyspace(records.KEYSPACE, ["read", "history"])
        return {key: value for key, (_, value) in rows(state).items()}


def test_a_boot_writes_what_the_image_changed_of_it_and_nothing_else(tmp_path: Path) -> None:
    package = a_package(tmp_path)
    with booted(tmp_path, text=image(package, "{ config = { config = { step = 2 } } }")) as node:
        key = ("pacer", "config")
        with node.attach() as attached:
            state = attached.keyspace(records.KEYSPACE, ["read", "history"])
            first, value = rows(state)[key]
            (boot,) = state.range.now(BootRow.key_of(), after(BootRow.key_of())).items
            assert (value, first.revision) == ({"step": 2}, boot.revision)
        node.stop()
        node.boot()
        with node.attach() as attached:
            state = attached.keyspace(records.KEYSPACE, ["read", "history"])
            assert rows(state)[key] == (first, {"step": 2})
        node.stop()
        node.image.write_text(image(package, "{ config = { config = { step = 3 } } }"))
        node.boot()
        with node.attach() as attached:
            state = attached.keyspace(records.KEYSPACE, ["read", "history"])
            second, value = rows(state)[key]
            assert value == {"step": 3} and second.revision > first.revision
            assert rows(state, second.revision - 1)[key][1] == {"step": 2}
            assert len(state.history.now(ConfigurationRow.key_of(*key))) == 2
        node.stop()
        node.image.write_text(IMAGE.format(level="process", packages=PACKAGES, counter="", more=""))
        node.boot()
        assert given(node) == {}


def test_what_is_given_at_a_load_stays_over_boots_until_it_is_undone(tmp_path: Path) -> None:
    needs: dict[str, calls.Binding] = {
        "config": calls.ConfigBinding(value=msgspec.Raw(msgspec.msgpack.encode({"step": 5})))
    }
    with booted(tmp_path) as node:
        broken = a_package(
            tmp_path / "broken", SERVER.replace("    @Pacer", "    def __init__(self): 1 / 0\n\n    @Pacer")
        )
        with node.attach() as attached:
            with pytest.raises(StartFailed):
                attached.kernel.load.now(
                    Load(server="one", package=str(broken), level="process", needs=needs)
                )
            assert given(node) == {}
            for none in (b"\xc4\x00", b"\x81\xa1x\xa1\xff", b"\x81\xa1x" + b"\x91" * 1500 + b"\x90"):
                bad: dict[str, calls.Binding] = {"config": calls.ConfigBinding(value=msgspec.Raw(none))}
                with pytest.raises(BadRequest):
                    attached.kernel.load.now(
                        Load(server="one", package=str(broken), level="process", needs=bad)
                    )
            whole = str(a_package(tmp_path / "whole"))
            attached.kernel.load.now(Load(server="one", package=whole, level="process", needs=needs))
            attached.kernel.load.now(Load(server="other", package=whole, level="process"))
        expected = {("one", "config"): {"step": 5}, ("other", "config"): {}}
        assert given(node) == expected
        node.stop()
        node.boot()
        assert given(node) == expected


def test_a_swap_changes_it_with_what_the_version_asks_for_and_takes_it_back(tmp_path: Path) -> None:
    text = image(a_package(tmp_path), "{ config = { config = { step = 2 } } }")
    before = {("pacer", "config"): {"step": 2}}
    with booted(tmp_path, text=text) as node, node.attach() as attached:
        hangs = a_package(tmp_path / "hangs", WITH_MORE + HANGS)
        with pytest.raises(StartFailed):
            attached.kernel.swap.now(Swap(server="pacer", package=str(hangs)))
        assert given(node) == before
        more = a_package(tmp_path / "more", WITH_MORE)
        done = attached.kernel.swap.now(Swap(server="pacer", package=str(more)))
        assert given(node) == before | {("pacer", "tempo"): {}}
        attached.kernel.swap.now(Swap(server="pacer", version=done.old))
        assert given(node) == before
