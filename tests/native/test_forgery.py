"""Capabilities that were never given: each is refused, named, and recorded."""

from collections.abc import Iterator

import pytest

from atoll.ipc.errors import AtollError, BadRequest, NotAllowed, Revoked
from atoll.ipc.interface import Interface, call
from atoll.ipc.system.control import Port
from tests.kit.serving import Serving, serving

from .suite import Server, Target


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving(Server, clients=2) as served:
        yield served
        assert [p.double.now(4) for p in served.proxies] == [8, 8]
        assert not served.misbehaved
        assert served.stop() == 0


def forged(served: Serving, port: Port) -> Target:
    """The first client, with a port of its own making."""
    return served.bind(served.channels[0], Target, port)


def port(channel: int, slot: int, generation: int = 1) -> Port:
    return Port(
        channel=channel, slot=slot, generation=generation, interface="Target", rights=("read", "write")
    )


def test_every_slot_that_is_not_the_clients_is_refused_and_counted(served: Serving) -> None:
    mine = served.grant(served.channels[0], Target)
    others = [slot for slot in [*range(1024), 1024, 65535, 65536, 2**32 - 1] if slot not in (5, mine.slot)]
    for slot in others:
        with pytest.raises(Revoked):
            forged(served, port(mine.channel, slot)).double.now(1)
        served.observe()  # as the kernel does: it always reads
    assert {refused.slot for refused in served.refused} == set(others)
    by_slot = {refused.slot: refused.why for refused in served.refused}
    assert by_slot[6] == "channel"
    assert by_slot[500] == by_slot[2**32 - 1] == "slot"
    assert {refused.channel for refused in served.refused} == {mine.channel}


def test_generations_other_than_the_present_one_are_refused_and_counted(served: Serving) -> None:
    mine = served.grant(served.channels[0], Target)
    for generation in (0, 2, 3, 2**31, 2**32 - 1):
        with pytest.raises(Revoked):
            forged(served, port(mine.channel, mine.slot, generation)).double.now(1)
    served.observe()
    assert {refused.why for refused in served.refused} == {"generation"}
    assert sum(refused.count for refused in served.refused) == 5


def test_refusals_of_one_kind_are_coalesced_and_none_is_lost(served: Serving) -> None:
    for _turn in range(50):
        with pytest.raises(Revoked):
            forged(served, port(served.channels[0].number, 900)).double.now(1)
    served.observe()
    assert sum(refused.count for refused in served.refused) == 50
    assert len(served.refused) <= 4


def test_a_flood_of_forged_slots_is_told_in_few_packets(served: Serving) -> None:
    for slot in range(1000, 3000):
        forged(served, port(served.channels[0].number, slot)).double.cast(1)
        if slot % 20 == 0:  # so that the ring never fills
            assert served.proxies[1].double.now(slot) == slot * 2
    served.proxies[0].double.now(1)
    served.observe()
    assert sum(refused.count for refused in served.refused) == 2000
    assert len(served.refused) <= 100


def test_a_right_that_is_not_held_is_refused_by_name(served: Serving) -> None:
    reader = served.bind(
        served.channels[0], Target, served.grant(served.channels[0], Target, rights={"read"})
    )
    assert reader.double.now(2) == 4
    with pytest.raises(NotAllowed, match=r"Target\.write.*'write'.*'read'"):
        reader.write.now()
    served.observe()
    assert [(refused.why, refused.count) for refused in served.refused] == [("rights", 1)]


class Elsewhere(Interface):
    @call("read")
    def not_here(self) -> int: ...


def test_a_method_of_another_interface_is_refused(served: Serving) -> None:
    mine = served.grant(served.channels[0], Target)
    strange = served.bind(served.channels[0], Elsewhere, mine)
    with pytest.raises(BadRequest):
        strange.not_here.now()
    served.observe()
    assert [refused.why for refused in served.refused] == ["method"]


def test_a_better_class_of_service_than_the_capabilitys_is_refused(served: Serving) -> None:
    bulk = served.bind(served.channels[0], Target, served.grant(served.channels[0], Target, service=2))
    assert bulk.with_(service="bulk").double.now(3) == 6
    with pytest.raises(BadRequest):
        bulk.with_(service="control").double.now(3)


def test_the_badge_is_the_tables_and_each_channels_own(served: Serving) -> None:
    assert [p.badge.now() for p in served.proxies] == [100, 101]
    other = served.proxy(Target, badge=2**64 - 1)
    assert other.badge.now() == 2**64 - 1


def test_casts_streams_and_uploads_are_refused_like_calls(served: Serving) -> None:
    nobody = forged(served, port(served.channels[0].number, 77))
    nobody.double.cast(1)
    with pytest.raises(AtollError):
        list(nobody.numbers.now(3))
    with pytest.raises(AtollError):
        nobody.total.now([1, 2])
    served.observe()
    assert sum(refused.count for refused in served.refused) == 3


def test_arguments_that_fit_no_signature_are_the_callers_fault(served: Serving) -> None:
    class Liar(Interface):
        @call("read")
        def double(self, number: str) -> int: ...

    liar = served.bind(served.channels[0], Liar, served.grant(served.channels[0], Target))
    assert next(m.spec.number for m in served.methods(Liar)) == next(
        m.spec.number for m in served.methods(Target) if m.name == "double"
    )
    with pytest.raises(BadRequest):
        liar.double.now("no number")
