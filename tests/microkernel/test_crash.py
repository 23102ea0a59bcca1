"""Servers die; their clients notice little, and the kernel says why."""

import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import BadRequest, PeerDied
from atoll.ipc.system.kernel import ProcessRow
from atoll.ipc.system.records import KEYSPACE, CrashRow, after, decode

from .nodes import IMAGE, PACKAGES, RealNode, booted, interface, wait_for_end

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")

FRAGILE = "restart = { first = 0, most = 0, limit = 3, within = 60 }"


def pid_of(node: RealNode, server: str) -> int:
    with node.attach() as attached:
        return next(row.pid for row in attached.kernel.ps.now() if row.server == server)


def test_a_server_that_dies_in_a_call_is_restarted_on_the_same_channel(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.add.now("x", 7)
        with pytest.raises(PeerDied) as told:
            counter.die.now()
        assert told.value.outcome_unknown
        assert counter.get.now("x") == 7  # the same proxy, the next process
        assert counter.add.now("x") == 8

        def row() -> ProcessRow:
            return next(row for row in attached.kernel.ps.now() if row.server == "counter")

        while row().state == "starting":  # it serves before the kernel has heard that it does
            pass
        assert (row().restarts, row().state) == (1, "serving")


def cores_are_left(folder: Path) -> str:
    """Why this host leaves no core of a program that crashes in a folder; empty if it does."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")):
        return f"a core goes to {pattern} here, which is not this test's"
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    done = subprocess.run([sys.executable, "-c", "import os; os.abort()"], cwd=folder, check=False)
    assert done.returncode == -signal.SIGABRT
    found = list(folder.glob("core*"))
    for core in found:
        core.unlink()
    return "" if found else f"a program may write {hard} bytes of core here, and wrote none"


@pytest.fixture
def unlimited_cores(tmp_path: Path) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    (tmp_path / "plain").mkdir()
    try:
        if why := cores_are_left(tmp_path / "plain"):
            pytest.skip(why)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.parametrize("level", ["process", "seccomp"])
def test_a_server_that_crashes_leaves_no_core(tmp_path: Path, unlimited_cores: None, level: str) -> None:
    """It may hold private words; where the node was booted by somebody whose programs leave cores. At level `sandbox` it is
    the first process of its own: none but SIGKILL reaches it from outside."""
    with booted(tmp_path, level=level) as node, node.attach() as attached:
        folders = {tmp_path, Path.cwd(), Path("/")}
        for server in ("counter", "state"):
            pid = pid_of(node, server)
            with suppress(PermissionError):  # who is not root may not look where it is
                folders.add(Path(os.readlink(f"/proc/{pid}/cwd")))
            os.kill(pid, signal.SIGABRT)
            wait_for_end(pid)
        assert attached.open("counter", Counter).add.now("x", 7) == 7
        left = {core for folder in folders for core in folder.glob("core*") if core.is_file()}
        left |= {core for core in tmp_path.rglob("core*") if core.is_file()}
    assert not left


def test_who_passes_a_capability_to_a_server_that_stays_down_hears_of_it(tmp_path: Path) -> None:
    """It waits for the restart, and that does not come."""
    with (
        booted(tmp_path, counter="restart = { first = 3600, most = 3600 }") as node,
        node.attach() as attached,
    ):

        def state() -> str:
            return next(row.state for row in attached.kernel.ps.now() if row.server == "counter")

        channel = attached._port(attached.kernel.open.now("counter", "Counter").token).channel
        opened = attached.kernel.open.now("teller", "Teller")
        os.kill(pid_of(node, "counter"), signal.SIGKILL)
        while state() != "restarting":
            pass
        passing = attached.kernel.transfer.start(opened.number, channel)
        attached.kernel.stop.now("counter")
        with pytest.raises(BadRequest, match="one to a server that runs"):
            passing.result()


def test_servers_that_call_each_other_survive_each_others_end(node: RealNode) -> None:
    with node.attach() as attached:
        teller = attached.open("teller", Teller)
        teller.tell.now("x", 1)
        for server in ("counter", "teller", "counter"):
            pid = pid_of(node, server)
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
            assert teller.total.now("x") == 1


def test_the_store_dies_and_nothing_acknowledged_is_lost(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        acknowledged = 0
        for turn in range(3):
            for _ in range(5):
                acknowledged = counter.add.now("x")
            os.kill(pid_of(node, "state"), signal.SIGKILL)
            assert counter.add.now("x") == acknowledged + 1, turn
        assert next(row.restarts for row in attached.kernel.ps.now() if row.server == "state") == 3


def test_once_means_once_while_the_server_is_killed(node: RealNode) -> None:
    """Calls are under way while server and store are killed in turn: each counts exactly once."""
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        stop = threading.Event()
        done = 0

        def add() -> None:
            nonlocal done
            with node.attach() as own:
                proxy = own.open("counter", Counter)
                while not stop.is_set():
                    proxy.add.now("x")
                    done += 1

        worker = threading.Thread(target=add)
        worker.start()
        try:
            for server in ("counter", "state", "counter"):
                before = done
                while done < before + 5 and worker.is_alive():
                    counter.get.now("x")
                pid = pid_of(node, server)
                os.kill(pid, signal.SIGKILL)
                wait_for_end(pid)
        finally:
            stop.set()
            worker.join()
        assert done > 10
        assert counter.add.now("x", 0) == done


def test_once_means_once_where_the_store_has_committed_and_not_replied(tmp_path: Path) -> None:
    source = Path(importlib.util.find_spec("atoll.servers.state").origin).parent  # type: ignore[union-attr, arg-type]
    broken = tmp_path / "state"
    shutil.copytree(source, broken, ignore=shutil.ignore_patterns("__pycache__"))
    text = (broken / "group.py").read_text()
    at = "        self._ownership.bound()\n"
    assert at in text
    dies = (
        "        import os\n"
        f"        if os.path.exists({str(tmp_path / 'node/data/state/fall')!r}):\n"
        f"            os.unlink({str(tmp_path / 'node/data/state/fall')!r})\n"
        "            os._exit(9)\n"
    )
    (broken / "group.py").write_text(text.replace(at, at + dies, 1))
    image = IMAGE.format(level="process", packages=PACKAGES, counter="", more="")
    image = image.replace("[server.state]\n", f'[server.state]\npackage = "{broken}"\n')
    with booted(tmp_path, text=image) as node, node.attach() as attached:
        counter = attached.open("counter", Counter)
        assert counter.add.now("x", 5) == 5
        fall = node.folder / "data" / "state" / "fall"
        for turn in range(3):
            fall.touch()
            assert counter.add.now("x") == 6 + turn
            assert not fall.exists()
        assert counter.get.now("x") == 8
        row = next(row for row in attached.kernel.ps.now() if row.server == "state")
        assert row.restarts == 3


def test_a_crash_loop_stops_and_says_so(tmp_path: Path) -> None:
    with booted(tmp_path, counter=FRAGILE) as node, node.attach() as attached:
        counter = attached.open("counter", Counter)
        for _ in range(3):
            with pytest.raises(PeerDied):
                counter.die.now()
        while (
            row := next(row for row in attached.kernel.ps.now() if row.server == "counter")
        ).state != "failed":
            pass
        assert "crashed 3 times" in row.reason
        with pytest.raises(PeerDied) as told:
            counter.get.now("x")
        assert not told.value.outcome_unknown
        attached.kernel.restart.now("counter")
        assert counter.get.now("x") == 0  # the same proxy, once a person has started it again


ONCE = """

class Server(Server):
    async def start(self) -> None:
        if await self.rows.get("started"):
            raise ValueError("once is enough")
        self.rows.put("started", 1)
"""


def test_a_crash_is_a_row_also_where_the_restarts_fail(tmp_path: Path) -> None:
    package = tmp_path / "counter"
    shutil.copytree(PACKAGES / "counter", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "server.py").open("a") as out:
        out.write(ONCE)
    text = IMAGE.format(level="process", packages=PACKAGES, counter=FRAGILE, more="")
    text = text.replace(f'"{PACKAGES}/counter"', f'"{package}"')
    with booted(tmp_path, text=text) as node, node.attach() as attached:
        with pytest.raises(PeerDied):
            attached.open("counter", Counter).die.now()
        assert [how.partition(";")[0].partition(":")[0] for how in crashes(attached)] == [
            "exited with status 3", "could not be started again", "could not be started again"
        ]  # fmt: skip


def test_a_crash_is_a_row_also_where_no_process_is_started_again(tmp_path: Path) -> None:
    with booted(tmp_path, counter=FRAGILE) as node, node.attach() as attached:
        rows = attached.kernel.caps.now("counter")
        need = next(row.number for row in rows if (row.holder, row.server) == ("counter", "state"))
        attached.kernel.revoke.now(need)
        os.kill(pid_of(node, "counter"), signal.SIGKILL)
        first, *others = crashes(attached)
        assert first.startswith("was killed by SIGKILL")
        assert len(others) == 2 and all("was revoked" in how for how in others)


def crashes(attached: Attached) -> list[str]:
    """How the counter crashed each time, once it stays down."""
    start, found = CrashRow.key_of("counter"), list[CrashRow]()
    while not found or found[-1].again:
        page = attached.keyspace(KEYSPACE).range.now(start, after(start))
        found = [decode(CrashRow, item.value or b"") for item in page.items]
    return [row.how for row in found]


def test_a_crash_is_a_row_with_its_cause_and_last_words(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.say.now("so long")
        with pytest.raises(PeerDied):
            counter.die.now()
        counter.get.now("x")
        lines = [line.text for line in attached.kernel.logs.now(0, "counter", False)]
        assert any("so long" in line for line in lines)
        assert any("exited with status 3" in line for line in lines)


def test_a_server_that_hangs_is_ended_and_the_handler_named(tmp_path: Path) -> None:
    with booted(tmp_path, counter="watchdog = 1") as node, node.attach() as attached:
        counter = attached.open("counter", Counter)
        with pytest.raises(PeerDied):
            counter.spin.now(600.0)
        lines = [line.text for line in attached.kernel.logs.now(0, "counter", False)]
        assert any("Counter.spin" in line for line in lines), lines
