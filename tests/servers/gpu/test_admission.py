"""Admission: its invariants hold after every step, and each rule about priority is seen once by itself."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.ipc.errors import Overloaded, QuotaExceeded
from atoll.servers.gpu.admission import Admission, Bound, Ended, Granted, Limits, Request, Told, Undone
from atoll.servers.gpu.interface import BeyondSlice, Device, Kind, Lease, NeverFits, NoSuchLease

GRACE = 5.0


def device(id: str, leasable: int, stand_in: bool = False) -> Device:
    kind = "cuda" if id.startswith("cuda") else "cpu"
    return Device(
        id=id,
        kind=kind,  # type: ignore[arg-type]
        name=id,
        uuid=id,
        memory=leasable,
        stand_in=stand_in,
        leasable=leasable,
    )


def request(
    number: int,
    memory: int,
    priority: int = 50,
    client: int = 1,
    kind: Kind = "accelerator",
    ttl: float = 60.0,
    standing: int = 5,
    bounds: tuple[Bound, ...] = (),
) -> Request:
    return Request(number, client, 0, kind, memory, priority, ttl, "test", standing, bounds, 0, 0)


def admission(*devices: Device, queue: int = 8) -> Admission:
    return Admission(list(devices) or [device("cuda:0", 100)], GRACE, Limits(queue, 8, 100, 50))


def leases(of: Admission) -> list[Lease]:
    return list(of.leases.values())


def test_who_asks_first_at_a_higher_priority_goes_first() -> None:
    one = admission()
    one.ask(request(1, 100, client=1), 0.0, may_wait=False)
    one.ask(request(2, 100, client=2), 0.0, may_wait=True)
    one.ask(request(3, 100, client=3, priority=50), 0.0, may_wait=True)
    assert [each.number for each in one.waiting] == [2, 3]
    one.release(1, 1, 1.0)
    assert [lease.client for lease in leases(one)] == [2]


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    one = admission()
    one.ask(request(1, 60), 0.0, may_wait=False)
    one.ask(request(2, 80), 0.0, may_wait=True)
    with pytest.raises(Overloaded):
        one.ask(request(3, 10), 0.0, may_wait=False)
    one.ask(request(4, 10), 0.0, may_wait=True)
    assert [each.number for each in one.waiting] == [2, 4]


def test_a_request_for_another_device_passes() -> None:
    one = admission(device("cuda:0", 100), device("cpu", 50))
    one.ask(request(1, 100, kind="cuda"), 0.0, may_wait=False)
    one.ask(request(2, 100, kind="cuda"), 0.0, may_wait=True)
    one.ask(request(3, 50, kind="cpu"), 0.0, may_wait=False)
    assert {lease.device for lease in leases(one)} == {"cuda:0", "cpu"}


def test_weaker_leases_are_told_to_give_way_and_taken_back_after_the_grace() -> None:
    one = admission()
    one.ask(request(1, 40, priority=10, client=1), 0.0, may_wait=False)
    one.ask(request(2, 50, priority=20, client=2), 0.0, may_wait=False)
    one.changes.clear()
    one.ask(request(3, 45, priority=90, client=3), 1.0, may_wait=True)
    told = [change for change in one.changes if isinstance(change, Told)]
    assert [(each.client, each.notice.what, each.notice.until) for each in told] == [(1, "give way", 6.0)]
    assert one.next_end() == 6.0
    one.pass_time(5.9)
    assert len(one.leases) == 2
    one.pass_time(6.0)
    ended = [change.event for change in one.changes if isinstance(change, Ended)]
    assert [(event.lease.client, event.how) for event in ended] == [(1, "preempted")]
    assert sorted(lease.client for lease in leases(one)) == [2, 3]


def test_equal_priority_never_preempts() -> None:
    one = admission()
    one.ask(request(1, 100, priority=50), 0.0, may_wait=False)
    one.ask(request(2, 100, priority=50), 0.0, may_wait=True)
    assert not any(lease.leaving for lease in leases(one))


def test_a_lease_that_gives_way_is_not_prolonged() -> None:
    one = admission()
    one.ask(request(1, 100, priority=1, client=1), 0.0, may_wait=False)
    one.ask(request(2, 100, priority=2, client=2), 0.0, may_wait=True)
    assert one.renew(1, 1, 1000.0, 1.0, 5, ()).expires == 60.0


def test_the_holders_death_and_the_end_of_the_time_free_the_memory() -> None:
    one = admission()
    one.ask(request(1, 60, client=1, ttl=10.0), 0.0, may_wait=False)
    one.ask(request(2, 40, client=2), 0.0, may_wait=False)
    one.ask(request(3, 60, client=3), 0.0, may_wait=True)
    one.ask(request(4, 40, client=4), 0.0, may_wait=True)
    one.client_gone(2, 1.0)
    assert [each.client for each in one.waiting] == [3, 4], "the first in line keeps the device"
    one.pass_time(10.0)
    assert sorted(lease.client for lease in leases(one)) == [3, 4]


def test_refusals_say_why() -> None:
    one = admission(device("cpu", 10), queue=1)
    with pytest.raises(NeverFits, match="no device of kind 'cuda'"):
        one.ask(request(1, 1, kind="cuda"), 0.0, may_wait=True)
    with pytest.raises(NeverFits, match="the largest device of kind 'cpu' leases 10: ask for less"):
        one.ask(request(1, 11, kind="cpu"), 0.0, may_wait=True)
    one.ask(request(1, 10, kind="cpu", client=1), 0.0, may_wait=False)
    one.ask(request(2, 10, kind="cpu"), 0.0, may_wait=True)
    with pytest.raises(Overloaded):
        one.ask(request(3, 10, kind="cpu"), 0.0, may_wait=True)
    with pytest.raises(NoSuchLease):
        one.release(1, 2, 0.0)
    assert one.release(1, 1, 0.0)
    assert one.release(1, 1, 0.0) is False


def test_after_a_restart_leases_stand_and_those_of_lost_devices_end() -> None:
    one = admission(device("cuda:0", 100), device("cuda:1", 100))
    one.ask(request(1, 100, client=1), 0.0, may_wait=False)
    one.ask(request(2, 80, client=2), 0.0, may_wait=False)
    again = admission(device("cuda:0", 100))
    again.restore(leases(one), 7, 1.0)
    assert [lease.device for lease in leases(again)] == ["cuda:0"]
    assert [change.event.how for change in again.changes if isinstance(change, Ended)] == ["device gone"]
    again.release(next(iter(again.leases)), leases(again)[0].client, 2.0)
    again.ask(request(3, 1), 2.0, may_wait=False)
    assert leases(again)[0].id == 8, "an id is never used again"


def test_leases_of_an_earlier_boot_end_with_it() -> None:
    """Channels are numbered anew in each boot: the number of a holder may be another client's now."""
    one = admission()
    one.ask(request(1, 10)._replace(boot=6), 0.0, may_wait=False)
    again = admission()
    again.restore(leases(one), 0, 1.0, boot=7)
    assert leases(again) == []
    assert [change.event.how for change in again.changes if isinstance(change, Ended)] == ["node ended"]


def test_no_client_fills_the_queue_by_itself() -> None:
    one = Admission([device("cuda:0", 100)], GRACE, Limits(8, 2, 100, 50))
    one.ask(request(1, 100, client=1), 0.0, may_wait=False)
    for number in (2, 3):
        one.ask(request(number, 1, client=2), 0.0, may_wait=True)
    with pytest.raises(Overloaded, match="client 2's part"):
        one.ask(request(4, 1, client=2), 0.0, may_wait=True)
    one.ask(request(5, 1, client=3), 0.0, may_wait=True)


def test_no_client_has_more_leases_than_it_may_nor_all_together() -> None:
    one = Admission([device("cuda:0", 100)], GRACE, Limits(8, 8, 5, 3))
    for number in (1, 2):
        one.ask(request(number, 40, client=1), 0.0, may_wait=False)
    one.ask(request(3, 40, client=1), 0.0, may_wait=True)
    with pytest.raises(QuotaExceeded, match="client 1 of the gpu server' has used its 3 of leases"):
        one.ask(request(4, 1, client=1), 0.0, may_wait=True)
    for number in (5, 6):
        one.ask(request(number, 1, client=number), 0.0, may_wait=True)
    with pytest.raises(Overloaded, match="list of leases"):
        one.ask(request(7, 1, client=7), 0.0, may_wait=True)
    one.client_gone(1, 0.0)
    one.ask(request(8, 1, client=1), 0.0, may_wait=False)


def test_a_lease_whose_time_is_over_cannot_be_renewed() -> None:
    one = admission()
    one.ask(request(1, 100, ttl=10.0, client=1), 0.0, may_wait=False)
    one.ask(request(2, 100, client=2), 0.0, may_wait=True)
    with pytest.raises(NoSuchLease):
        one.renew(1, 1, 10.0, 10.0, 5, ())
    assert [lease.client for lease in leases(one)] == [2]


def test_a_lease_that_nobody_was_told_of_leaves_no_history() -> None:
    one = admission()
    one.ask(request(1, 100), 0.0, may_wait=False)
    one.changes.clear()
    one.undo(leases(one)[0], 1.0)
    assert (leases(one), [type(change) for change in one.changes]) == ([], [Undone])


class Leasing(RuleBasedStateMachine):
    """Random clients over three devices, with restarts."""

    @initialize()
    def begin(self) -> None:
        self.devices = [device("cuda:0", 100), device("cuda:1", 60), device("cpu", 40)]
        self.admission = Admission(self.devices, GRACE, Limits(5, 3, 12, 6))
        self.now = 1000.0
        self.number = 0
        self.ids: set[int] = set()

    @rule(
        client=st.integers(1, 4),
        kind=st.sampled_from(["cuda", "cpu", "accelerator"]),
        memory=st.integers(1, 110),
        priority=st.integers(0, 3),
        ttl=st.sampled_from([1.0, 20.0, 300.0]),
        may_wait=st.booleans(),
    )
    def ask(self, client: int, kind: Kind, memory: int, priority: int, ttl: float, may_wait: bool) -> None:
        self.number += 1
        before = (dict(self.admission.leases), list(self.admission.waiting))
        try:
            self.admission.ask(request(self.number, memory, priority, client, kind, ttl), self.now, may_wait)
        except (NeverFits, Overloaded, QuotaExceeded):
            assert before == (self.admission.leases, self.admission.waiting)
        else:
            if not may_wait:
                granted = {each.request for each in self.admission.changes if isinstance(each, Granted)}
                assert self.number in granted

    @precondition(lambda self: self.admission.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.admission.leases[data.draw(st.sampled_from(sorted(self.admission.leases)))]
        assert self.admission.release(lease.id, lease.client, self.now)

    @precondition(lambda self: self.admission.leases)
    @rule(data=st.data(), ttl=st.sampled_from([1.0, 50.0]))
    def renew(self, data: st.DataObject, ttl: float) -> None:
        lease = self.admission.leases[data.draw(st.sampled_from(sorted(self.admission.leases)))]
        self.admission.renew(lease.id, lease.client, ttl, self.now, 5, ())

    @precondition(lambda self: self.admission.leases)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        lease = self.admission.leases[data.draw(st.sampled_from(sorted(self.admission.leases)))]
        self.admission.undo(lease, self.now)
        assert lease.id not in self.admission.leases

    @precondition(lambda self: self.admission.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        waiting = data.draw(st.sampled_from([each.number for each in self.admission.waiting]))
        assert self.admission.withdraw(waiting, self.now)

    @rule(client=st.integers(1, 4))
    def die(self, client: int) -> None:
        self.admission.client_gone(client, self.now)
        assert all(lease.client != client for lease in self.admission.leases.values())
        assert all(each.client != client for each in self.admission.waiting)

    @rule(seconds=st.sampled_from([0.5, GRACE, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.admission.pass_time(self.now)
        end = self.admission.next_end()
        assert end is None or end > self.now

    @rule()
    def restart(self) -> None:
        held = list(self.admission.leases.values())
        self.admission = Admission(self.devices, GRACE, Limits(5, 3, 12, 6))
        self.admission.restore(held, max(self.ids, default=0), self.now)
        assert sorted(self.admission.leases) == sorted(lease.id for lease in held)

    @invariant()
    def holds(self) -> None:
        assert self.admission.broken() == []
        held = Counter(each.client for each in self.admission.leases.values())
        held.update(each.client for each in self.admission.waiting)
        assert held.total() <= 12 and all(count <= 6 for count in held.values())
        for change in self.admission.changes:
            if isinstance(change, Granted):
                assert change.lease.id not in self.ids, "an id was used twice"
                self.ids.add(change.lease.id)
            if isinstance(change, Told) and change.notice.what == "give way":
                lease = self.admission.leases.get(change.notice.lease)
                assert lease is None or lease.leaving
        self.admission.changes.clear()


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_the_slice_goes_before_the_wish() -> None:
    """A request of a slice of higher priority takes the memory of one that asked with a higher priority of its own."""
    admission = Admission([Device(id="cuda:0", kind="cuda", name="", uuid="", memory=0, leasable=100, stand_in=False)],
                          5.0, Limits(4, 4, 100, 50))  # fmt: skip
    admission.ask(request(1, 100, 100, 1, "cuda", standing=3), 0.0, may_wait=False)
    admission.ask(request(2, 100, 0, 2, "cuda", standing=4), 0.0, may_wait=True)
    assert admission.leases[1].leaving == 5.0
    admission.pass_time(5.0)
    (lease,) = admission.leases.values()
    assert (lease.client, lease.standing) == (2, 4)
    assert admission.broken() == []


def test_a_slice_leases_no_more_than_it_has_and_holds_nobody_up() -> None:
    admission = Admission([Device(id="cuda:0", kind="cuda", name="", uuid="", memory=0, leasable=100, stand_in=False)],
                          5.0, Limits(4, 4, 100, 50))  # fmt: skip
    bounds = (Bound("slice training", 60, None), Bound("server trainer", None, 0.5))
    admission.ask(request(1, 50, 50, 1, "cuda", bounds=bounds), 0.0, may_wait=False)
    with pytest.raises(
        BeyondSlice, match="slice training may lease 60 bytes of device memory, has 50, and 20"
    ):
        admission.ask(request(2, 20, 50, 2, "cuda", bounds=bounds[:1]), 0.0, may_wait=True)
    admission.ask(request(3, 50, 0, 3, "cuda"), 0.0, may_wait=False)
    assert [lease.time for lease in admission.leases.values()] == [0.5, None]
    smaller = (Bound("slice training", 40, None),)
    with pytest.raises(BeyondSlice):
        admission.renew(1, 1, 60.0, 30.0, 5, smaller)
    assert admission.leases[1].expires == 60.0, "what it has it keeps until its time is over"
    assert admission.broken() == []
