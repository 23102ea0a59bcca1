"""Who connects, and what tells others that the kernel lives."""

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from atoll.microkernel.peers import Refused

from . import programs
from .hosts import Host, Program, as_kernel, readable


@asynccontextmanager
async def visited(host: Host) -> AsyncIterator[tuple[Program, socket.socket]]:
    """A program that has connected, and the kernel's end."""
    address = f"\0conform-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        async with host.program(programs.visitor) as program:
            program.end.send(address.encode())
            assert await programs.told(program.end) == b"connected"
            end, _ = listening.accept()
            with end:
                yield program, end


@as_kernel
async def test_a_program_that_connects_is_known(host: Host) -> None:
    async with visited(host) as (program, end):
        peer = host.mechanisms.doors.peer(end)
        assert peer.pid == peer.ancestors[0] == program.pid
        assert (peer.uid, peer.gid, peer.groups) == (os.geteuid(), os.getegid(), set(os.getgroups()))
        assert peer.program
        assert peer.lives()
        assert not readable(peer.pidfd)
        program.kill()
        await program.ended()
        assert not peer.lives()
        assert readable(peer.pidfd)
        peer.close()


@as_kernel
async def test_a_program_that_goes_in_order_is_gone_as_well(host: Host) -> None:
    async with visited(host) as (program, end):
        peer = host.mechanisms.doors.peer(end)
        program.end.send(b"enough")
        await trio.lowlevel.wait_readable(peer.pidfd)
        assert not peer.lives()
        peer.close()


@as_kernel
async def test_a_program_that_has_ended_is_refused(host: Host) -> None:
    async with visited(host) as (program, end):
        program.kill()
        await program.ended()
        with pytest.raises(Refused, match="the program that connected has ended"):
            host.mechanisms.doors.peer(end)


@as_kernel
async def test_the_end_of_a_kernel_is_told_by_its_descriptor_and_not_before(host: Host) -> None:
    for how in ("told", "killed"):
        async with host.program(programs.kernel) as program:
            await trio.lowlevel.wait_readable(program.end)
            _, (own,), _, _ = socket.recv_fds(program.end, 16, 1, socket.MSG_CMSG_CLOEXEC)
            assert not readable(own)
            if how == "told":
                program.end.send(b"enough")
            else:
                program.kill()
            await trio.lowlevel.wait_readable(own)
            await program.ended()
            assert readable(own)
            os.close(own)


@as_kernel
async def test_a_kernel_lives_by_its_own_word(host: Host) -> None:
    one, other = host.mechanisms.doors.own(), host.mechanisms.doors.own()
    assert one != other, "each is its caller's"
    assert not readable(one)
    os.close(one)
    assert not readable(other)
    os.close(other)
