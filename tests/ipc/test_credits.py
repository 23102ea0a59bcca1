"""Credits, driven step by step in every order that Hypothesis finds."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.streams import Receiver, Sender


class Credits(RuleBasedStateMachine):
    """A sender and a receiver with a wire that delays items, and delays, doubles and reorders grants."""

    @initialize(window=st.integers(1, 9))
    def begin(self, window: int) -> None:
        self.window = window
        self.sender = Sender("test", window)
        self.receiver = Receiver("test", window)
        self.items = 0
        self.grants: list[int] = []

    @precondition(lambda self: self.sender.left > 0)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.sender.left))
        self.sender.spend(count)
        self.items += count

    @precondition(lambda self: self.items > 0)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.items))
        self.items -= count
        self.receiver.arrive(count)

    @precondition(lambda self: self.receiver.received > self.receiver.taken)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        limit = self.receiver.take(data.draw(st.integers(1, self.receiver.received - self.receiver.taken)))
        if limit is not None:
            self.grants.append(limit)

    @precondition(lambda self: self.grants)
    @rule(data=st.data(), doubled=st.booleans())
    def grant(self, data: st.DataObject, doubled: bool) -> None:
        place = data.draw(st.integers(0, len(self.grants) - 1))
        self.sender.grant(self.grants[place] if doubled else self.grants.pop(place))

    @invariant()
    def no_more_than_a_window_is_between_them(self) -> None:
        if hasattr(self, "sender"):
            assert self.sender.sent <= self.sender.limit <= self.receiver.granted
            assert self.sender.sent - self.receiver.taken <= self.window

    @invariant()
    def a_stream_never_waits_for_both_ends(self) -> None:
        if hasattr(self, "sender"):
            all_taken = not self.items and self.receiver.taken == self.receiver.received
            assert not all_taken or self.grants or self.sender.left > 0


TestCredits = Credits.TestCase
TestCredits.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_a_whole_stream_needs_few_grants() -> None:
    sender, receiver, grants = Sender("test", 256), Receiver("test", 256), 0
    for _ in range(10_000):
        sender.spend(1)
        receiver.arrive(1)
        limit = receiver.take(1)
        if limit is not None:
            sender.grant(limit)
            grants += 1
    assert grants == 10_000 // 128


def test_items_beyond_the_credit_are_misbehaviour() -> None:
    receiver = Receiver("the upload", 4)
    receiver.arrive(4)
    with pytest.raises(PeerMisbehaved, match=r"the upload: .*items for 1 with credit for 0"):
        receiver.arrive(1)
    with pytest.raises(PeerMisbehaved):
        receiver.arrive(-1)


def test_credit_beyond_a_window_is_misbehaviour() -> None:
    sender = Sender("the stream", 4)
    sender.spend(2)
    sender.grant(6)
    with pytest.raises(PeerMisbehaved, match="credit up to 7 when 2 was spent"):
        sender.grant(7)


def test_sending_without_credit_and_taking_what_is_not_there_are_bugs() -> None:
    sender = Sender("s", 2)
    with pytest.raises(RuntimeError, match="wait for credit"):
        sender.spend(3)
    with pytest.raises(RuntimeError, match="items for 1 taken of 0"):
        Receiver("r", 2).take(1)
