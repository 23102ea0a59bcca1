"""What servers may use, in a running node: set as one transaction, recorded, carried out, and kept by the stated rule."""

import os
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import BadRequest
from atoll.ipc.system.kernel import Load, ServerBinding, Slice
from atoll.ipc.system.records import SliceRow, decode
from atoll.ipc.system.state import Item
from atoll.microkernel.slices import Limits, choose, io_priority

from .nodes import PACKAGES, RealNode, booted, interface
from .test_store_over_restarts import PLAIN, kill_store

Counter = interface("counter", "Counter")
Lessee = interface("lessee", "Lessee")

SLICES = f"""
[slice.training]
io_class = "idle"
device_memory = "6KiB"
priority = 3

[keyspace.leases]

[server.gpu]
needs = {{ rows = {{ keyspace = "leases", rights = ["read", "write", "history"] }} }}

[server.first]
package = "{PACKAGES}/lessee"
slice = "training"
needs = {{ gpu = {{ server = "gpu", rights = ["read", "lease"] }} }}

[server.second]
package = "{PACKAGES}/lessee"
needs = {{ gpu = {{ server = "gpu", rights = ["read", "lease"] }} }}
"""


def rows(attached: Attached, name: str) -> list[SliceRow | None]:
    """The history of a slice's row, latest first; None: it was deleted."""
    key = SliceRow.key_of(name)
    history: list[Item] = attached.keyspace("kernel", ["read", "history"]).history.now(key)
    return [None if item.value is None else decode(SliceRow, item.value) for item in history]


def test_a_change_is_a_row_and_what_it_could_not_do_is_said(node: RealNode) -> None:
    with node.attach() as attached:
        first = attached.kernel.set_slice.now("counter", Slice(cpu_weight=200, memory=256 << 20))
        assert (first.cpu_weight, first.memory) == (200, 256 << 20)
        second = attached.kernel.set_slice.now(
            "counter", Slice(device_time=0.5, device_memory=1 << 20, priority=7)
        )
        assert (second.device_time, second.device_memory, second.priority) == (0.5, 1 << 20, 7)
        assert any("device_time" in sentence for sentence in second.unenforced)
        latest, before = rows(attached, "server counter")
        assert latest is not None
        assert before is not None
        assert (before.limits["cpu_weight"], latest.limits["cpu_weight"]) == (200, 100)
        assert latest.limits["device_memory"] == 1 << 20
        assert latest.by == f"@{attached.welcome.attachment}"
        with pytest.raises(BadRequest, match="set_slice: priority"):
            attached.kernel.set_slice.now("counter", Slice(priority=10))
        assert attached.kernel.slice.now("counter") == second


def test_what_a_person_set_stays_for_what_a_person_loaded(tmp_path: Path) -> None:
    """For a server of the image the image wins at a boot, as everywhere; `boot --plan` says so before."""
    with booted(tmp_path) as node:
        with node.attach() as attached:
            needs = {"counter": ServerBinding(server="counter")}
            attached.kernel.load.now(Load(server="mine", package=str(PACKAGES / "teller"), needs=needs))
            for server in ("counter", "mine"):
                attached.kernel.set_slice.now(server, Slice(cpu_weight=300, device_memory=4096, priority=8))
        node.stop()
        node.boot()
        assert any("retire slice of server counter (set by hand" in line for line in node.said)
        assert any("keep   slice of server mine (set by hand" in line for line in node.said)
        with node.attach() as attached:
            kept, undone = (attached.kernel.slice.now(server) for server in ("mine", "counter"))
            assert (kept.cpu_weight, kept.device_memory, kept.priority) == (300, 4096, 8)
            assert (undone.cpu_weight, undone.device_memory, undone.priority) == (100, None, 5)
            assert rows(attached, "server counter")[0] is None
            assert rows(attached, "server counter")[1] is not None
        node.stop()
        node.boot()
        assert not any("slice of server counter" in line for line in node.said)


def test_the_store_may_be_given_other_limits_while_it_is_down(tmp_path: Path) -> None:
    """Its restart waits until the change is through, which cannot wait for the store, then."""
    late = PLAIN.replace("needs = {}", "needs = {}\nrestart = { first = 1, most = 1 }")
    with booted(tmp_path, text=late) as node, node.attach() as attached:
        kill_store(attached)
        while next(row for row in attached.kernel.ps.now() if row.server == "state").state != "restarting":
            pass
        assert attached.kernel.set_slice.now("state", Slice(cpu_weight=200)).cpu_weight == 200
        while not (kept := rows(attached, "server state")):  # it waits in the journal
            pass
        assert kept[0] is not None and kept[0].limits["cpu_weight"] == 200


def priority_of(pid: int) -> list[int]:
    """The I/O class and level of each thread of a process."""
    import ctypes
    import platform

    number = {"x86_64": 252, "aarch64": 31}[platform.machine()]
    get = ctypes.CDLL(None).syscall
    return [get(number, 1, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")]


def test_a_slice_reaches_leases_and_the_disk(tmp_path: Path) -> None:
    with booted(tmp_path, more=SLICES) as node, node.attach() as attached:
        first, second = (attached.open(name, Lessee) for name in ("first", "second"))
        pids = {row.server: row.pid for row in attached.kernel.ps.now()}
        idle = io_priority(Limits(io_class="idle"))
        assert set(priority_of(pids["first"])) == {idle}
        assert idle not in priority_of(pids["second"])
        assert first.take.now(4096) == "standing 3, within slice training"
        assert "slice training may lease 6144 bytes" in first.take.now(4096)
        assert second.take.now(4096) == "standing 5, within "
        attached.kernel.set_slice.now(
            "second",
            Slice(device_memory=8192, device_time=0.25, priority=9, io_class="best-effort", io_weight=400),
        )
        assert set(priority_of(pids["second"])) == {io_priority(Limits(io_weight=400))}
        assert second.take.now(4096) == "standing 9, within server second, time 0.25"
        assert "server second may lease 8192 bytes" in second.take.now(4096), (
            "what it had before counts, once renewed"
        )


NAMED_ODDLY = """
[slice.servers]
pids = 64

[slice.kernel]
pids = 64
"""


def test_a_server_without_a_slice_is_in_none_however_slices_are_called(tmp_path: Path) -> None:
    """Nor is the kernel: what a slice bounds are its servers, and no other processes of the node."""
    trial = choose("trial")
    trial.leave()
    if trial.kind == "none":
        pytest.skip(trial.lacks[0])
    with (
        booted(tmp_path, counter='slice = "servers"', more=NAMED_ODDLY) as node,
        node.attach() as attached,
    ):
        pids = {row.server: row.pid for row in attached.kernel.ps.now()}
        assert node.kernel is not None
        groups = {
            name: (Path("/proc") / str(pid) / "cgroup").read_text()
            for name, pid in (*pids.items(), ("kernel", node.kernel.pid))
        }
        bounded = {name for name, text in groups.items() if "/servers/" in text or "/kernel\n" in text}
        assert bounded == {"counter"}
