"""One ring against a model: whatever is put in comes out, in order, unharmed, and it is full exactly when it must be."""

import ctypes
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .core import (
    DONE,
    FAULT,
    FLAG_CONTEXT,
    FULL,
    LINE,
    NOTHING,
    Consumed,
    Consumer,
    Header,
    Producer,
    core,
    lines,
)

SIZE = 4096
BASES = st.one_of(st.just(0), st.just(2**64 - 2 * SIZE), st.integers(0, 2**58 - 1).map(lambda n: n * LINE))
"""Also where positions wrap at 64 bits within the test."""
LARGEST = SIZE // 4


class Ends:
    """Both ends of a ring in one process. What lay in the memory before must not matter."""

    def __init__(self, base: int, before: int) -> None:
        self.memory = ctypes.create_string_buffer(bytes([before]) * SIZE, SIZE)
        self.consumed = Consumed(position=before * 0x0101010101010101)
        self.producer, self.consumer = Producer(), Consumer()
        data = ctypes.addressof(self.memory)
        core().ring_producer_begin(self.producer, data, self.consumed, SIZE, base)
        core().ring_consumer_begin(self.consumer, data, self.consumed, SIZE, base)

    def produce(self, payload: bytes, context: bytes | None, request: int) -> int:
        header = Header(length=len(payload), request=request, flags=0 if context is None else FLAG_CONTEXT)
        return int(core().ring_produce(self.producer, header, context, payload, len(payload)))

    def consume(self) -> tuple[int, bytes, bytes | None] | None:
        header = Header()
        if core().ring_peek(self.consumer, header) == NOTHING:
            return None
        body, context = LINE, None
        if header.flags & FLAG_CONTEXT:
            block = ctypes.create_string_buffer(LINE)
            core().ring_copy(self.consumer, LINE, block, LINE)
            context = block.raw
            body += LINE
        payload = ctypes.create_string_buffer(header.length + 1)
        core().ring_copy(self.consumer, body, payload, header.length)
        core().ring_finish(self.consumer, body + lines(header.length))
        return header.request, payload.raw[: header.length], context


class Ring(RuleBasedStateMachine):
    @initialize(base=BASES, before=st.integers(0, 255))
    def begin(self, base: int, before: int) -> None:
        self.ends = Ends(base, before)
        self.model: deque[tuple[int, bytes, bytes | None]] = deque()
        self.used = 0
        self.requests = 0

    def _room(self, payload: bytes, context: bytes | None) -> int:
        return LINE + (LINE if context is not None else 0) + lines(len(payload))

    @rule(
        payload=st.one_of(st.binary(max_size=200), st.integers(0, LARGEST).map(lambda n: b"\xa5" * n)),
        context=st.none() | st.binary(min_size=LINE, max_size=LINE),
    )
    def produce(self, payload: bytes, context: bytes | None) -> None:
        self.requests += 1
        room = self._room(payload, context)
        result = self.ends.produce(payload, context, self.requests)
        # One line more than the record: the word where the next one commits is zeroed ahead.
        if self.used + room + LINE > SIZE:
            assert result == FULL
            return
        assert result == DONE
        self.used += room
        self.model.append((self.requests, payload, context))

    @rule()
    def consume(self) -> None:
        found = self.ends.consume()
        if not self.model:
            assert found is None
            return
        wanted = self.model.popleft()
        assert found == wanted
        self.used -= self._room(wanted[1], wanted[2])

    @precondition(lambda self: self.model)
    @rule()
    def drain(self) -> None:
        while self.model:
            self.consume()
        assert self.ends.consume() is None

    @invariant()
    def nothing_is_taken_for_a_record(self) -> None:
        if hasattr(self, "model") and not self.model:
            assert self.ends.consume() is None


TestRing = Ring.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(base=BASES, sent=st.integers(0, 20), claimed=st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_an_index_is_believed_only_if_it_lies_between_what_was_seen_and_what_was_sent(
    base: int, sent: int, claimed: int
) -> None:
    ends = Ends(base, 0)
    for number in range(sent):
        assert ends.produce(b"x" * 100, None, number) == DONE
    ahead = (claimed - base) % 2**64
    stale = ends.producer.stale
    ends.consumed.position = claimed
    result = core().ring_observe(ends.producer)
    if claimed == stale or (ahead <= sent * 192 and claimed % LINE == 0):
        assert result == DONE
        assert ends.producer.seen == (base if ahead > sent * 192 or claimed % LINE else claimed)
    else:
        assert result == FAULT
        assert ends.producer.seen == base


def test_a_rewound_index_is_a_fault() -> None:
    ends = Ends(1 << 40, 0)
    for number in range(3):
        ends.produce(b"", None, number)
        ends.consume()
    assert core().ring_observe(ends.producer) == DONE
    ends.consumed.position -= LINE
    assert core().ring_observe(ends.producer) == FAULT
