"""The gpu server as its clients see it: waiting, death, preemption, crashes. Its clock moves when told."""

from collections.abc import Callable
from typing import Any

import pytest

from atoll.ipc.errors import Aborted, BadRequest, Overloaded
from atoll.ipc.proxy import transport_of
from atoll.servers.gpu.admission import Bound
from atoll.servers.gpu.interface import Device, Gpu, NeverFits, NoSuchLease
from atoll.servers.gpu.server import Server, Settings

CONFIG = Settings(share=0.5, grace=5.0, queue=4)


class TwoDevices(Server):
    """The real server on a machine whose devices are known: 100 and 40 bytes may be leased."""

    def discover(self) -> tuple[list[Device], str]:
        cuda = Device(id="cuda:0", kind="cuda", name="A", uuid="GPU-1", memory=200, stand_in=False)
        return [cuda, Device(id="cpu", kind="cpu", name="C", uuid="cpu", memory=80, stand_in=False)], ""

    async def share(self, client: int) -> tuple[int, tuple[Bound, ...]]:
        return 5, ()  # there is no kernel here; tests/microkernel/test_bounds.py has one


class ThisMachine(Server):
    async def share(self, client: int) -> tuple[int, tuple[Bound, ...]]:
        return 5, ()


@pytest.fixture
def start(serve: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: serve(TwoDevices, config=CONFIG)


def test_this_machine_leases_what_its_share_allows(serve: Callable[..., Any]) -> None:
    gpu: Gpu = serve(ThisMachine, config=CONFIG).client()
    devices = gpu.devices.now()
    assert all(device.leasable == device.memory // 2 for device in devices)
    lease = gpu.acquire.now("accelerator", 4096, purpose="test")
    device = next(each for each in gpu.devices.now() if each.id == lease.device)
    assert (device.leased, lease.purpose) == (4096, "test")
    assert device.kind == "cuda" or device.stand_in
    assert gpu.release.now(lease.id)
    assert not gpu.release.now(lease.id)
    (event,) = gpu.history.now()
    assert (event.lease, event.how) == (lease, "released")


def test_who_waits_gets_its_lease_when_the_holder_dies(start: Callable[[], Any]) -> None:
    served = start()
    one, two = served.client(), served.client()
    held = one.acquire.now("cuda", 100)
    with pytest.raises(Overloaded, match="pass `wait`"):
        two.acquire.now("cuda", 1)
    waiting = two.acquire.start("cuda", 100, wait=1000.0)
    served.settle()
    assert two.statistics.now().waiting == 1
    served.gone(one)
    lease = waiting.result()
    assert lease.id != held.id
    assert [(event.lease.id, event.how) for event in two.history.now()] == [(held.id, "holder died")]
    with pytest.raises(NoSuchLease):
        two.renew.now(held.id, 10.0)


def test_waiting_ends_with_its_time(start: Callable[[], Any]) -> None:
    served = start()
    one, two = served.client(), served.client()
    one.acquire.now("cuda", 100, ttl=3600.0)
    waiting = two.acquire.start("cuda", 100, wait=30.0)
    served.advance(31)
    with pytest.raises(Overloaded, match="for the 30 s that were waited"):
        waiting.result()
    assert two.statistics.now().waiting == 0


def test_a_weaker_holder_gets_notice_and_then_loses_its_lease(start: Callable[[], Any]) -> None:
    served = start()
    weak, strong = served.client(), served.client()
    held = weak.acquire.now("cuda", 80, priority=10, ttl=3600.0)
    notices = weak.notices.now()
    waiting = strong.acquire.start("cuda", 60, priority=90, wait=100.0)
    notice = next(notices)
    assert (notice.lease, notice.what) == (held.id, "give way")
    assert weak.renew.now(held.id, 1000.0).expires == held.expires
    served.advance(6)
    assert waiting.result().memory == 60
    ended = next(notices)
    assert (ended.what, ended.why) == ("ended", "it had to give way")
    assert ended.position > notice.position
    assert [event.how for event in strong.history.now()] == ["preempted"]
    assert strong.statistics.now().preempted == 1
    notices.cancel()


def test_a_lease_ends_with_its_time_unless_renewed(start: Callable[[], Any]) -> None:
    served = start()
    gpu: Gpu = served.client()
    one, two = gpu.acquire.now("cuda", 10, ttl=60.0), gpu.acquire.now("cpu", 10, ttl=60.0)
    served.advance(50)
    gpu.renew.now(one.id, 60.0)
    served.advance(20)
    assert gpu.acquire.now("cpu", 40).memory == 40
    assert [event.lease.id for event in gpu.history.now()] == [two.id]
    assert one.id in [lease.id for lease in gpu.leases.now()]


def test_leases_survive_a_crash_of_the_server(start: Callable[[], Any]) -> None:
    served = start()
    lease = served.client().acquire.now("cuda", 70, ttl=3600.0)
    served.kill()
    again = start()
    gpu: Gpu = again.client()
    assert gpu.leases.now() == [lease]
    with pytest.raises(Overloaded):
        gpu.acquire.now("cuda", 40)
    assert gpu.acquire.now("cuda", 30).id > lease.id
    again.host.submit(lambda: again.server.client_gone(lease.client))
    assert gpu.acquire.now("cuda", 70, wait=10.0).device == "cuda:0"


def test_a_process_that_another_one_has_replaced_commits_nothing(start: Callable[[], Any]) -> None:
    old, new = start(), start()
    with pytest.raises(Aborted, match="another process serves them now"):
        old.client().acquire.now("cuda", 10)
    lease = new.client().acquire.now("cuda", 100)
    assert start().client().leases.now() == [lease]


def test_a_swap_that_was_refused_leaves_the_rows_to_the_old_process(start: Callable[[], Any]) -> None:
    old = start()
    gpu: Gpu = old.client()
    start().kill()
    old.host.submit(lambda: old.server.clients_present(frozenset([transport_of(gpu).number])))
    lease = gpu.acquire.now("cuda", 100)
    assert gpu.leases.now() == [lease]


def test_a_caller_that_goes_away_leaves_no_lease(start: Callable[[], Any]) -> None:
    served = start()
    one, two = served.client(), served.client()
    held = one.acquire.now("cuda", 100)
    waiting = two.acquire.start("cuda", 100, wait=1000.0)
    served.settle()
    assert two.statistics.now().waiting == 1
    waiting.cancel()
    served.settle()
    one.release.now(held.id)
    assert one.acquire.now("cuda", 100, wait=1000.0).client == held.client
    assert one.statistics.now().waiting == 0


def test_wrong_calls_are_refused_with_a_sentence(start: Callable[[], Any]) -> None:
    gpu: Gpu = start().client()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"memory": 0}, r"\$.memory: expected a number from 1 to"),
        ({"priority": 101}, r"\$.priority: expected a number from 0 to 100, got 101"),
        ({"ttl": 0.0}, r"\$.ttl: expected a number from 0.001 to"),
        ({"ttl": float("nan")}, r"\$.ttl: expected .* got nan"),
        ({"wait": -1.0}, r"\$.wait: expected"),
    ]
    for changed, told in wrong:
        arguments: dict[str, Any] = {"kind": "cuda", "memory": 1} | changed
        with pytest.raises(BadRequest, match=told):
            gpu.acquire.now(**arguments)
    with pytest.raises(NeverFits, match="leases 100: ask for less"):
        gpu.acquire.now("cuda", 101)
    with pytest.raises(NoSuchLease):
        gpu.release.now(99)
