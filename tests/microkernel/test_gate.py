"""The attach socket's tasks, when descriptors' numbers pass on to others."""

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from atoll.ipc.system.control import Hello
from atoll.microkernel.accounts import Ledger
from atoll.microkernel.capabilities import Tree
from atoll.microkernel.changes import Batch
from atoll.microkernel.connections import Connection
from atoll.microkernel.gate import Gate
from atoll.microkernel.parties import KERNEL


def gate(folder: Path) -> Gate:
    node: Any = SimpleNamespace(
        place=SimpleNamespace(socket=folder / "attach"), image=SimpleNamespace(attach=())
    )
    nothing: Any = None
    return Gate(node, nothing, nothing)


async def test_who_waits_for_programs_ends_when_the_socket_is_closed(tmp_path: Path) -> None:
    """Its number is another's then, and no word about that is for this task."""
    made, ended = gate(tmp_path), []
    made.open()

    async def serve() -> None:
        await made.serve()
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        made.close()
        await trio.testing.wait_all_tasks_blocked()
        assert ended
        nursery.cancel_scope.cancel()


class Doubted:
    """A program whose pidfd is said to be readable once for each byte, and which is dead when there is none."""

    def __init__(self, words: int) -> None:
        self.pidfd, self._far = os.pipe()
        self.asked = 0
        os.write(self._far, bytes(words))

    def lives(self) -> bool:
        self.asked += 1
        if self.asked == 1:
            return True  # nothing was said of it yet
        return len(os.read(self.pidfd, 1)) == 1

    def close(self) -> None:
        for descriptor in (self.pidfd, self._far):
            os.close(descriptor)


async def test_a_program_is_not_put_out_by_a_word_about_another(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection, peer = Connection(ours), Doubted(5)
    party: Any = SimpleNamespace(holder="@1")
    doubted: Any = peer
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate(tmp_path)._converse, party, connection, doubted)
            await trio.testing.wait_all_tasks_blocked()
            assert peer.asked == 6, "it was asked again after each word, and lives"
            assert len(nursery.child_tasks) == 1
            nursery.cancel_scope.cancel()
    connection.close()
    peer.close()


@pytest.mark.parametrize("hung_up", [False, True], ids=["is put out", "detaches"])
async def test_what_a_program_finds_shut_first(tmp_path: Path, hung_up: bool) -> None:
    """One that is put out: its control socket. It takes a kernel for hostile that shuts a doorbell and keeps that open. One
    that detaches: the channels, for the socket tells it that all was given up."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(ours)
    connection.hung_up = hung_up
    shut: list[bool] = []
    made = gate(tmp_path)
    node: Any = made._node
    node.tree = SimpleNamespace(held_by=lambda holder: [])
    node.store = SimpleNamespace(batch=lambda note: Batch(b"1", note), later=lambda batch: None)
    node.boot, node.now = 1, lambda: 1
    authority: Any = SimpleNamespace(leave=lambda party, session: shut.append(connection.closed))
    party: Any = SimpleNamespace(
        gone=False, connection=connection, holder="@1", close=connection.close, number=1, uid=0, pid=1, program="",
        operator=False, since=0,
    )  # fmt: skip
    with theirs:
        made._authority = authority
        made._leave(party)
    assert shut == [not hung_up]
    assert connection.closed


async def test_a_program_that_cannot_be_welcomed_is_no_party(tmp_path: Path) -> None:
    """The kernel is short of descriptors where it would hand over its own pidfd."""
    made, left = gate(tmp_path), list[Any]()
    node: Any = made._node
    node.ledger, node.parties, node.number, node.now = Ledger(), {}, lambda: 1, lambda: 1
    node.tree = Tree(1, node.ledger)
    node.tree.offer(KERNEL, "Kernel", ("observe", "operate", "serve"))
    node.channels = SimpleNamespace(of_client=lambda party: [])

    def own() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    node.doors = SimpleNamespace(own=own)
    authority: Any = SimpleNamespace(
        admit=lambda capability, party: None, leave=lambda party, session: left.extend(session)
    )
    made._authority = authority
    peer: Any = SimpleNamespace(pid=1, uid=0, program="")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(ours)
    with theirs, pytest.raises(OSError, match="Too many open files"):
        made._enter(peer, None, connection, Hello(name="program"))
    assert left == [held.id for held in node.tree.held_by("@1")] != []
    connection.close()
