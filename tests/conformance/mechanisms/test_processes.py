"""Processes as the kernel starts, holds and ends them."""

import os
import signal
import socket

import msgspec
import pytest
import trio

from atoll.ipc.runtime.describe import Asked, heard
from atoll.ipc.system import control
from atoll.microkernel.descriptions import ENTRY, SOCKET, describe_all
from atoll.microkernel.processes import CannotConfine, Exit
from atoll.microkernel.zygote import DESCRIPTORS_MOST

from .hosts import CONTROL, ENVIRONMENT, Host, as_kernel, readable, started

KILLED = Exit(None, signal.SIGKILL)
FAR = 1 << 62
"""A deadline, ns of CLOCK_MONOTONIC."""


@as_kernel
async def test_a_process_says_what_it_serves_answers_and_ends_when_told(host: Host) -> None:
    async with started(host) as patient:
        ready = await patient.hear(control.Ready)
        assert [offered.name for offered in ready.interfaces] == ["Patient"]
        await patient.answers(7)
        await patient.answers(8)
        patient.connection.send(control.Stop(deadline=FAR))
        assert await patient.process.wait() == Exit(0)
        assert await patient.connection.receive() is None


@as_kernel
async def test_a_killed_process_ends_by_the_signal_and_is_silent(host: Host) -> None:
    async with started(host) as patient:
        await patient.hear(control.Ready)
        patient.process.kill()
        assert await patient.process.wait() == KILLED
        assert await patient.connection.receive() is None
        patient.process.kill()  # one that has ended is left alone
        assert patient.process.exit == KILLED


@as_kernel
async def test_a_process_has_a_name_and_a_number_of_its_own(host: Host) -> None:
    async with started(host) as one, started(host) as other:
        assert one.process.name == other.process.name == "patient"
        assert len({one.process.pid, other.process.pid, os.getpid()}) == 3
        assert one.process.pidfd != other.process.pidfd
        assert one.process.listener is None, "there is no filter at this level"


@as_kernel
async def test_the_end_of_one_process_is_not_that_of_another(host: Host) -> None:
    async with started(host) as one, started(host) as other:
        await one.hear(control.Ready)
        await other.hear(control.Ready)
        one.process.kill()
        await one.process.wait()
        assert other.process.exit is None
        assert not readable(other.process.pidfd)
        await other.answers(1)


@as_kernel
async def test_the_end_is_waited_for_again_and_again_and_by_several_tasks(host: Host) -> None:
    found: list[Exit] = []
    async with started(host) as patient:
        await patient.hear(control.Ready)

        async def wait() -> None:
            found.append(await patient.process.wait())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert patient.process.exit is None
            patient.process.kill()
        await wait()
    await wait()
    assert found == [KILLED] * 5


@as_kernel
async def test_who_gives_up_waiting_leaves_it_to_others(host: Host) -> None:
    found: list[Exit] = []
    async with started(host) as patient:
        await patient.hear(control.Ready)

        async def wait() -> None:
            found.append(await patient.process.wait())

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as impatient:
                    impatient.start_soon(patient.process.wait)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            assert patient.process.exit is None
            patient.process.kill()
    assert found == [KILLED]


@as_kernel
async def test_the_pidfd_is_readable_at_the_end_and_not_before(host: Host) -> None:
    async with started(host) as patient:
        assert not readable(patient.process.pidfd)
        await patient.hear(control.Ready)
        await patient.answers(1)
        assert not readable(patient.process.pidfd)
        patient.process.kill()
        await trio.lowlevel.wait_readable(patient.process.pidfd)
        assert patient.process.exit is None, "nobody has asked"
        assert await patient.process.wait() == KILLED
        assert readable(patient.process.pidfd)


@as_kernel
async def test_a_handle_is_closed_and_the_process_goes_on(host: Host) -> None:
    async with started(host) as patient:
        await patient.hear(control.Ready)
        kept = os.dup(patient.process.pidfd)
        pidfd = patient.process.pidfd
        patient.process.kill()
        ended = await patient.process.wait()
        patient.process.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pidfd)
        patient.process.close()
        assert await patient.process.wait() == patient.process.exit == ended
        assert readable(kept)
        os.close(kept)
    async with started(host) as patient:
        await patient.hear(control.Ready)
        kept = os.dup(patient.process.pidfd)
        await patient.answers(1)
        assert not readable(kept)
        os.close(kept)


@as_kernel
async def test_a_process_whose_control_socket_closes_ends_by_itself(host: Host) -> None:
    async with started(host) as patient:
        await patient.hear(control.Ready)
        patient.connection.close()
        assert await patient.process.wait() == Exit(1)


@as_kernel
async def test_a_process_that_was_told_nothing_ends_with_its_control_socket(host: Host) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = await host.mechanisms.spawner.spawn(
            host.confinement("patient"), descriptors={CONTROL: theirs.fileno()}, arguments=(CONTROL,),
            environment=ENVIRONMENT,
        )  # fmt: skip
    assert not readable(process.pidfd)
    ours.close()
    assert await process.wait() == Exit(1)
    process.close()


REASONS = {
    "sulky": ("start()", "ConnectionRefusedError: not today", 1),
    "broken": ("import", "OSError: its licence has run out", 1),
    "quitting": ("import", "SystemExit: 7", 7),
    "leaving": ("start()", "SystemExit: 7", 1),
}
"""Why the packages that do not start do not: step, sentence, status. An exit among a nursery's errors is an error."""


@as_kernel
async def test_a_process_that_does_not_start_says_why_and_fails(host: Host) -> None:
    for package, reason in REASONS.items():
        for _ in range(2):
            async with started(host, package) as server:
                failed = await server.hear(control.Failed)
                ended = await server.process.wait()
                assert (failed.step, failed.sentence, ended.status) == reason


@as_kernel
async def test_what_was_handed_is_the_childs_until_it_ends_and_the_callers_stay_its_own(host: Host) -> None:
    read, write = os.pipe()
    other_read, other_write = os.pipe()
    os.set_blocking(read, False)
    async with started(host, number=9, more={5: write, 11: other_write}) as patient:
        os.close(write)
        await patient.hear(control.Ready)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)  # the child holds its end
        patient.connection.send(control.Stop(deadline=FAR))
        assert await patient.process.wait() == Exit(0)
        assert os.read(read, 1) == b""
        os.write(other_write, b"mine")
        assert os.read(other_read, 4) == b"mine"
    for descriptor in (read, other_read, other_write):
        os.close(descriptor)


@as_kernel
async def test_a_killed_process_lets_go_of_what_it_was_handed_before_its_end_is_seen(host: Host) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    async with started(host, more={5: write}) as patient:
        os.close(write)
        await patient.hear(control.Ready)
        patient.process.kill()
        await trio.lowlevel.wait_readable(patient.process.pidfd)
        assert os.read(read, 1) == b""
    os.close(read)


@as_kernel
async def test_a_process_that_cannot_be_made_is_named_and_nothing_is_left(host: Host) -> None:
    read, write = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with pytest.raises(CannotConfine, match="ghost was not started") as caught:
            await host.mechanisms.spawner.spawn(
                host.confinement("ghost"), descriptors={CONTROL: theirs.fileno(), 5: write}, arguments=(CONTROL,),
                environment=ENVIRONMENT, **host.hopeless,
            )  # fmt: skip
        assert caught.value.server == "ghost"
        assert caught.value.step and caught.value.reason
        os.close(write)
        assert os.read(read, 1) == b"", "its end is the caller's alone"
        theirs.close()
        assert ours.recv(1) == b""
    os.close(read)


@as_kernel
async def test_more_descriptors_than_fit_into_a_request_are_refused(host: Host) -> None:
    read, write = os.pipe()
    with pytest.raises(CannotConfine, match="greedy was not started: handing over descriptors"):
        await host.mechanisms.spawner.spawn(
            host.confinement("greedy"), descriptors=dict.fromkeys(range(3, 4 + DESCRIPTORS_MOST), write),
            arguments=(CONTROL,), environment=ENVIRONMENT,
        )  # fmt: skip
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


@as_kernel
async def test_a_start_that_is_given_up_leaves_nobody_with_what_was_handed(host: Host) -> None:
    read, write = os.pipe()
    with trio.CancelScope() as scope:
        scope.cancel()
        await host.mechanisms.spawner.spawn(
            host.confinement("patient"), descriptors={CONTROL: write}, arguments=(CONTROL,),
            environment=ENVIRONMENT,
        )  # fmt: skip
    assert scope.cancelled_caught
    os.close(write)
    await trio.lowlevel.wait_readable(read)
    assert os.read(read, 1) == b""
    os.close(read)


@as_kernel
async def test_processes_are_started_at_once_by_several_tasks(host: Host) -> None:
    async def live() -> None:
        async with started(host) as patient:
            await patient.hear(control.Ready)
            pids.add(patient.process.pid)
            patient.connection.send(control.Stop(deadline=FAR))
            assert await patient.process.wait() == Exit(0)

    pids: set[int] = set()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(live)
    assert len(pids) == 4


@as_kernel
async def test_a_package_is_described_by_a_process_that_ends(host: Host) -> None:
    folder = host.package("patient").parent
    ours, theirs = socket.socketpair()
    with theirs:
        process = await host.mechanisms.spawner.spawn(
            host.confinement("describe patient"), entry=ENTRY, descriptors={SOCKET: theirs.fileno()},
            arguments=(SOCKET,), environment=ENVIRONMENT,
        )  # fmt: skip
    async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
        await stream.send_all(msgspec.json.encode(Asked(folder=str(folder), package="patient")))
        await stream.send_eof()
        told = b"".join([data async for data in stream])
    assert await process.wait() == Exit(0)
    process.close()
    answer = heard(told)
    assert answer is not None and answer.fault == "" and answer.description is not None
    assert [each.name for each in answer.description.interfaces] == ["Patient"]


@as_kernel
async def test_packages_are_described_at_once_and_a_broken_one_says_why_not(host: Host) -> None:
    spawner, abilities = host.mechanisms.spawner, host.mechanisms.abilities
    packages = {name: host.package(name) for name in ("patient", *REASONS)}
    for _ in range(2):
        found = await describe_all(spawner, abilities, packages, {})
        described = {name for name, each in found.items() if not isinstance(each, str)}
        assert described == {"patient", "sulky", "leaving"}, "these can be imported"
        assert (found["broken"], found["quitting"]) == (REASONS["broken"][1], REASONS["quitting"][1])
    missing = await describe_all(spawner, abilities, {"nobody": packages["patient"].parent / "nobody"}, {})
    assert isinstance(missing["nobody"], str) and missing["nobody"]
