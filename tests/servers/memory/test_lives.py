"""Regions outlive the process that serves them, and not the client that owns them: with real processes, killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from atoll.ipc import Node, connect
from atoll.ipc.errors import PeerDied, QuotaExceeded
from atoll.ipc.system.kernel import Swap
from atoll.servers.memory.interface import Memory, Region, Share
from atoll.servers.memory.regions import PAGE

from ..booted import booted

IMAGE = """
[image]
name = "memory"
about = "One memory server, for a test"

[node]
level = "process"
account = "all"

[account.all]
buffers = "64MiB"

[server.state]
needs = {}

[server.memory]
needs = { config = { config = { per_client = 1048576 } } }
restart = { first = 0.05, limit = 100 }
"""
HOLDER = """
import signal, sys
import msgspec
from atoll.ipc import connect
from atoll.servers.memory.interface import Memory

with connect(sys.argv[1]) as node:
    memory = node.open("memory", Memory)
    open_one, sealed = memory.allocate.now(8192), memory.allocate.now(4096)
    for region in (open_one, sealed):
        region.buffer.view[:5] = b"atoll"
    shares = [memory.share.now(region.number) for region in (open_one, sealed)]
    sealed = memory.seal.now(sealed.number)
    print(msgspec.json.encode(shares).decode(), flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    image = tmp_path_factory.mktemp("m") / "memory.toml"
    image.write_text(IMAGE)
    with booted(image, tmp_path_factory.mktemp("n")) as found:
        yield found


@contextmanager
def attached(folder: Path) -> Iterator[tuple[Node, Memory]]:
    with connect(str(folder)) as node:
        yield node, node.open("memory", Memory)


@contextmanager
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[Share]]]:
    """A client in a process of its own, and shares of what it holds: an open region and a sealed one."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, msgspec.json.decode(process.stdout.readline(), type=list[Share])
        finally:
            process.kill()


def start_of(region: Region) -> bytes:
    return bytes(region.buffer.view[:5])


def kill_server(node: Node) -> int:
    pid = next(row.pid for row in node.kernel.ps.now() if row.server == "memory")
    os.kill(pid, signal.SIGKILL)
    return pid


def replace(node: Node, how: str) -> None:
    """Another process serves the regions when this returns."""
    if how == "swap":
        node.kernel.swap.now(Swap(server="memory"))
    else:
        pid = kill_server(node)
        while next(row for row in node.kernel.ps.now() if row.server == "memory").pid in (0, pid):
            pass


@pytest.mark.parametrize("how", ["swap", "crash"])
def test_regions_live_on_in_the_next_process(folder: Path, how: str) -> None:
    with attached(folder) as (node, one), attached(folder) as (_, two), attached(folder) as (_, three):
        writer, sealed = one.allocate.now(PAGE), one.allocate.now(2 * PAGE)
        for region in (writer, sealed):
            region.buffer.view[:5] = b"atoll"
        shares = [one.share.now(region.number) for region in (writer, sealed)]
        one.seal.now(sealed.number)
        read = [two.open.now(share) for share in shares]
        before = one.mine.now(), two.mine.now()
        replace(node, how)
        assert (one.mine.now(), two.mine.now()) == before
        assert one.statistics.now().used == 3 * PAGE
        assert [start_of(two.map.now(region.number)) for region in read] == [b"atoll"] * 2
        writer.buffer.view[:5] = b"later"
        assert start_of(read[0]) == start_of(three.open.now(shares[0])) == b"later"
        assert one.map.now(writer.number).buffer.mode == "writable"
        assert three.open.now(shares[1]).buffer.mode == "immutable"
        assert one.share.now(writer.number) == shares[0]
        with pytest.raises(QuotaExceeded, match="bytes of memory"):
            one.allocate.now((1 << 20) - 2 * PAGE)
        assert one.allocate.now(PAGE).number not in (writer.number, sealed.number)
        assert one.release.now(writer.number) is True
        assert start_of(read[0]) == bytes(5)


@pytest.mark.parametrize("how", ["swap", "crash"])
def test_no_region_is_lost_or_doubled_while_clients_work(folder: Path, how: str) -> None:
    """Each client works on regions of its own; what it was told it has, it has, and nothing else is left in the end."""
    stop, begun, wrong = threading.Event(), threading.Barrier(5), list[str]()

    def work(number: int) -> None:
        try:
            with attached(folder) as (_, memory):
                kept = memory.allocate.now(PAGE)
                kept.buffer.view[:5] = text = b"%05d" % number
                begun.wait()
                while not stop.is_set():
                    try:
                        other = memory.allocate.now(PAGE)
                        memory.release.now(other.number)
                    except PeerDied:
                        if how == "swap":
                            raise
                    if start_of(memory.map.now(kept.number)) != text or start_of(kept) != text:
                        wrong.append(f"the region of client {number} holds something else")
                sealed = memory.seal.now(kept.number)
                if start_of(sealed) != text:
                    wrong.append(f"the sealed region of client {number} holds something else")
        except Exception as error:
            wrong.append(f"client {number}: {error!r}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with attached(folder) as (node, memory):
        for worker in workers:
            worker.start()
        begun.wait()
        for _ in range(3):
            replace(node, how)
            assert memory.mine.now() == []
        stop.set()
        for worker in workers:
            worker.join()
        assert wrong == []
        while memory.statistics.now().used:
            pass  # until the kernel has seen the end of each attachment, and the server the channel's
        rows = next(row for row in node.kernel.ps.now() if row.server == "memory")
        assert rows.channels == 1


def test_what_a_killed_client_held_is_reclaimed_and_what_it_shared_sealed_is_not(folder: Path) -> None:
    with attached(folder) as (_, memory), holder(folder) as (process, (open_one, sealed)):
        read, kept = memory.open.now(open_one), memory.open.now(sealed)
        assert [start_of(read), start_of(kept)] == [b"atoll"] * 2
        process.kill()
        while [each.number for each in memory.mine.now()] != [sealed.region]:
            pass
        while memory.statistics.now().used != PAGE:
            pass
        assert [start_of(read), start_of(kept)] == [bytes(5), b"atoll"]
        assert start_of(memory.map.now(sealed.region)) == b"atoll"
        assert memory.release.now(sealed.region) is True


def test_a_client_that_dies_while_nobody_serves_is_known_to_be_gone(folder: Path) -> None:
    with attached(folder) as (node, memory), holder(folder) as (process, (open_one, sealed)):
        read = memory.open.now(open_one)
        memory.open.now(sealed)
        kill_server(node)
        process.kill()
        process.wait()
        while [each.number for each in memory.mine.now()] != [sealed.region]:
            pass
        while memory.statistics.now().used != PAGE:
            pass
        assert start_of(read) == bytes(5)
        assert start_of(memory.map.now(sealed.region)) == b"atoll"


def test_what_a_stopped_server_kept_is_taken_back(folder: Path) -> None:
    with attached(folder) as (node, memory):
        region = memory.allocate.now(2 << 10)
        region.buffer.view[:5] = b"atoll"
        node.kernel.stop.now("memory")
        while start_of(region) != bytes(5):
            pass
        node.kernel.restart.now("memory")
        assert node.open("memory", Memory).mine.now() == []
