"""A node boots, serves, is looked at, ends; dies and comes back."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec import structs

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import NodeDown, NotFound, PeerDied
from atoll.ipc.system.records import KEYSPACE, AnyRow, BootRow, ChannelRow, ProcessRow, after, decode
from atoll.ipc.system.state import State, absolute

from .nodes import IMAGE, PACKAGES, RealNode, booted, interface, wait_for_end

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")


def test_a_node_serves_and_ends_in_order(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            rows = {row.server: row for row in attached.kernel.ps.now()}
            assert set(rows) == {"state", "counter", "teller"}
            assert {row.state for row in rows.values()} == {"serving"}
            told = attached.kernel.node.now()
            assert (told.name, told.boot) == ("test", 1)
            counter, teller = attached.open("counter", Counter), attached.open("teller", Teller)
            assert teller.tell.now("x", 3) == 3
            assert counter.add.now("x") == 4
            assert teller.total.now("x") == 4
        assert node.stop() == 0
        assert node.processes() == []
        assert not (node.folder / "attach.sock").exists()


def test_whoever_boots_reads_what_the_image_is_and_for_which_machine(tmp_path: Path) -> None:
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more="")
    about = 'name = "test"\nabout = "counters, and who tells them"\nprofile = "edge"'
    with booted(tmp_path, text=text.replace('name = "test"', about, 1)) as node:
        assert "for an edge machine: counters, and who tells them" in node.said


def test_a_package_that_an_image_names_by_a_link_is_the_one_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(PACKAGES / "counter")
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more="")
    with (
        booted(tmp_path, text=text.replace(f"{PACKAGES}/counter", "./current", 1)) as node,
        node.attach() as attached,
    ):
        assert attached.open("counter", Counter).add.now("x") == 1


FROM_ONE_THAT_IGNORES = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


class OfOneThatIgnores(RealNode):
    """A node that is booted by a program which does not want to hear of its children's end."""

    def command(self, *more: str) -> list[str]:
        return [sys.executable, "-c", FROM_ONE_THAT_IGNORES, *super().command(*more)]


def test_a_node_is_booted_by_whoever_ignores_the_end_of_children(tmp_path: Path) -> None:
    """That is handed down, and the host reaps them then itself: how they ended would be told to nobody."""
    node = OfOneThatIgnores(tmp_path, IMAGE.format(level="process", packages=PACKAGES, counter="", more=""))
    node.boot()
    try:
        with node.attach() as attached:
            counter = attached.open("counter", Counter)
            with suppress(PeerDied):
                counter.die.now()
            assert counter.get.now("x") == 0, "it was started again"
    finally:
        assert node.stop() == 0


def test_the_next_boot_finds_what_was_acknowledged(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            for _ in range(3):
                attached.open("counter", Counter).add.now("x")
            before = {
                (c.holder, c.server, c.badge, tuple(c.rights))
                for c in attached.kernel.caps.now()
                if c.lasting
            }
        node.stop()
        node.boot()
        with node.attach() as attached:
            assert attached.kernel.node.now().boot == 2
            assert attached.open("counter", Counter).get.now("x") == 3
            after = {
                (c.holder, c.server, c.badge, tuple(c.rights))
                for c in attached.kernel.caps.now()
                if c.lasting
            }
            assert after == before


def test_a_killed_kernel_leaves_no_process_and_loses_nothing(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        attached = node.attach()
        counter = attached.open("counter", Counter)
        acknowledged = 0
        for _ in range(20):
            acknowledged = counter.add.now("x")
        processes = node.processes()
        assert len(processes) >= 4  # the zygote, the watcher, and the servers
        node.kill()
        began = time.monotonic()
        for pid in processes:
            wait_for_end(pid)
        assert time.monotonic() - began < 30  # the promise is a second; a loaded machine only must not hang
        with pytest.raises(NodeDown):
            counter.add.now("x")
        attached.close()
        node.boot()
        with node.attach() as attached:
            assert attached.open("counter", Counter).get.now("x") == acknowledged
            assert {row.state for row in attached.kernel.ps.now()} == {"serving"}


def test_a_second_boot_is_refused_with_a_sentence(node: RealNode) -> None:
    again = subprocess.run(node.command(), capture_output=True, text=True, check=False)
    assert again.returncode == 6
    assert f"a node runs in {node.folder} already" in again.stderr
    assert "Traceback" not in again.stderr
    with node.attach() as attached:
        assert len(attached.kernel.ps.now()) == 3


def test_a_plan_is_shown_and_nothing_changes(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        node.stop()
        text = node.image.read_text()
        node.image.write_text(text.replace('[node]\nlevel = "process"', '[node]\nlevel = "seccomp"'))
        shown = subprocess.run(node.command("--plan"), capture_output=True, text=True, check=True).stdout
        assert "change server counter (level: process -> seccomp)" in shown
        node.image.write_text(text)
        node.boot()
        assert not any("change" in line for line in node.said)


def rows(attached: Attached, table: type[AnyRow]) -> list[AnyRow]:
    page = attached.keyspace(KEYSPACE).range.now(table.table, after(table.table))
    return [decode(table, item.value or b"") for item in page.items]


def test_the_row_of_a_boot_says_also_later_what_was_booted(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            (began,) = rows(attached, BootRow)
        assert node.stop() == 0
        node.boot()
        with node.attach() as attached:
            ended, _ = rows(attached, BootRow)
        assert began.image and ended.ended and structs.replace(ended, ended=0) == began


def test_a_plan_leaves_no_row_and_no_retention(tmp_path: Path) -> None:
    """It was no boot, and nobody has decided on its image."""
    with booted(tmp_path) as node:
        node.stop()
        text = node.image.read_text()
        node.image.write_text(f'[keep]\nhistory = "1h"\n{text}')
        subprocess.run(node.command("--plan"), capture_output=True, check=True)
        node.image.write_text(text)
        node.boot()
        with node.attach() as attached:
            for table in (BootRow, ProcessRow, ChannelRow):
                assert 2 not in {
                    row.boot if table is not BootRow else row.epoch for row in rows(attached, table)
                }
            state = attached.open("state", State)
            kept = state.range.now(absolute(0, b""), absolute(1, b"")).items
            assert kept
            assert all(len(state.history.now(item.key)) == 1 for item in kept)


def test_a_boot_does_what_its_plan_shows(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        node.stop()
        text = node.image.read_text()
        text = text.replace('[node]\nlevel = "process"', '[node]\nlevel = "seccomp"')
        text = text.replace(
            "[keyspace.counter]", "[slice.fast]\ncpu_weight = 300\n[keyspace.other]\n[keyspace.counter]"
        )
        text = text[: text.index("[server.teller]")]
        node.image.write_text(text)
        shown = subprocess.run(node.command("--plan"), capture_output=True, text=True, check=True).stdout
        again = subprocess.run(node.command("--plan"), capture_output=True, text=True, check=True).stdout
        kinds = ("add ", "change ", "retire ", "keep ")
        planned = [line.strip() for line in shown.splitlines() if line.strip().startswith(kinds)]
        assert [line.strip() for line in again.splitlines() if line.strip().startswith(kinds)] == planned
        assert {"retire", "change", "add"} <= {line.split()[0] for line in planned}
        node.boot()
        assert [line.strip() for line in node.said if line.strip().startswith(kinds)] == planned
        node.stop()
        node.boot()
        assert not any(line.strip().startswith(("add ", "change ", "retire ")) for line in node.said), (
            node.said
        )


def test_nodes_on_one_host_do_not_touch_each_other(tmp_path: Path) -> None:
    """Of one name, in two folders."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with booted(folders[0]) as one, booted(folders[1]) as two:
        with one.attach() as first, two.attach() as second:
            assert first.open("counter", Counter).add.now("x", 1) == 1
            assert second.open("counter", Counter).add.now("x", 10) == 10
            processes = two.processes()
            one.kill()
            while one.processes():
                pass
            clean = [*one.command()[:3], "clean", "--folder", str(one.folder)]
            subprocess.run(clean, capture_output=True, text=True, check=True)
            one.boot()
            assert two.processes() == processes
            assert second.open("counter", Counter).add.now("x", 10) == 20
        with one.attach() as first:
            assert first.open("counter", Counter).get.now("x") == 1


def test_detached_it_returns_once_it_serves(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        node.stop()
        done = subprocess.run(node.command("--detach"), capture_output=True, text=True, check=True)
        assert " serves: boot 2" in done.stdout
        with node.attach() as attached:
            kernel = int((node.folder / "lock").read_text())
            assert len(attached.kernel.ps.now()) == 3
            attached.kernel.shutdown.now()
        wait_for_end(kernel)
        assert node.processes() == []


def test_detached_it_serves_also_where_nobody_reads_what_boot_says(tmp_path: Path) -> None:
    """As in `atoll boot --detach | head -1`."""
    with booted(tmp_path) as node:
        node.stop()
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run(node.command("--detach"), stdout=write, stderr=subprocess.PIPE, check=False)
        finally:
            os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")
        kernel = int((node.folder / "lock").read_text())
        with node.attach() as attached:
            assert len(attached.kernel.ps.now()) == 3
            attached.kernel.shutdown.now()
        wait_for_end(kernel)


def test_shutdown_answers_and_then_ends_the_node(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            attached.kernel.shutdown.now(1.0)
            assert node.kernel is not None
            assert node.kernel.wait() == 0
            with pytest.raises(NodeDown):
                attached.kernel.ps.now()
        assert node.processes() == []
        node.stop()


def test_what_lies_in_a_crash_of_the_machine_is_found_again(tmp_path: Path) -> None:
    """Every process at once, the kernel too, as when the power fails; files stay."""
    with booted(tmp_path) as node:
        with node.attach() as attached:
            assert attached.open("counter", Counter).add.now("x", 5) == 5
        assert node.kernel is not None
        for pid in [node.kernel.pid, *node.processes()]:
            os.kill(pid, signal.SIGKILL)
        node.kill()
        node.boot()
        with node.attach() as attached:
            assert attached.open("counter", Counter).get.now("x") == 5


def test_a_wrong_name_is_told_with_the_nearest(node: RealNode) -> None:
    with node.attach() as attached, pytest.raises(NotFound, match="did you mean 'counter'"):
        attached.open("countr", Counter)


@pytest.mark.parametrize("wrong", ['levle = "process"', 'needs = { rooms = { folder = "store" } }'])
def test_an_image_that_is_wrong_changes_nothing(tmp_path: Path, wrong: str) -> None:
    """Wrong by itself, and by what its package says of itself."""
    needs = "" if "needs" in wrong else "needs = {}\n"
    node = RealNode(tmp_path, f'[image]\nname = "x"\n[server.state]\n{needs}{wrong}\n')
    for kept in (False, True):
        if kept:
            (node.folder / "data").mkdir(parents=True)
        done = subprocess.run(node.command(), capture_output=True, text=True, check=False)
        assert done.returncode == 6
        assert ("levle" if "levle" in wrong else "rooms") in done.stderr
        assert "Traceback" not in done.stderr
        assert node.folder.exists() == kept
    assert {path.name for path in node.folder.iterdir()} <= {"data", "lock"}
    assert node.processes() == []


def test_clean_removes_what_a_dead_node_left(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        node.kill()
        assert (node.folder / "attach.sock").exists()
        command = [*node.command()[:3], "clean", "--folder", str(node.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "removed attach.sock" in done.stdout
        assert not (node.folder / "attach.sock").exists()
        assert (node.folder / "data" / "state").exists()


@pytest.mark.parametrize("when", ["start", "first call"])
def test_a_store_that_cannot_run_ends_the_boot_with_a_sentence(tmp_path: Path, when: str) -> None:
    """At its start, and after it said it was ready: neither leaves a boot that hangs."""
    source = Path(importlib.util.find_spec("atoll.servers.state").origin).parent  # type: ignore[union-attr, arg-type]
    broken = tmp_path / "state"
    shutil.copytree(source, broken, ignore=shutil.ignore_patterns("__pycache__"))
    server = (broken / "server.py").read_text()
    at = (
        "    async def start(self) -> None:\n"
        if when == "start"
        else '        self._unbadged("make_keyspace", call.badge)\n'
    )
    assert at in server
    (broken / "server.py").write_text(server.replace(at, f"{at}        import os; os._exit(9)\n", 1))
    restart = "restart = { first = 0, most = 0, limit = 3, within = 60 }"
    node = RealNode(
        tmp_path,
        f'[image]\nname = "x"\n[server.state]\npackage = "{broken}"\nlevel = "process"\n{restart}\nneeds = {{}}\n',
    )
    done = subprocess.run(node.command(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "state" in done.stderr and "status 9" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert node.processes() == []
