"""A kernel dies, or is told to end, and whatever its servers do against it, nothing of the node is left."""

import importlib.util
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.microkernel.processes import Exit
from atoll.microkernel.remains import survivors
from atoll.microkernel.slices import hierarchy
from atoll.microkernel.supervisor import Supervisor
from tests.kit.groups import control_groups

from .nodes import STUBBORN, RealNode, booted, groups_of, interface, wait_for_end

Counter = interface("counter", "Counter")
Stubborn = interface("stubborn", "Stubborn")

FROM_STATE = 'package = "{package}"\n'


def grouped() -> None:
    if not control_groups():
        pytest.skip("no control groups here: who leaves both its session and its program is not found")


def pid_of(node: RealNode, server: str) -> int:
    with node.attach() as attached:
        return next(row.pid for row in attached.kernel.ps.now() if row.server == server)


def zygote_of(node: RealNode) -> int:
    """The first process with the zygote's command line: its children have the same."""
    found = survivors(f"atoll-node={node.folder}")
    zygotes = [each for each in found if "atoll.microkernel.zygote" in each.command]
    return min(zygotes, key=lambda each: (each.started, each.pid)).pid


def hostile_store(folder: Path) -> str:
    """The store's package, whose process does not die with the kernel."""
    source = Path(importlib.util.find_spec("atoll.servers.state").origin).parent  # type: ignore[union-attr, arg-type]
    copy = folder / "state"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / "server.py").read_text()
    at = "    async def start(self) -> None:\n"
    assert at in text
    line = "        import ctypes; ctypes.CDLL(None).prctl(1, 0)\n"
    (copy / "server.py").write_text(text.replace(at, at + line, 1))
    return str(copy)


@pytest.mark.parametrize("program", [False, True])
def test_children_of_a_server_do_not_outlive_a_killed_kernel(tmp_path: Path, program: bool) -> None:
    if program:
        grouped()
    with booted(tmp_path, more=STUBBORN) as node:
        with node.attach() as attached:
            child = attached.open("stubborn", Stubborn).leave_child.now(program)
        processes = node.processes()
        node.kill()
        for pid in (child, *processes):
            wait_for_end(pid)


def test_a_server_that_does_not_die_with_the_kernel_is_ended(tmp_path: Path) -> None:
    with booted(tmp_path, more=STUBBORN) as node:
        with node.attach() as attached:
            pid = attached.open("stubborn", Stubborn).outlive.now()
        os.kill(pid, signal.SIGSTOP)
        node.kill()
        wait_for_end(pid)


def test_a_frozen_server_does_not_outlive_a_killed_kernel(node: RealNode) -> None:
    pid = pid_of(node, "counter")
    with node.attach() as attached:
        attached.kernel.freeze.now("counter")
    node.kill()
    wait_for_end(pid)


def test_survivors_of_kernel_and_zygote_are_ended_by_the_next_boot(tmp_path: Path) -> None:
    """The store among them, which holds the node's lock."""
    with booted(tmp_path, more=STUBBORN) as node:
        with node.attach() as attached:
            assert attached.open("counter", Counter).add.now("x", 5) == 5
            stubborn = attached.open("stubborn", Stubborn)
            child, server = stubborn.leave_child.now(False), stubborn.outlive.now()
        assert node.stop() == 0
        package = FROM_STATE.format(package=hostile_store(tmp_path))
        text = node.image.read_text()
        node.image.write_text(text.replace("[server.state]\n", f"[server.state]\n{package}"))
        node.boot()
        with node.attach() as attached:
            stubborn = attached.open("stubborn", Stubborn)
            child, server = stubborn.leave_child.now(False), stubborn.outlive.now()
        left = [child, server, pid_of(node, "state")]
        zygote = zygote_of(node)
        for pid in (zygote, *left):
            os.kill(pid, signal.SIGSTOP)  # none of them hears of the kernel's end
        node.kill()
        os.kill(zygote, signal.SIGKILL)
        assert [pid for pid in left if Path(f"/proc/{pid}").exists()] == left
        clean = [*node.command()[:3], "clean", "--folder", str(node.folder)]
        node.image.write_text(text)
        node.boot()
        for pid in left:
            wait_for_end(pid)
        assert any("ended" in line for line in node.said)
        running = subprocess.run(clean, capture_output=True, text=True, check=True).stdout
        assert "it runs" in running
        with node.attach() as attached:
            assert attached.open("counter", Counter).get.now("x") == 5


def test_survivors_that_cannot_be_ended_are_named(tmp_path: Path) -> None:
    """A control group of somebody else's, of version 1, keeps them frozen: they hear no signal until they are thawed."""
    mount = next((m for m in hierarchy.mounts() if m.version == 1 and "freezer" in m.controllers), None)
    if mount is None or not os.access(mount.base, os.W_OK):
        pytest.skip("no freezer of version 1 here")
    ice = mount.base / f"atoll-test-{os.getpid()}"
    ice.mkdir()
    try:
        with booted(tmp_path, more=STUBBORN) as node:
            with node.attach() as attached:
                stubborn = attached.open("stubborn", Stubborn)
                pids = sorted((stubborn.leave_child.now(False), stubborn.outlive.now()))
            for pid in pids:
                (ice / "cgroup.procs").write_text(str(pid))
            (ice / "freezer.state").write_text("FROZEN")
            while (ice / "freezer.state").read_text().strip() != "FROZEN":
                pass
            node.kill()
            refused = subprocess.run(node.command(), capture_output=True, text=True, check=False)
            assert refused.returncode == 6
            assert f"cannot be ended ({pids[0]}, {pids[1]})" in refused.stderr
            (ice / "freezer.state").write_text("THAWED")
            for pid in pids:
                wait_for_end(pid)
            node.boot()
    finally:
        (ice / "freezer.state").write_text("THAWED")
        while (ice / "cgroup.procs").read_text():
            pass
        ice.rmdir()


@pytest.mark.parametrize("ended", ["in order", "killed"])
def test_a_fork_bomb_ends_with_the_node(tmp_path: Path, ended: str) -> None:
    grouped()
    with booted(tmp_path, more=STUBBORN) as node:
        with node.attach() as attached:
            attached.open("stubborn", Stubborn).bomb.now()
        if ended == "killed":
            processes = node.processes()
            node.kill()
            for pid in processes:
                wait_for_end(pid)
            command = [*node.command()[:3], "clean", "--folder", str(node.folder)]
            subprocess.run(command, capture_output=True, text=True, check=True)
        else:
            assert node.stop() == 0
        assert node.processes() == []
        assert groups_of(node) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_ends_a_node_in_order(node: RealNode, number: signal.Signals) -> None:
    assert node.kernel is not None
    processes = node.processes()
    node.kernel.send_signal(number)
    out, _ = node.kernel.communicate()
    assert node.kernel.returncode == 0, out
    node.kernel = None
    for pid in processes:
        assert not Path(f"/proc/{pid}").exists()
    assert groups_of(node) == []


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Without it, the node waits until the deadline for a handler that does not return."""
    with booted(tmp_path, more=STUBBORN) as node:
        with node.attach() as attached:
            stubborn = attached.open("stubborn", Stubborn)
            waiting = stubborn.stay.start()
            attached.kernel.shutdown.now(10_000.0)
            assert node.kernel is not None
            while attached.open("stubborn", Stubborn):
                if not (node.folder / "attach.sock").exists():
                    break
            node.kernel.send_signal(signal.SIGTERM)
            assert node.kernel.wait() == 0
            del waiting
        assert node.processes() == []
        node.stop()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(number, marks=pytest.mark.soak) for number in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_signal_during_boot_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Whenever it comes: after the first line that boot says, in the midst of it, and before it serves."""
    with booted(tmp_path) as node:
        assert node.stop() == 0
        node.boot()
        lines = len(node.said)
        assert node.stop() == 0
        for wait_for in {1, lines // 2, lines - 1}:
            kernel = subprocess.Popen(
                node.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
            )
            assert kernel.stdout is not None
            for _ in range(wait_for):
                kernel.stdout.readline()
            kernel.send_signal(number)
            said, _ = kernel.communicate()
            assert "Traceback" not in said
            assert kernel.returncode != 0 or " serves: " in said, said
            assert "before it served" in said or kernel.returncode in (0, -number), said
            while node.processes():
                pass
            assert groups_of(node) == []
        node.boot()


@pytest.mark.parametrize("told", ["kernel", "caller"])
def test_an_interrupted_boot_in_the_background_is_told_to_its_caller(tmp_path: Path, told: str) -> None:
    broken = hostile_store(tmp_path)
    text = (Path(broken) / "server.py").read_text()
    Path(broken, "server.py").write_text(text.replace("prctl(1, 0)", "pause()"))
    node = RealNode(tmp_path, f'[image]\nname = "x"\n[server.state]\npackage = "{broken}"\nneeds = {{}}\n')
    caller = subprocess.Popen(
        node.command("--detach"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not (node.folder / "lock").exists() or not (node.folder / "lock").read_text():
        pass
    kernel = int((node.folder / "lock").read_text())
    while len(node.processes()) < 3:
        pass
    if told == "kernel":
        os.kill(kernel, signal.SIGTERM)
    else:
        caller.send_signal(signal.SIGINT)
    said, _ = caller.communicate()
    assert caller.returncode == 1, said
    assert "before it served" in said
    assert "Traceback" not in said
    assert node.processes() == []


@pytest.mark.parametrize("runs", [False, True])
async def test_of_two_processes_of_a_server_the_last_that_ends_takes_along_what_they_started(
    runs: bool,
) -> None:
    """As in a swap in which both are killed: what each of them recorded is put away meanwhile."""
    ended: list[str] = []

    async def end() -> None:
        ended.append("all")

    both: list[Any] = [
        SimpleNamespace(process=SimpleNamespace(exit=exit))
        for exit in (Exit(None, 9), None if runs else Exit(None, 9))
    ]
    node: Any = SimpleNamespace(
        processes_of=lambda name: iter(both), group=lambda server: SimpleNamespace(end=end)
    )
    nobody: Any = None
    server: Any = SimpleNamespace(name="counter")
    await Supervisor(node, nobody, nobody, nobody, nobody)._end_left(server, both[0])
    assert ended == ([] if runs else ["all"])
