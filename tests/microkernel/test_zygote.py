"""The fork server: what a child is given and what not, how it ends, and that it does not outlive the
kernel."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
import trio
import trio.testing

from atoll.microkernel.processes import CannotConfine, Exit
from atoll.microkernel.protection import Bind, Confinement, probe
from atoll.microkernel.remains import end_survivors, survivors

from .children import FIRST_UID, VICTIMS, forge, heard, planned, start, told, unwatch

LEVELS = ("process", "seccomp", "sandbox")
STARTS = ("zygote", "exec")
ROOT = os.geteuid() == 0


def possible(level, **fields):
    plan = planned(level, **fields)
    if plan.missing:
        pytest.skip(f"level {level} is not possible here: {'; '.join(map(str, plan.missing))}")
    return plan.confinement


def facts(said):
    return dict(line.split(":", 1) for line in said.splitlines())


@pytest.mark.parametrize("start_by", STARTS)
@pytest.mark.parametrize("level", LEVELS)
async def test_a_child_is_what_its_level_says(level, start_by):
    """Identity, rights, descriptors and environment, as the child itself finds them."""
    async with forge() as made:
        said, ended = await told(made, possible(level, start=start_by), "who")
    found = facts(said)
    assert ended == Exit(0)
    assert found["NoNewPrivs"].strip() == "1"
    assert found["Seccomp"].strip() == ("0" if level == "process" else "2")
    assert set(found["CapEff"].strip()) == {"0"}
    assert "GIVEN" in found["Environment"]
    assert "PATH" not in found["Environment"]
    descriptors = [number for number in eval(found["Open"]) if number not in (0, 1, 2, 5)]
    assert len(descriptors) == 1, "the folder that was open to list the others, and nothing of the zygote's"
    if ROOT:
        assert found["Uid"].split() == [str(FIRST_UID)] * 4
        assert found["Gid"].split() == [str(FIRST_UID)] * 4
        assert found["Groups"].split() == []
    if level == "sandbox":
        assert found["Pid"].strip() == "1"
        assert set(found["CapBnd"].strip()) == {"0"}


@pytest.mark.parametrize("level", LEVELS)
async def test_honest_work_passes_every_level(level, tmp_path):
    """trio, a worker thread, numpy, msgspec and lmdb, all imported inside, under a filter that kills on
    refusal."""
    folder = tmp_path / "store"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    binds = (
        Bind(source=str(Path(__file__).parent.parent / "escape")),
        Bind(source=str(folder), writable=True),
    )
    async with forge() as made:
        confinement = possible(level, binds=binds, refusal="kill")
        said, ended = await told(made, confinement, "work", str(folder))
    assert (said, str(ended)) == ("64", "exited with status 0")


@pytest.mark.parametrize("start_by", STARTS)
async def test_a_lock_in_shared_memory_does_not_outlive_its_holder(start_by, tmp_path):
    """The C library's list of robust locks is known to the kernel in a child, too: the store's writer may be killed while
    its readers keep the lock's memory."""
    tmp_path.chmod(0o777)
    binds = (Bind(source=VICTIMS), Bind(source=str(tmp_path), writable=True))
    confinement = possible("process", binds=binds, start=start_by)
    with lmdb.open(str(tmp_path), map_size=1 << 20) as store:
        for name in os.listdir(tmp_path):
            (tmp_path / name).chmod(0o666)

        def write():
            with store.begin(write=True) as transaction:
                return transaction.put(b"k", b"v")

        async with forge() as made:
            process, read = await start(made, confinement, "hold", str(tmp_path))
            assert await trio.to_thread.run_sync(os.read, read, 64)
            process.kill()
            await process.wait()
            process.close()
            os.close(read)
            with trio.fail_after(20):
                assert await trio.to_thread.run_sync(write, abandon_on_cancel=True)


async def test_a_status_a_signal_and_a_traceback_reach_the_kernel(capfd):
    async with forge() as made:
        confinement = possible("process")
        _, left = await told(made, confinement, "leave", 7)
        _, failed = await told(made, confinement, "fail")
        process, read = await start(made, confinement, "wait")
        process.signal(signal.SIGKILL)
        killed = await process.wait()
        process.signal(signal.SIGTERM)  # one that is gone is left alone
        process.close()
        os.close(read)
    assert str(left) == "exited with status 7"
    assert str(failed) == "exited with status 1"
    assert killed.signal == signal.SIGKILL
    assert "ValueError: as asked" in capfd.readouterr().err


async def test_a_filter_that_kills_is_seen_in_how_the_child_ended():
    async with forge() as made:
        _, ended = await told(made, possible("seccomp", refusal="kill"), "refuse", 1)
    assert str(ended) == "was killed by SIGSYS (it made a system call that its filter refuses)"


async def test_many_children_at_once():
    async with forge() as made:
        confinement = possible("process")
        said = []

        async def one(number):
            _, ended = await told(made, confinement, "leave", number)
            said.append(ended.status)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
    assert sorted(said) == list(range(20))


async def test_a_child_that_cannot_be_confined_runs_nothing_and_says_at_which_step():
    plan = possible("sandbox")
    broken = Confinement(
        name="broken",
        namespaces=plan.namespaces,
        ids=plan.ids,
        root=plan.root,
        binds=(Bind(source="/usr/lib"), Bind(source="/nowhere")),
    )
    async with forge() as made:
        with pytest.raises(CannotConfine) as caught:
            await told(made, broken, "leave", 0)
        assert (await told(made, possible("process"), "leave", 3))[1] == Exit(3), "the zygote goes on"
    assert str(caught.value) == (
        "broken was not started: binding files into its root failed at row 1: No such file or directory"
    )


async def test_a_dead_zygote_is_replaced_and_its_children_go_on():
    async with forge() as made:
        said = []
        made.renewed = said.append
        process, read = await start(made, possible("process"), "wait")
        os.read(read, 100)
        first = made.process
        first.kill()
        await first.wait()
        assert await told(made, possible("process"), "leave", 7) == ("", Exit(7))
        assert made.process is not first
        assert len(said) == 1 and "SIGKILL" in said[0]
        assert process.poll() is None
        process.kill()
        await process.wait()
        process.close()
        os.close(read)


async def test_a_zygote_that_dies_while_it_is_asked_is_replaced_once_and_asked_again():
    """Both the one that asked and the one that keeps it see it end."""
    async with forge() as made, trio.open_nursery() as nursery:
        said, ended = [], []
        made.renewed = said.append
        nursery.start_soon(made.keep)
        await told(made, possible("process"), "leave", 0)

        async def ask():
            ended.append(await told(made, possible("process"), "leave", 7))

        for rounds in range(1, 6):
            asked = made.process
            asked.signal(signal.SIGSTOP)
            async with trio.open_nursery() as asking:
                asking.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                asked.kill()
            assert ended == [("", Exit(7))] * rounds
            assert len(said) == rounds
            assert made.process is not asked
        nursery.cancel_scope.cancel()


async def test_a_child_whose_zygote_did_not_live_to_report_it_is_ended():
    async with forge() as made:
        await told(made, possible("process"), "leave", 0)
        process, read = await start(made, possible("process"), "wait")
        os.read(read, 100)
        made._children.clear()  # as if the report had been lost
        made.process.kill()
        await told(made, possible("process"), "leave", 0)
        with pytest.raises(ChildProcessError):
            process.poll()
        os.close(process.pidfd)
        os.close(read)


async def test_clones_share_their_layout_and_fresh_starts_do_not():
    """What the threat page says of the zygote, and why an image may ask for `start = "exec"`."""
    async with forge() as made:
        cloned = [(await told(made, possible("process"), "forge_address"))[0] for _ in range(2)]
        fresh = [(await told(made, possible("process", start="exec"), "forge_address"))[0] for _ in range(2)]
    assert cloned[0] == cloned[1]
    assert len({cloned[0], *fresh}) == 3


KERNEL = """
import os, sys, trio
sys.path[:0] = {path!r}
from tests.microkernel.children import forge, planned, start
async def main():
    async with forge({marker!r}) as made:
        for level in {levels!r}:
            for how in ("zygote", "exec"):
                process, read = await start(made, planned(level, start=how).confinement, "wait")
                os.read(read, 100)
        print("up", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_kill_9_of_the_kernel_leaves_no_process():
    """Zygote and children of every level and start are gone; their numbers are looked for until they are."""
    marker = f"--kill={os.getpid()}"
    levels = [level for level in LEVELS if not planned(level).missing]
    program = KERNEL.format(path=[str(Path(__file__).parents[2])], marker=marker, levels=levels)
    kernel = subprocess.Popen(  # noqa: ASYNC220 - children die with the thread that starts them
        [sys.executable, "-c", program], stdout=subprocess.PIPE
    )
    assert await trio.to_thread.run_sync(kernel.stdout.readline) == b"up\n"
    alive = survivors(marker)
    assert len(alive) == 1 + 2 * len(levels)
    watched = [os.pidfd_open(survivor.pid) for survivor in alive]
    kernel.kill()
    kernel.wait()
    kernel.stdout.close()
    for pidfd in watched:
        await trio.lowlevel.wait_readable(pidfd)  # a test that hangs here is ended by its watchdog
        os.close(pidfd)
    assert await end_survivors(marker) == []


async def test_survivors_of_a_boot_are_found_by_its_marker_and_ended():
    async with forge() as made:
        process, read = await start(made, possible("process"), "wait")
        os.read(read, 100)
        marker = made._marker
        assert {survivor.pid for survivor in survivors(marker)} == {process.pid, made.process.pid}
        assert survivors(marker + "x") == []
        assert await end_survivors(marker) == []
        assert survivors(marker) == []
        assert (await process.wait()).signal == signal.SIGKILL
        process.close()
        os.close(read)


async def test_a_cancelled_start_leaves_no_child():
    async with forge() as made:
        with trio.CancelScope() as scope:
            scope.cancel()
            await told(made, possible("process"), "wait")
        assert scope.cancelled_caught
        # The zygote itself bears the marker from its exec on, which may still be to come.
        while not (found := survivors(made._marker)):
            await trio.lowlevel.checkpoint()
        assert [s.pid for s in found] == [made.process.pid]


async def test_output_of_a_child_goes_where_it_was_sent():
    async with forge() as made:
        read, write = os.pipe()
        process = await made.spawn(
            possible("process"),
            descriptors={1: write, 2: write},
            arguments=("Hello.",),
            entry="builtins:print",
        )
        os.close(write)
        unwatch(process)
        assert await heard(read) == "Hello.\n"
        await process.wait()
        process.close()


def test_the_host_was_probed():
    assert probe().uid == os.geteuid()
