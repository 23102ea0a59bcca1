"""The bulk allocator against a model: live records never overlap; there is room exactly when a gap is large enough."""

import ctypes
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from .core import LINE, NONE, Bulk, core, lines

HALF = 1 << 14
RECORDS_MOST = 128


@dataclass
class Live:
    offset: int
    length: int
    lane: int
    end: int


class BulkHalf(RuleBasedStateMachine):
    @initialize(base=st.sampled_from([0, 1 << 40, 2**64 - 64 * LINE]))
    def begin(self, base: int) -> None:
        self.bulk = Bulk()
        core().bulk_begin(self.bulk, None, HALF)
        self.live: list[Live] = []
        self.position = [base] * 3
        self.seen = [base] * 3

    def _first_fit(self, need: int) -> int:
        at = 0
        for record in sorted(self.live, key=lambda record: record.offset):
            if record.offset - at >= need:
                return at
            at = record.offset + record.length
        return at if HALF - at >= need else NONE

    @rule(length=st.one_of(st.integers(1, 300), st.integers(1, HALF + 1)), lane=st.integers(0, 2))
    def put(self, length: int, lane: int) -> None:
        offset = core().bulk_find(self.bulk, length)
        wanted = NONE if len(self.live) == RECORDS_MOST else self._first_fit(lines(length))
        assert offset == wanted
        if offset == NONE:
            return
        self.position[lane] = (self.position[lane] + LINE) % 2**64
        core().bulk_hold(self.bulk, offset, length, lane, self.position[lane])
        self.live.append(Live(offset, lines(length), lane, self.position[lane]))

    @rule(lane=st.integers(0, 2), records=st.integers(1, 40))
    def consumed(self, lane: int, records: int) -> None:
        behind = (self.position[lane] - self.seen[lane]) % 2**64
        self.seen[lane] = (self.seen[lane] + min(records * LINE, behind)) % 2**64
        core().bulk_reclaim(self.bulk, (ctypes.c_uint64 * 3)(*self.seen))
        over = self.seen[lane]
        self.live = [
            record for record in self.live if record.lane != lane or not (over - record.end) % 2**64 < 2**63
        ]
        assert self.bulk.count == len(self.live)
        kept = [(r.offset, r.length) for r in self.bulk.records[: self.bulk.count]]
        assert kept == sorted((r.offset, r.length) for r in self.live)


TestBulkHalf = BulkHalf.TestCase
TestBulkHalf.settings = settings(max_examples=60, stateful_step_count=80, deadline=None)


def test_a_half_holds_no_more_records_than_it_can_name() -> None:
    bulk = Bulk()
    core().bulk_begin(bulk, None, 1 << 20)
    for number in range(RECORDS_MOST):
        offset = core().bulk_find(bulk, 64)
        assert offset == number * 64
        core().bulk_hold(bulk, offset, 64, 0, (number + 1) * 64)
    assert core().bulk_find(bulk, 64) == NONE
