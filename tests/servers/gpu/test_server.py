"""The gpu server as its clients see it: waiting, death, preemption, crashes. Its clock moves when told."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import structs

from atoll.ipc.errors import Aborted, BadRequest, Overloaded
from atoll.ipc.faults import FaultyTransport
from atoll.ipc.future import RawReply
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import Options, bind, transport_of
from atoll.ipc.runtime.describe import describe
from atoll.ipc.system.state import State, Write
from atoll.servers.gpu.admission import Bound
from atoll.servers.gpu.interface import Device, Event, Gpu, Lease, NeverFits, NoSuchLease
from atoll.servers.gpu.server import Claim, Server, Settings

CONFIG = Settings(share=0.5, grace=5.0, queue=4)


class TwoDevices(Server):
    """The real server on a machine whose devices are known: 100 and 40 bytes may be leased."""

    def discover(self) -> tuple[list[Device], str]:
        cuda = Device(id="cuda:0", kind="cuda", name="A", uuid="GPU-1", memory=200, stand_in=False)
        return [cuda, Device(id="cpu", kind="cpu", name="C", uuid="cpu", memory=80, stand_in=False)], ""

    async def share(self, client: int) -> tuple[int, tuple[Bound, ...]]:
        return 5, ()  # there is no kernel here; tests/microkernel/test_bounds.py has one


class ManyBytes(TwoDevices):
    def discover(self) -> tuple[list[Device], str]:
        return [Device(id="cuda:0", kind="cuda", name="A", uuid="GPU-1", memory=4000, stand_in=False)], ""


class Measured(FaultyTransport):
    """A way to the store that knows the size of the largest message."""

    largest = 0

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        self.largest = max(self.largest, len(payload))
        return super().start(method, payload, options)


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
        ({"ttl": float("inf")}, r"\$.ttl: expected .* got inf"),
        ({"ttl": 1e300}, r"\$.ttl: expected .* got 1e\+300"),
        ({"wait": -1.0}, r"\$.wait: expected"),
        ({"wait": float("nan")}, r"\$.wait: expected .* got nan"),
        ({"wait": float("inf")}, r"\$.wait: expected .* got inf"),
        ({"wait": 1e300}, r"\$.wait: expected .* got 1e\+300"),
        ({"memory": 2**63}, r"\$.memory: expected"),
        ({"purpose": "ä" * 101}, r"\$.purpose: expected 200 bytes at most, got 202"),
    ]
    for changed, told in wrong:
        arguments: dict[str, Any] = {"kind": "cuda", "memory": 1} | changed
        with pytest.raises(BadRequest, match=told):
            gpu.acquire.now(**arguments)
    held = gpu.acquire.now("cuda", 1, purpose="ä" * 100)
    for ttl in (float("nan"), float("inf"), 1e300):
        with pytest.raises(BadRequest, match=r"\$.ttl: expected"):
            gpu.renew.now(held.id, ttl)
    with pytest.raises(NeverFits, match="leases 100: ask for less"):
        gpu.acquire.now("cuda", 101)
    with pytest.raises(NoSuchLease):
        gpu.release.now(99)


def test_any_number_of_leases_ends_and_others_go_on(serve: Any) -> None:
    store = Measured(transport_of(serve.keyspace("leases", Lease).state))
    rows: Any = Keyspace(bind(State, store), Lease | Event | Claim)
    served = serve(ManyBytes, config=CONFIG, rows=rows)
    for _ in range(15):
        client: Gpu = served.client()
        asked = [client.acquire.start("cuda", 1, ttl=1000.0, purpose="x" * 200) for _ in range(64)]
        assert len({each.result().id for each in asked}) == 64
    honest: Gpu = served.client()
    assert len(honest.leases.now()) == 960
    served.advance(1001)
    assert honest.acquire.now("cuda", 1).client == transport_of(honest).number
    assert len(honest.leases.now()) == 1
    assert {event.how for event in honest.history.now(1000)} == {"expired"}
    assert store.largest < 128 * 1024, "a channel to the store may hold no more than 1 MiB"


def test_leases_with_purposes_of_any_length_from_before_are_ended(serve: Any) -> None:
    """A version that took them could not write their end."""
    leases = serve.keyspace("leases", Lease)
    lease = structs.replace(serve(TwoDevices, config=CONFIG).client().acquire.now("cuda", 1), client=77)
    for number in range(1, 4):
        written = structs.replace(lease, id=number, purpose="ä" * 250_000, memory=1)
        leases.state.commit.now([Write(f"lease/{number:016d}".encode(), msgspec.msgpack.encode(written))])
    rows: Any = Keyspace(leases.state, Lease | Event | Claim)
    served = serve(TwoDevices, config=CONFIG, rows=rows)
    served.host.submit(lambda: served.server.clients_present(frozenset()))
    gpu: Gpu = served.client()
    assert gpu.acquire.now("cuda", 100).id > 3
    assert [(each.how, len(each.lease.purpose)) for each in gpu.history.now()] == [("holder died", 100)] * 3


@pytest.mark.parametrize(
    ("name", "value", "expected", "found"),
    [
        ("share", 80.0, "float <= 1.0", "80.0"),
        ("share", 0.0, "float > 0.0", "0.0"),
        ("grace", -1.0, "float >= 0.0", "-1.0"),
        ("queue", -1, "int >= 0", "-1"),
        ("queue_per_client", -1, "int >= 0", "-1"),
    ],
)
def test_a_wrong_setting_is_found_with_the_image(name: str, value: float, expected: str, found: str) -> None:
    """A share of 80 would lease eighty times the memory that there is."""
    fault = describe(Server, {"config": {name: value}}).config_faults["config"]
    assert (fault.path, fault.expected, fault.found) == ((name,), expected, found)
