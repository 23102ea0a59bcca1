"""Leases in a node: what crashes, swaps and killed clients leave of them, with real processes."""

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
from atoll.ipc.errors import BadRequest, QuotaExceeded
from atoll.ipc.system.kernel import Swap
from atoll.servers.gpu.interface import Gpu, Lease, NoSuchLease

from ..booted import booted

IMAGE = """
[image]
name = "gpu"
about = "One gpu server, for a test"

[node]
level = "process"

[keyspace.leases]

[server.state]
needs = {}

[server.gpu]
needs = { rows = { keyspace = "leases", rights = ["read", "write", "history"] }, config = { config = { grace = 3600.0 } } }
restart = { first = 0.05, limit = 100 }
"""
HOLDER = """
import signal, sys
from atoll.ipc import connect
from atoll.servers.gpu.interface import Gpu

with connect(sys.argv[1]) as node:
    print(node.open("gpu", Gpu).acquire.now("cpu", int(sys.argv[2]), ttl=86400.0).id, flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("g") / "gpu.toml"
    image.write_text(IMAGE)
    return image


@pytest.fixture(scope="module")
def folder(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with booted(image, tmp_path_factory.mktemp("n")) as found:
        yield found


@contextmanager
def attached(folder: Path) -> Iterator[tuple[Node, Gpu]]:
    with connect(str(folder)) as node:
        yield node, node.open("gpu", Gpu)


@contextmanager
def holder(folder: Path, memory: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A client in a process of its own, and its lease."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(memory)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def leasable(gpu: Gpu) -> int:
    return next(device.leasable for device in gpu.devices.now() if device.id == "cpu")


def ended(gpu: Gpu, lease: int) -> str:
    """How a lease ended, once it has."""
    while lease in [each.id for each in gpu.leases.now()]:
        pass
    while True:  # until the row of its end is committed
        for event in gpu.history.now():
            if event.lease.id == lease:
                return event.how


def kill_server(node: Node) -> int:
    pid = next(row.pid for row in node.kernel.ps.now() if row.server == "gpu")
    os.kill(pid, signal.SIGKILL)
    return pid


def replace(node: Node, how: str, deadline: float = 10.0) -> None:
    """Another process serves the leases when this returns."""
    if how == "swap":
        node.kernel.swap.now(Swap(server="gpu", deadline=deadline))
    else:
        pid = kill_server(node)
        while next(row for row in node.kernel.ps.now() if row.server == "gpu").pid in (0, pid):
            pass


@pytest.mark.parametrize("how", ["swap", "crash"])
def test_a_lease_stands_in_the_next_process(folder: Path, how: str) -> None:
    with attached(folder) as (node, gpu):
        lease = gpu.acquire.now("cpu", 4096, ttl=3600.0, purpose="test")
        replace(node, how)
        assert gpu.leases.now() == [lease]
        assert gpu.renew.now(lease.id, 7200.0).expires > lease.expires
        assert gpu.release.now(lease.id) is True
        assert ended(gpu, lease.id) == "released"


def test_a_killed_holders_lease_ends_and_who_waits_gets_the_memory(folder: Path) -> None:
    with attached(folder) as (_, gpu):
        every = leasable(gpu)
        with holder(folder, every) as (process, lease):
            waiting = gpu.acquire.start("cpu", every, wait=3600.0)
            while gpu.statistics.now().waiting == 0:
                pass
            process.kill()
            mine = waiting.result()
            assert isinstance(mine, Lease) and mine.id != lease
            assert ended(gpu, lease) == "holder died"
            with pytest.raises(NoSuchLease):
                gpu.renew.now(lease, 60.0)
            gpu.release.now(mine.id)


def test_a_holder_that_dies_while_nobody_serves_is_known_to_be_gone(folder: Path) -> None:
    with attached(folder) as (node, gpu), holder(folder, 4096) as (process, lease):
        kill_server(node)
        process.kill()
        process.wait()
        assert ended(gpu, lease) == "holder died"


@pytest.mark.parametrize("how", ["swap", "crash"])
def test_who_waits_goes_on_waiting_at_the_next_process(folder: Path, how: str) -> None:
    """The request comes again and gets one lease, though the process that it waited at is gone."""
    with attached(folder) as (node, gpu), attached(folder) as (_, other):
        every = leasable(gpu)
        held = gpu.acquire.now("cpu", every, ttl=3600.0)
        got: list[Lease] = []
        waiter = threading.Thread(target=lambda: got.append(other.acquire.now("cpu", every, wait=3600.0)))
        waiter.start()
        while gpu.statistics.now().waiting == 0:
            pass
        replace(node, how, deadline=0.1)
        while gpu.statistics.now().waiting == 0:
            pass
        assert gpu.leases.now() == [held]
        gpu.release.now(held.id)
        waiter.join()
        assert gpu.leases.now() == got
        assert other.release.now(got[0].id) is True


@pytest.mark.parametrize("how", ["swap", "crash"])
def test_who_must_give_way_hears_of_it_though_the_process_that_decided_so_is_gone(
    folder: Path, how: str
) -> None:
    with attached(folder) as (node, weak), attached(folder) as (_, strong):
        every = leasable(weak)
        held = weak.acquire.now("cpu", every - 4096, priority=10, ttl=3600.0)
        passing = weak.acquire.now("cpu", 4096, priority=100, ttl=3600.0)
        asked = strong.acquire.start("cpu", every - 4096, priority=90, wait=3600.0)
        rows, key = node.keyspace("leases"), b"lease/%016d" % held.id
        while not msgspec.msgpack.decode(rows.get.now(key).value)["leaving"]:  # type: ignore[union-attr, arg-type]
            pass
        replace(node, how, deadline=0.1)
        weak.renew.now(passing.id, 0.001)
        notices = weak.notices.now()
        notice = next(notices)
        assert (notice.lease, notice.what) == (held.id, "give way")
        notices.cancel()
        asked.cancel()
        weak.release.now(held.id)


def test_leases_are_neither_lost_nor_doubled_while_the_server_is_killed(folder: Path) -> None:
    """Clients that each want more than half of the memory: at no time do two of them have it."""
    stop, wrong, owner = threading.Event(), list[str](), threading.Lock()
    begun = threading.Barrier(4)

    def work(number: int) -> None:
        try:
            with attached(folder) as (_, gpu):
                most = leasable(gpu)
                begun.wait()
                while not stop.is_set():
                    lease = gpu.acquire.now("cpu", most // 2 + 1, ttl=3600.0, wait=3600.0)
                    if not owner.acquire(blocking=False):
                        wrong.append(f"client {number} was given what another one has")
                        return
                    if [each.id for each in gpu.leases.now()] != [lease.id]:
                        wrong.append(f"client {number} has lease {lease.id}, and it is not the only one")
                    owner.release()
                    gpu.release.now(lease.id)
        except Exception as error:
            wrong.append(f"client {number}: {error!r}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    with attached(folder) as (node, gpu):
        for worker in workers:
            worker.start()
        begun.wait()
        for how in ("crash", "swap", "crash"):
            replace(node, how, deadline=0.5)
        stop.set()
        for worker in workers:
            worker.join()
        assert wrong == []
        assert gpu.leases.now() == []


def test_leases_end_with_the_node(image: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("n")
    with booted(image, place), attached(place) as (node, gpu):
        lease = gpu.acquire.now("cpu", 4096, ttl=86400.0)
        node.kernel.stop.now("gpu")
    with booted(image, place), connect(str(place)) as node:
        node.kernel.restart.now("gpu")
        gpu = node.open("gpu", Gpu)
        assert ended(gpu, lease.id) == "node ended"
        assert gpu.leases.now() == []
        assert gpu.acquire.now("cpu", 4096).id > lease.id


def test_a_client_that_asks_for_all_there_is_holds_up_nobody(folder: Path) -> None:
    with attached(folder) as (_, gpu):
        with attached(folder) as (_, greedy):
            with pytest.raises(BadRequest, match="200 bytes at most"):
                greedy.acquire.now("cpu", 1, purpose="x" * 500_000)
            asked = [greedy.acquire.start("cpu", 1, ttl=3600.0, purpose="x" * 200) for _ in range(100)]
            got, refused = list[Lease](), 0
            for each in asked:
                try:
                    got.append(each.result())
                except QuotaExceeded:
                    refused += 1
            assert (len(got), refused) == (64, 36)
            lease = gpu.acquire.now("cpu", 4096)
        assert ended(gpu, got[-1].id) == "holder died"
        assert gpu.leases.now() == [lease]
        assert gpu.release.now(lease.id)
