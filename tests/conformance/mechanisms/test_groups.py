"""Control groups: who is in them, standing still, ending, limits, and what is left of a boot."""

import signal
from functools import partial

import pytest

from atoll.ipc.system import control
from atoll.microkernel.processes import Exit
from atoll.microkernel.slices import Limits

from . import real, simulated
from .hosts import Host, Run, Started, as_kernel, started

HOSTS = ("real", "real, without control groups", "simulated")
KILLED = Exit(None, signal.SIGKILL)
ROUNDS = 20


@pytest.fixture(params=HOSTS)
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "simulated":
        return simulated.alive_in_worlds
    made: real.Machine = request.getfixturevalue("machine")
    return made.run if request.param == "real" else partial(made.run, grouping=real.without_groups)


in_groups = pytest.mark.parametrize("run", [HOSTS[0], HOSTS[2]], indirect=True)
"""What stands in for control groups knows no groups in groups, and nothing of them outlives a boot."""


def held(host: Host) -> None:
    """Skips where this host has none."""
    if host.mechanisms.slices.kind == "none":
        pytest.skip(host.mechanisms.slices.lacks[0])


async def silent(frozen: Started, witness: Started) -> None:
    """It is asked for a sign of life, and gives none while another process gives many."""
    frozen.connection.send(control.Ping(number=99))
    for number in range(ROUNDS):
        await witness.answers(number)
        assert not frozen.has_spoken()


@as_kernel
async def test_a_group_knows_who_is_in_it(host: Host) -> None:
    group = host.mechanisms.slices.group("training", "patient")
    assert group.members() == set()
    async with started(host, group=group) as one, started(host) as other:
        assert group.members() == {one.process.pid}
        async with started(host, group=group) as third:
            assert group.members() == {one.process.pid, third.process.pid}
            third.process.kill()
            await third.process.wait()
            assert group.members() == {one.process.pid}
        await one.hear(control.Ready)
        one.connection.send(control.Stop(deadline=1 << 62))
        assert await one.process.wait() == Exit(0)
        assert group.members() == set()
        await other.hear(control.Ready)
    assert group.remove() == []


@as_kernel
async def test_a_group_is_one_however_often_it_is_asked_for(host: Host) -> None:
    slices = host.mechanisms.slices
    assert slices.group("training", "patient") is slices.group("training", "patient")
    assert slices.group("training", "patient").name == "training/patient"
    async with started(host, group=slices.group("training", "patient")):
        assert slices.group("training", "other").members() == set()
        assert slices.group("patient").members() == set()


@in_groups
@as_kernel
async def test_a_slice_holds_the_groups_of_its_servers(host: Host) -> None:
    held(host)
    slices = host.mechanisms.slices
    one, other = slices.group("training", "one"), slices.group("training", "other")
    async with started(host, group=one) as first, started(host, group=other) as second:
        assert slices.group("training").members() == {first.process.pid, second.process.pid}
        await slices.group("training").end()
        assert await first.process.wait() == await second.process.wait() == KILLED
    assert slices.group("training").members() == set()


@as_kernel
async def test_a_frozen_group_stands_still_until_it_is_thawed(host: Host) -> None:
    group = host.mechanisms.slices.group("servers", "frozen")
    async with started(host, group=group) as frozen, started(host) as witness:
        await frozen.hear(control.Ready)
        await witness.hear(control.Ready)
        await group.freeze()
        await silent(frozen, witness)
        assert frozen.process.exit is None
        assert group.members() == {frozen.process.pid}
        await group.freeze()
        assert not frozen.has_spoken()
        await group.thaw()
        assert (await frozen.hear(control.Pong)).number == 99
        await group.thaw()
        await frozen.answers(1)
        await group.freeze()
        await silent(frozen, witness)
        await group.thaw()
        assert (await frozen.hear(control.Pong)).number == 99


@as_kernel
async def test_the_frozen_are_ended(host: Host) -> None:
    group = host.mechanisms.slices.group("servers", "frozen")
    async with started(host, group=group) as frozen, started(host) as witness:
        await frozen.hear(control.Ready)
        await witness.hear(control.Ready)
        await group.freeze()
        await silent(frozen, witness)
        await group.end()
        assert await frozen.process.wait() == KILLED
        assert group.members() == set()
        await witness.answers(1)
        await group.end()  # of nobody
        await group.thaw()
    assert group.remove() == []


@as_kernel
async def test_ending_a_group_ends_all_in_it_and_nobody_else(host: Host) -> None:
    group = host.mechanisms.slices.group("servers", "many")
    async with started(host, group=group) as one, started(host, group=group) as other, started(host) as third:
        await third.hear(control.Ready)
        await group.end()
        assert await one.process.wait() == await other.process.wait() == KILLED
        await third.answers(1)
        assert group.killed_for_memory() == 0


@as_kernel
async def test_limits_are_taken_and_what_is_not_is_a_sentence(host: Host) -> None:
    group = host.mechanisms.slices.group("servers", "limited")
    async with started(host, group=group) as patient:
        await patient.hear(control.Ready)
        assert group.limit(Limits()) == []
        for said in (
            group.limit(Limits(cpu_weight=200, cpu_quota=0.5, memory=512 << 20, pids=100)),
            group.limit(Limits(cpu_weight=50, memory=1 << 30)),
        ):
            assert bool(said) == (host.mechanisms.slices.kind == "none")
        refused = group.limit(Limits(memory=-5))
        slices = host.mechanisms.slices
        if slices.kind != "none" and any("memory" in lacking for lacking in slices.lacks):
            assert refused == []  # said once for all groups, and asked of none
        else:
            assert len(refused) == 1 and ("-5" in refused[0] or slices.kind == "none")
        await patient.answers(1)
        assert group.limit(Limits()) == []


@as_kernel
async def test_a_group_is_kept_from_swap_or_says_why_not(host: Host) -> None:
    group = host.mechanisms.slices.group("servers", "secret")
    async with started(host, group=group) as patient:
        await patient.hear(control.Ready)
        assert bool(group.keep_from_swap()) == (host.mechanisms.slices.kind == "none")
        await patient.answers(1)


@in_groups
@as_kernel
async def test_a_group_with_somebody_in_it_is_not_removed(host: Host) -> None:
    held(host)
    group = host.mechanisms.slices.group("servers", "held")
    async with started(host, group=group) as patient:
        said = group.remove()
        assert said and all("was not removed" in each for each in said)
        assert group.members() == {patient.process.pid}
        await patient.hear(control.Ready)
    assert group.remove() == []


@in_groups
@as_kernel
async def test_a_boot_ends_what_an_earlier_one_left_frozen_or_not(host: Host) -> None:
    held(host)
    slices = host.mechanisms.slices
    frozen, running = slices.group("servers", "frozen"), slices.group("training", "running")
    async with started(host, group=frozen) as one, started(host, group=running) as other:
        await one.hear(control.Ready)
        await frozen.freeze()
        assert await host.boot_again().clean() == []
        assert await one.process.wait() == await other.process.wait() == KILLED


@in_groups
@as_kernel
async def test_who_leaves_removes_what_is_empty_and_ends_nobody(host: Host) -> None:
    held(host)
    slices = host.mechanisms.slices
    empty, full = slices.group("servers", "empty"), slices.group("servers", "full")
    assert empty.members() == set()
    async with started(host, group=full) as patient:
        await patient.hear(control.Ready)
        slices.leave()
        await patient.answers(1)
        assert full.members() == {patient.process.pid}
        await full.end()
        assert await patient.process.wait() == KILLED
    assert await host.boot_again().clean() == []
