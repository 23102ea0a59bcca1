"""Grants to a server that is being swapped: they are the process's that is the server afterwards."""

import os
import signal
from pathlib import Path

import pytest

from atoll.ipc.interface import Interface, call
from atoll.ipc.system.kernel import StartFailed, Swap, WrongState
from atoll.ipc.system.records import ProcessRow, after, decode
from atoll.ipc.system.state import State

from .nodes import IMAGE, PACKAGES, booted, interface

Counter = interface("counter", "Counter")


class Heir(Interface):
    @call("read")
    def use(self) -> list[int]: ...


INTERFACE = """
from atoll.ipc.interface import Interface, call


class Counter(Interface):
    @call("read", idempotent=True)
    def get(self, key: str) -> int: ...


class Heir(Interface):
    @call("read")
    def use(self) -> list[int]: ...
"""
SERVER = """
import trio

from atoll.ipc.runtime.deliveries import Deliveries
from atoll.ipc.serve import Serves

from .interface import Counter, Heir

GIVEN = []
_deliver = Deliveries.deliver


def deliver(self, message):
    GIVEN.append((self, message.port))
    _deliver(self, message)


Deliveries.deliver = deliver


class Server(Serves[Heir]):
    async def start(self) -> None:
        pass

    @Heir.use.serve
    async def use(self) -> list[int]:
        return [await by.proxy(Counter, port).get("x") for by, port in GIVEN if port.interface == "Counter"]
"""


def test_a_grant_during_a_swap_that_is_refused_is_the_old_process_s(tmp_path: Path) -> None:
    package = tmp_path / "heir"
    package.mkdir()
    for name, text in {"__init__": "", "interface": INTERFACE, "server": SERVER}.items():
        (package / f"{name}.py").write_text(text)
    more = f'[server.heir]\npackage = "{package}"\nneeds = {{}}'
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more=more)
    with booted(tmp_path, text=text) as node, node.attach() as attached:
        attached.open("counter", Counter).add.now("x", 7)
        heir = attached.open("heir", Heir)
        (package / "server.py").write_text(
            SERVER.replace("        pass", "        await trio.sleep_forever()")
        )
        rows = attached.keyspace("kernel", ["read"])
        (old,) = heirs(rows)
        swap = attached.kernel.swap.start(Swap(server="heir", package=str(package)))
        while not (new := heirs(rows) - {old}):
            assert not swap.done()
        root = next(row.number for row in attached.kernel.caps.now("counter") if row.parent == 0)
        grants = [
            attached.kernel.grant.start(root, "heir", ["read"], 0.0, lasting) for lasting in (True, False)
        ]
        while len([row for row in attached.kernel.caps.now("heir") if row.server == "counter"]) < 2:
            pass
        for pid in new:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(StartFailed):
            swap.result()
        assert all(grant.result() for grant in grants)
        while len(found := heir.use.now()) < 2:
            pass  # it hears of them beside its calls
        assert found == [7, 7]


def heirs(kernel: State, server: str = "heir") -> set[int]:
    """Processes of the server, as the record has them."""
    page = kernel.range.now(ProcessRow.table, after(ProcessRow.table))
    found = [decode(ProcessRow, row.value or b"") for row in page.items]
    return {row.pid for row in found if row.server == server}


def test_what_ends_with_a_process_is_not_granted_where_there_is_none(tmp_path: Path) -> None:
    """It would be handed to nobody, and held all the same. A lasting one waits for the next start."""
    with booted(tmp_path) as node, node.attach() as attached:
        root = next(row.number for row in attached.kernel.caps.now("counter") if not row.parent)
        attached.kernel.stop.now("teller")
        before = {row.number for row in attached.kernel.caps.now()}
        with pytest.raises(WrongState, match="teller"):
            attached.kernel.grant.now(root, "teller", ["read"], 0.0, False)
        assert {row.number for row in attached.kernel.caps.now()} == before
        granted = attached.kernel.grant.now(root, "teller", ["read"])
        assert {row.number for row in attached.kernel.caps.now()} == before | {granted}
