"""The memory server in a node: every buffer is made, sealed and passed by the kernel."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.ipc import Node, connect
from atoll.ipc.errors import NotFound, QuotaExceeded
from atoll.servers.memory.interface import HasReaders, Memory, Region
from atoll.servers.memory.regions import PAGE

from ..booted import booted

IMAGE = """
[image]
name = "memory"
about = "One memory server, for a test"

[node]
level = "process"
account = "small"

[account.small]
channels = 64
capabilities = 1024
buffers = "1MiB"
descriptors = 256
pending = 256

[server.state]
needs = {}

[server.memory]
needs = {}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    image = tmp_path_factory.mktemp("m") / "memory.toml"
    image.write_text(IMAGE)
    with booted(image, tmp_path_factory.mktemp("n")) as found:
        yield found


def attached(folder: Path) -> Node:
    return connect(str(folder))


def start_of(region: Region) -> bytes:
    return bytes(region.buffer.view[:5])


def test_regions_are_shared_sealed_and_taken_back_across_processes(folder: Path) -> None:
    with attached(folder) as first, attached(folder) as second, attached(folder) as third:
        one, two, three = (node.open("memory", Memory) for node in (first, second, third))
        region = one.allocate.now(5000)
        assert (region.size, region.buffer.mode, len(region.buffer)) == (2 * PAGE, "writable", 2 * PAGE)
        written = two.open.now(one.share.now(region.number, writable=True))
        written.buffer.view[:5] = b"atoll"
        assert start_of(region) == b"atoll"
        read = three.open.now(one.share.now(region.number))
        assert (read.buffer.mode, start_of(read)) == ("readonly", b"atoll")
        assert read.buffer.view.readonly
        sealed = one.seal.now(region.number)
        assert [start_of(each) for each in (region, written, read)] == [bytes(5)] * 3
        everywhere = [sealed, two.map.now(region.number), three.map.now(region.number)]
        assert {(each.buffer.mode, start_of(each)) for each in everywhere} == {("immutable", b"atoll")}
        for memory in (one, two):
            assert memory.release.now(region.number) is False
        assert start_of(three.map.now(region.number)) == b"atoll"
        assert three.release.now(region.number) is True
        assert three.statistics.now().used == 0


def test_what_a_dead_client_held_is_taken_back(folder: Path) -> None:
    with attached(folder) as second:
        two = second.open("memory", Memory)
        before = two.statistics.now().reclaimed
        with attached(folder) as first:
            one = first.open("memory", Memory)
            region = one.allocate.now(PAGE)
            region.buffer.view[:5] = b"atoll"
            held = two.open.now(one.share.now(region.number, writable=True))
        while two.statistics.now().used:
            pass  # until the kernel has seen the end of the attachment, and the server the channel's
        assert two.statistics.now().reclaimed == before + 1
        assert start_of(held) == bytes(5)


def test_a_region_that_the_account_cannot_pay_for_is_refused_and_leaves_nothing(folder: Path) -> None:
    with attached(folder) as node:
        memory = node.open("memory", Memory)
        kept = memory.allocate.now(PAGE)
        with pytest.raises(QuotaExceeded, match="buffers"):
            memory.allocate.now(2 << 20)
        assert [each.number for each in memory.mine.now()] == [kept.number]
        for _ in range(3):
            # All but the kept page: it fits only if what was released before is paid back.
            big = memory.allocate.now((1 << 20) - PAGE)
            assert memory.release.now(big.number) is True
        assert memory.release.now(kept.number) is True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the mappings of an undumpable process")
def test_the_server_does_not_map_what_its_clients_keep(folder: Path) -> None:
    with attached(folder) as node:
        memory = node.open("memory", Memory)
        region = memory.allocate.now(64 * PAGE)
        (server,) = (process for process in node.kernel.ps.now() if process.server == "memory")
        assert "memfd:buffer " not in Path(f"/proc/{server.pid}/maps").read_text()
        memory.release.now(region.number)


def test_a_reader_sees_what_is_written_later(folder: Path) -> None:
    with attached(folder) as first, attached(folder) as second:
        one, two = first.open("memory", Memory), second.open("memory", Memory)
        region = one.allocate.now(PAGE)
        read = two.open.now(one.share.now(region.number))
        region.buffer.view[:5] = b"later"
        assert (read.buffer.mode, start_of(read)) == ("readonly", b"later")
        with pytest.raises(HasReaders):
            two.open.now(one.share.now(region.number, writable=True))
        assert one.map.now(region.number).buffer.view[:5] == b"later"


def test_who_lets_go_of_a_region_that_lives_on_unmaps_it(folder: Path) -> None:
    with attached(folder) as first, attached(folder) as second:
        one, two = first.open("memory", Memory), second.open("memory", Memory)
        region = one.allocate.now(PAGE)
        share = one.share.now(region.number)
        number = two.open.now(share).number
        assert two.release.now(number) is False
        with pytest.raises(NotFound):
            two.map.now(number)
        second.buffer(PAGE)  # it hears what the kernel said meanwhile
        assert region.number not in second._deliveries._buffers
        assert start_of(two.open.now(share)) == bytes(5)
