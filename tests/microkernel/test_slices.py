"""Slices on whatever hierarchies the host has: limits read back, freezing seen from inside, ending,
cleaning up."""

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from atoll.microkernel.slices import GroupOfProcesses, Limits, choose, hierarchy, io_priority, version_2

from .children import forge, planned, start


@pytest.fixture
def slices():
    made = choose(f"test-{secrets.token_hex(4)}")
    if made.kind == "none":
        pytest.skip(made.lacks[0])
    yield made
    made.leave()


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def groups_of(pid):
    return Path(f"/proc/{pid}/cgroup").read_text()


def used(pid):
    """CPU time in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def running(made, group, level="process"):
    """A child in a group, and the pipe that keeps open as long as it lives."""
    joined = group.open()
    process, read = await start(made, planned(level).confinement, "wait", groups=joined)
    for descriptor in joined:
        os.close(descriptor)
    assert await trio.to_thread.run_sync(os.read, read, 100)
    return process, read


async def test_what_is_started_in_a_group_that_was_ended_lives(slices):
    """Linux kills what is made in a group whose cgroup.kill was written to before: it has to move there."""
    group = slices.group("training", "victim")
    async with forge() as made:
        for _ in range(3):
            process, read = await running(made, group)
            assert group.members() == {process.pid}
            await group.end()
            assert (await process.wait()).signal == signal.SIGKILL
            os.close(read)
            process.close()


async def test_a_child_is_in_its_group_before_it_runs(slices):
    group = slices.group("training", "victim")
    async with forge() as made:
        process, read = await running(made, group, "process")
        assert group.members() == {process.pid}
        assert slices.group("training").members() == {process.pid}, "a slice holds the groups of its servers"
        assert f"atoll/{slices.node}/training/victim" in groups_of(process.pid)
        await group.end()
        assert (await process.wait()).signal == signal.SIGKILL
        assert group.members() == set()
        os.close(read)
        process.close()
    assert group.remove() == []
    assert await slices.clean() == []
    assert hierarchy.left_by(slices.node) == []


async def test_limits_are_taken_and_can_be_changed(slices):
    group = slices.group("limited")
    assert group.limit(Limits(cpu_weight=200, cpu_quota=0.5, memory=64 << 20, pids=20)) == []
    assert group.limit(Limits(cpu_weight=50, memory=128 << 20)) == []
    assert group.limit(Limits()) == []
    assert await slices.clean() == []


async def test_v1_values_are_what_was_asked(slices):
    if slices.kind != "v1":
        pytest.skip(f"this host has {slices.kind}")
    group = slices.group("limited")
    group.limit(Limits(cpu_weight=200, cpu_quota=0.5, memory=64 << 20, pids=20))
    folders = {
        mount.path.name: mount.base / "atoll" / slices.node / "limited" for mount in hierarchy.mounts()
    }
    assert (folders["cpu"] / "cpu.shares").read_text().strip() == "2048"
    assert (folders["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "50000"
    assert (folders["memory"] / "memory.limit_in_bytes").read_text().strip() == str(64 << 20)
    assert (folders["pids"] / "pids.max").read_text().strip() == "20"
    assert await slices.clean() == []


async def test_a_wrong_value_is_a_sentence(slices):
    said = slices.group("wrong").limit(Limits(memory=-5))
    assert len(said) == 1
    assert "did not take '-5': Invalid argument" in said[0]
    assert await slices.clean() == []


async def test_frozen_processes_stand_still_and_go_on(slices):
    group = slices.group("frozen")
    async with forge() as made:
        joined = group.open()
        process, read = await start(made, planned("process").confinement, "spin", groups=joined)
        for descriptor in joined:
            os.close(descriptor)
        await trio.to_thread.run_sync(os.read, read, 1)
        await group.freeze()
        os.set_blocking(read, False)
        while True:  # what it wrote before it stood still
            try:
                os.read(read, 65536)
            except BlockingIOError:
                break
        before = used(process.pid)
        for _ in range(200):
            os.sched_yield()
        assert used(process.pid) == before
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        await group.thaw()
        await trio.lowlevel.wait_readable(read)
        assert os.read(read, 1)
        await group.freeze()
        await group.end()
        assert (await process.wait()).signal == signal.SIGKILL, "the frozen die too"
        os.close(read)
        process.close()
    assert await slices.clean() == []


async def test_version_2_freezes_and_ends_also_without_controllers(slices):
    """Where version 1 has the controllers, the version 2 hierarchy still freezes and kills; and says what it lacks."""
    unified = next((mount for mount in hierarchy.mounts() if mount.version == 2), None)
    if unified is None:
        pytest.skip("no version 2 hierarchy is mounted here")
    if unified.own != "/":
        pytest.skip("this process would have to leave its own group, which limits it")
    chosen = version_2(slices.node, unified)
    assert len([said for said in chosen.lacks if "controller is not handed down" in said]) == 4 - len(
        unified.controllers & {"cpu", "memory", "pids", "io"}
    )
    group = chosen.group("training", "victim")
    async with forge() as made:
        process, read = await running(made, group)
        assert group.members() == {process.pid}
        await group.freeze()
        before = used(process.pid)
        for _ in range(200):
            os.sched_yield()
        assert used(process.pid) == before
        await group.end()
        assert (await process.wait()).signal == signal.SIGKILL, "the frozen die too"
        os.close(read)
        process.close()
    assert group.remove() == []
    assert await chosen.clean() == []
    assert hierarchy.left_by(slices.node) == []


async def test_a_new_boot_ends_and_removes_what_the_old_one_left(slices):
    async with forge() as made:
        process, read = await running(made, slices.group("old", "server"))
        await slices.group("old", "server").freeze()
        later = choose(slices.node)
        assert hierarchy.left_by(slices.node) != []
        assert await later.clean() == []
        assert (await process.wait()).signal == signal.SIGKILL
        assert hierarchy.left_by(slices.node) == []
        os.close(read)
        process.close()


IN_A_GROUP_OF_ITS_OWN = """
import os, subprocess, sys, trio
from pathlib import Path
from atoll.microkernel.slices import hierarchy, version_2

base, node = Path(sys.argv[1]), sys.argv[2]
(base / "cgroup.procs").write_text(str(os.getpid()))
unified = lambda: next(mount for mount in hierarchy.mounts() if mount.version == 2)
before = unified()
(folder,) = version_2(node, before).group("old").open()
joined = os.open("cgroup.procs", os.O_WRONLY, dir_fd=folder)
left = subprocess.Popen(["sleep", "infinity"], preexec_fn=lambda: os.write(joined, b"0"))
assert unified().base == before.base == base
print(trio.run(version_2(node, unified()).clean), left.wait(), hierarchy.left_by(node), unified().own == before.own)
"""


def test_a_boot_ends_what_was_left_in_the_group_that_it_is_in_itself_and_lives_on():
    """As a service or a user's session has it under version 2: the next boot is given the same group."""
    unified = next((mount for mount in hierarchy.mounts() if mount.version == 2), None)
    base = unified.base / f"trial-{secrets.token_hex(4)}" if unified else None
    try:
        base.mkdir()
    except (OSError, AttributeError) as error:
        pytest.skip(f"no version 2 group can be made here: {error}")
    try:
        words = [sys.executable, "-c", IN_A_GROUP_OF_ITS_OWN, str(base), secrets.token_hex(4)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "[] -9 [] True\n"), done.stderr
        assert list(hierarchy.below(base)) == []
    finally:
        hierarchy.remove(base)


async def test_two_nodes_do_not_touch_each_other(slices):
    other = choose(slices.node + "x")
    async with forge() as made:
        process, read = await running(made, other.group("server"))
        slices.group("server")
        assert await slices.clean() == []
        assert process.poll() is None
        assert await other.clean() == []
        assert (await process.wait()).signal == signal.SIGKILL
        os.close(read)
        process.close()


def test_without_control_groups_a_number_that_was_used_again_is_no_member():
    """The process is gone, and its number another program's: that is neither stopped nor ended."""
    group = GroupOfProcesses("server")
    with subprocess.Popen(["sleep", "infinity"]) as another:
        group.joined(another.pid)
        assert group.members() == {another.pid}
        group._since[another.pid] -= 1  # as if it had been one that started before
        assert group.members() == set()
        another.kill()


async def test_without_control_groups_signals_stand_in():
    """What an ordinary user gets: freezing and ending work, limits are a sentence."""
    group = GroupOfProcesses("server")
    assert group.limit(Limits(memory=1 << 20)) == ["memory of server not enforced: no control groups here"]
    assert group.limit(Limits()) == []
    assert group.open() == []
    async with forge() as made:
        process, read = await running(made, group)
        group.joined(process.pid)
        await group.freeze()
        assert state(process.pid) == "T"
        await group.thaw()
        assert state(process.pid) != "T"
        await group.end()
        assert (await process.wait()).signal == signal.SIGKILL
        assert group.members() == set()
        os.close(read)
        process.close()


@given(st.integers(1, 10000), st.integers(1, 10000))
def test_more_weight_is_never_less_io_priority(low, high):
    low, high = sorted((low, high))
    levels = [io_priority(Limits(io_weight=weight)) & 7 for weight in (low, high)]
    assert 0 <= levels[1] <= levels[0] <= 7


def test_io_priorities():
    assert io_priority(Limits()) == 2 << 13 | 4
    assert io_priority(Limits(io_class="idle")) == 3 << 13
    assert io_priority(Limits(io_class="real-time", io_weight=10000)) == 1 << 13


def test_all_nodes_together_weigh_as_much_as_ten_programs(slices):
    """Beside the programs of the group in which the node was booted, each of which weighs 100."""
    nodes = {folder.parent for folder in slices.folders}
    weights = {folder / name for folder in nodes for name in ("cpu.shares", "cpu.weight")}
    said = {path.name: int(path.read_text()) for path in weights if path.exists()}
    if not said:
        pytest.skip("no control group for processors here")
    assert said in ({"cpu.shares": 10240}, {"cpu.weight": 1000})


ODD_MOUNT = """
odd="$1/$(printf 'odd\\377\\014')"
mount -t tmpfs none "$1" && mkdir "$odd" && mount -t tmpfs none "$odd" || exit 77
exec "$2" -c "from atoll.microkernel.slices import hierarchy; print(len(hierarchy.mounts()))"
"""


def test_a_mount_whose_place_is_no_text_keeps_nobody_from_booting(tmp_path):
    """Any user of the host may have one, and it is in the list that all read."""
    command = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        ODD_MOUNT,
        "sh",
        str(tmp_path),
        sys.executable,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == len(hierarchy.mounts())
