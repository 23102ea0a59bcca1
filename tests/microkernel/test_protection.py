"""Levels, mechanisms, plans, filters: what a plan claims, what it admits, and that each table row is
sound."""

import itertools
import os
import platform
import subprocess
import sys

import msgspec
import pyseccomp
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.microkernel.processes import Process
from atoll.microkernel.protection import (
    Host,
    NoSuchLevel,
    NoSuchMechanism,
    NotDropped,
    Unprotected,
    filters,
    levels,
    plan,
    probe,
)
from atoll.microkernel.protection.host import attempt, closed_above, closed_folders, outermost
from atoll.microkernel.protection.plan import ladder, mechanisms
from atoll.microkernel.watcher import Flooded, Refusal
from atoll.microkernel.watching import Watching

from .children import forge, planned, start, subject

BARE = Host(
    root=False,
    uid=1000,
    users="users are off",
    mounts="mounts are off",
    processes="processes are off",
    network="network is off",
    ipc="ipc is off",
    hostname="hostname is off",
    landlock=0,
    filters="libseccomp cannot be used (not found): install libseccomp2",
    notify="no",
    closed=(),
)


def test_levels_are_a_ladder():
    names = list(levels())
    assert names[:3] == ["process", "seccomp", "sandbox"]
    for lower, higher in itertools.pairwise(names):
        if not levels()[higher].alone:
            assert set(ladder(lower)) < set(ladder(higher)), (lower, higher)


def test_every_mechanism_says_what_it_stops():
    assert all(mechanism.stops for mechanism in mechanisms().values())


@pytest.mark.parametrize("level", list(levels()))
def test_what_a_plan_puts_in_force_works_here(level):
    """The C core carries the plan out, in a child that exits at once."""
    made = planned(level)
    if made.missing:
        pytest.skip("; ".join(map(str, made.missing)))
    assert attempt(made.confinement) == ""
    assert made.require() is made.confinement


@settings(deadline=None)
@given(
    level=st.sampled_from(list(levels())),
    add=st.sets(st.sampled_from(list(mechanisms()))),
    drop=st.sets(st.sampled_from(list(mechanisms()))),
)
def test_a_plan_accounts_for_every_mechanism(level, add, drop):
    """Each one asked for is in force, or missing, or listed as a weakening, or needless here: never
    silently gone."""
    has = {mechanism.name for mechanism in ladder(level)}
    reasons = dict.fromkeys(drop & has, "as asked")
    made = plan(level, subject(), probe(), add=tuple(add), drop=reasons)
    told = {weakening.mechanism for weakening in (*made.weakenings, *made.missing)}
    needless = {
        name
        for name, each in mechanisms().items()
        if (absence := each.absent(probe())) is not None and absence.needless
    }
    asked = (has | add) - set(reasons)
    assert set(made.in_force) <= asked
    assert asked - set(made.in_force) <= told | needless
    assert set(reasons) <= told


def test_a_missing_mechanism_is_a_sentence_that_names_it():
    made = plan("seccomp", subject(), BARE)
    with pytest.raises(Unprotected) as caught:
        made.require()
    assert str(caught.value) == (
        "victim cannot run at level seccomp: system-calls: libseccomp cannot be used (not found): install libseccomp2; "
        "choose a lower level, or boot with --degrade"
    )


def test_degrading_takes_the_nearest_lower_level_and_records_it():
    made = plan("sandbox", subject(), BARE, degrade=True)
    assert (made.level, made.wanted, made.missing) == ("process", "sandbox", ())
    assert made.weakenings[0].mechanism == "level"
    assert made.weakenings[0].reason.startswith("process stands in for sandbox (")
    partly = msgspec.structs.replace(BARE, filters="", notify="")
    assert plan("sandbox", subject(), partly, degrade=True).level == "seccomp"


def test_without_root_the_lack_of_own_users_is_a_weakening():
    made = plan("process", subject(uid=None), BARE)
    assert made.missing == ()
    assert [weakening.mechanism for weakening in made.weakenings] == ["own-uid"]
    assert made.confinement.uid is None


def test_a_server_is_never_uid_0():
    host = msgspec.structs.replace(probe(), root=True)
    assert plan("process", subject(uid=None), host).confinement.uid == 65534
    assert plan("process", subject(), host, drop={"own-uid": "why not"}).confinement.uid == 65534


def test_a_dropped_mechanism_is_a_weakening_with_its_reason():
    made = planned("sandbox", drop={"network": "it serves the web"})
    assert "network: dropped by the image: it serves the web" in map(str, made.weakenings)
    assert "network" not in made.in_force


def test_a_granted_group_is_a_weakening():
    made = planned("seccomp", grants=("spawn",))
    assert "system-calls: the image grants 'spawn'" in map(str, made.weakenings)


def test_an_older_landlock_says_what_it_does_not_see():
    host = msgspec.structs.replace(probe(), landlock=3)
    made = plan("sandbox", subject(), host)
    said = next(str(each) for each in made.weakenings if each.mechanism == "landlock")
    assert said == (
        "landlock: Landlock here is ABI 3: TCP is not looked at; device control is not looked at; "
        "signals and abstract Unix sockets are not looked at"
    )
    assert made.confinement.landlock.network == made.confinement.landlock.scoped == 0
    assert attempt(made.confinement) == "" or made.missing


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: planned("sandbx"),
            NoSuchLevel,
            f"no protection level is called 'sandbx'; there are {', '.join(levels())}",
        ),
        (
            lambda: planned("process", add=("landlok",)),
            NoSuchMechanism,
            f"no protection mechanism is called 'landlok'; there are {', '.join(mechanisms())}",
        ),
        (
            lambda: planned("process", drop={"landlock": "no"}),
            NotDropped,
            (
                "process does not have the mechanism 'landlock', so it cannot be dropped; "
                "it has own-uid, undumpable, no-new-privileges, limits"
            ),
        ),
        (
            lambda: planned("seccomp", grants=("forks",)),
            filters.UnknownGrant,
            "no group of system calls is called 'forks'; there are spawn, network, paging, devices",
        ),
    ],
)
def test_wrong_names(call, error, sentence):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == sentence


# filters -------------------------------------------------------------------------------------------------------------

ROWS = [(group, row) for group, table in filters.GROUPS.items() for row in table]
NO_ERROR = -1


@pytest.mark.parametrize("machine", [pyseccomp.Arch.X86_64, pyseccomp.Arch.AARCH64])
def test_every_row_has_a_reason_and_names_a_system_call(machine):
    for group, row in ROWS:
        assert len(row.reason) > 3, (group, row)
        assert pyseccomp.resolve_syscall(machine, row.call) != NO_ERROR, (group, row)


def test_no_row_says_twice_the_same():
    for group in filters.GROUPS:
        rows = [(row.call, row.tests) for row in filters.GROUPS[group]]
        assert len(rows) == len(set(rows)), group


@pytest.mark.parametrize("refusal", ["notify", "kill"])
@pytest.mark.parametrize(
    "grants", [(), *((group,) for group in filters.GROUPS if group != "base"), tuple(filters.GROUPS)]
)
def test_the_kernel_takes_every_program(grants, refusal):
    if probe().filters:
        pytest.skip(probe().filters)
    program = filters.export(grants, refusal)
    assert len(program) % 8 == 0
    confinement = msgspec.structs.replace(
        planned("seccomp").confinement, filter=program, notify=refusal == "notify" and not probe().notify
    )
    assert attempt(confinement) == ""


@pytest.mark.parametrize(
    "call", ["ptrace", "mount", "bpf", "io_uring_setup", "unshare", "setns", "keyctl", "socket"]
)
def test_what_must_never_be_in_the_base(call):
    assert call not in {row.call for row in filters.BASE}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers differ by machine")
def test_a_system_call_has_a_name():
    assert filters.name_of(41) == "socket"
    assert filters.name_of(99_999) == "99999"


# refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(probe().notify), reason=f"filters cannot ask here: {probe().notify}")
async def test_refusals_are_counted_by_process_and_call():
    watching = Watching("--test=watcher")
    watching.start()
    async with forge() as made:
        processes: list[Process] = []
        for number in range(2):
            process, read = await start(made, planned("seccomp").confinement, "refuse", 50)
            await watching.watch(number, process)
            processes.append(process)
            assert await trio.to_thread.run_sync(os.read, read, 100) == b"[Errno 1] Operation not permitted"
            assert (await process.wait()).clean
            os.close(read)
            process.close()
        counts = {0: 0, 1: 0}
        packets = 0
        while counts != {0: 50, 1: 50}:
            report = await watching.report()
            assert isinstance(report, Refusal)
            assert filters.name_of(report.call) == "socket"
            counts[report.process] += report.count
            packets += 1
    assert packets < 20, "coalesced"
    await watching.close()


@pytest.mark.skipif(bool(probe().notify), reason=f"filters cannot ask here: {probe().notify}")
async def test_a_flood_ends_the_process():
    watching = Watching("--test=watcher", 500)
    watching.start()
    async with forge() as made:
        process, read = await start(made, planned("seccomp").confinement, "flood")
        await watching.watch(4, process)
        ended = await process.wait()
        os.close(read)
        process.close()
        while not isinstance(report := await watching.report(), Flooded):
            assert report is not None
    assert ended.signal == 9
    assert (report.process, report.server) == (4, "victim")
    assert report.count == 501
    await watching.close()


@pytest.mark.skipif(bool(probe().notify), reason=f"filters cannot ask here: {probe().notify}")
async def test_when_the_watcher_dies_nobody_hangs():
    watching = Watching("--test=watcher", 10**9)
    watching.start()
    async with forge() as made:
        process, read = await start(made, planned("seccomp").confinement, "refuse", 30_000)
        await watching.watch(0, process)
        assert isinstance(await watching.report(), Refusal)
        watching.process.kill()
        assert (await process.wait()).clean
        assert os.read(read, 100) == b"[Errno 38] Function not implemented"
        os.close(read)
        process.close()
    await watching.close()


# the way to the interpreter ------------------------------------------------------------------------------------------


def test_outermost():
    assert outermost({"/a/b", "/a", "/ab", "/c/d/e", "/c/d"}) == ("/a", "/ab", "/c/d")


def test_a_closed_folder_on_the_way_is_found(tmp_path):
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    wanted = next(str(folder) for folder in reversed(inner.parents) if not folder.stat().st_mode & 0o001)
    assert closed_above((str(inner), "/usr/lib")) == [wanted, ""]
    assert closed_folders((str(inner), "/usr/lib")) == (wanted,)
    assert closed_folders(("/usr/lib",)) == ()


def test_a_level_is_found_without_touching_another_file(tmp_path):
    """A module in the package that has a LEVEL is all there is to a level."""
    program = """
import sys, atoll.microkernel.protection as p
p.__path__.append(sys.argv[1])
print(*p.levels())
"""
    (tmp_path / "vault.py").write_text(
        "from atoll.microkernel.protection.level import Level\nLEVEL = Level(name='vault', rank=25, mechanisms=())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["process", "seccomp", "vault", "sandbox"]
