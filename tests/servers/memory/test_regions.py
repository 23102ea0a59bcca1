"""The accounting of regions under random clients: invariants after every step."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.ipc.errors import NotFound, QuotaExceeded
from atoll.servers.memory.regions import PAGE, Limits, Regions

LIMITS = Limits(pool=20 * PAGE, client=8 * PAGE, regions=4)


def test_quotas_name_account_and_limit() -> None:
    regions = Regions(LIMITS)
    regions.reserve(1, 8 * PAGE)
    with pytest.raises(QuotaExceeded, match=f"'client 1' has used its {8 * PAGE} of bytes of memory"):
        regions.reserve(1, 1)
    regions.reserve(2, 8 * PAGE)
    with pytest.raises(QuotaExceeded, match="'memory server'"):
        regions.reserve(3, 5 * PAGE)
    for _ in range(4):
        regions.reserve(3, 1)
    with pytest.raises(QuotaExceeded, match="4 of regions"):
        regions.reserve(3, 1)
    assert regions.broken() == []


def test_an_open_region_dies_with_its_owner_and_a_sealed_one_with_its_last_holder() -> None:
    regions = Regions(LIMITS)
    open_one, sealed = regions.reserve(1, PAGE), regions.reserve(1, PAGE)
    for region in (open_one, sealed):
        regions.join(region.number, 2)
    regions.seal(sealed.number)
    assert [region.number for region in regions.client_gone(1)] == [open_one.number]
    with pytest.raises(NotFound):
        regions.find(open_one.number, 2)
    assert regions.accounts[2].used == PAGE
    assert regions.leave(sealed.number, 2) is sealed
    assert regions.used == 2 * PAGE, "charged until the memory is given back"
    for region in (open_one, sealed):
        regions.freed(region.number)
    assert (regions.used, regions.accounts, regions.broken()) == (0, {}, [])


def test_what_others_hold_is_not_there() -> None:
    regions = Regions(LIMITS)
    region = regions.reserve(1, PAGE)
    for action in (regions.find, regions.leave):
        with pytest.raises(NotFound):
            action(region.number, 2)


class Holding(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.regions = Regions(LIMITS)

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.regions.regions)))

    @rule(client=st.integers(1, 4), size=st.integers(1, 9 * PAGE))
    def reserve(self, client: int, size: int) -> None:
        before = self.regions.used
        try:
            region = self.regions.reserve(client, size)
        except QuotaExceeded:
            assert self.regions.used == before
        else:
            assert size <= region.size < size + PAGE

    @precondition(lambda self: self.regions.regions)
    @rule(data=st.data(), client=st.integers(1, 4), writing=st.booleans())
    def join(self, data: st.DataObject, client: int, writing: bool) -> None:
        region = self.regions.regions[self.pick(data)]
        before = self.regions.used, sorted(region.holders)
        try:
            self.regions.join(region.number, client, writing and not region.sealed)
        except QuotaExceeded:
            assert before == (self.regions.used, sorted(region.holders))

    @precondition(lambda self: self.regions.regions)
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        region = self.regions.regions[self.pick(data)]
        if region.owner in region.holders:
            self.regions.seal(region.number)

    @precondition(lambda self: self.regions.regions)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = self.pick(data)
        self.regions.leave(number, data.draw(st.sampled_from(sorted(self.regions.regions[number].holders))))

    @rule()
    def restart(self) -> None:
        """The next process takes over what it finds."""
        before, self.regions = self.regions, Regions(LIMITS, self.regions._next)
        for region in before.regions.values():
            self.regions.adopt(replace(region))
        assert self.regions.accounts == before.accounts

    @rule(client=st.integers(1, 4))
    def die(self, client: int) -> None:
        self.regions.client_gone(client)
        assert client not in self.regions.accounts

    @precondition(lambda self: self.regions.dying)
    @rule(data=st.data())
    def freed(self, data: st.DataObject) -> None:
        self.regions.freed(data.draw(st.sampled_from(sorted(self.regions.dying))))

    @invariant()
    def holds(self) -> None:
        assert self.regions.broken() == []


TestHolding = Holding.TestCase
TestHolding.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
