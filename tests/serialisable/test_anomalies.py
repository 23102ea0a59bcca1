"""Each kind of anomaly, planted in a history that is sound without it, is found, and found for what it is."""

import random

import pytest

from .anomalies import Append, History, Outcome, Read, Transaction


class Story:
    """A history as it is told: each transaction after the one before it, unless it says otherwise."""

    def __init__(self) -> None:
        self.transactions: list[Transaction] = []
        self.now = 0

    def t(
        self, *did: Append | Read, outcome: Outcome = "ok", began: int | None = None, ended: int | None = None
    ) -> None:
        self.now += 10
        self.transactions.append(
            Transaction(
                self.now if began is None else began, self.now + 5 if ended is None else ended, outcome, did
            )
        )

    def kinds(self, **final: tuple[int, ...]) -> set[str]:
        return {each.kind for each in History(self.transactions, final=final).anomalies()}


def a(key: str, value: int) -> Append:
    return Append(key, value)


def r(key: str, *values: int) -> Read:
    return Read(key, values)


@pytest.fixture
def story() -> Story:
    return Story()


def beside(story: Story, *each: tuple[Append | Read, ...]) -> None:
    """Transactions none of which was over when another began."""
    for did in each:
        story.t(*did, began=story.now, ended=story.now + 1000)
    story.now += 2000


def test_a_serial_history_is_sound(story: Story) -> None:
    story.t(r("x"), a("x", 1), r("x", 1))
    story.t(a("x", 2), a("y", 3))
    story.t(r("x", 1, 2), r("y", 3), r("z"))
    story.t(a("z", 4), outcome="failed")
    story.t(a("z", 5), outcome="unknown")
    story.t(a("z", 6), outcome="unknown")
    story.t(r("z", 5))
    assert story.kinds(x=(1, 2), y=(3,), z=(5,)) == set()


def test_transactions_beside_each_other_may_come_in_any_order(story: Story) -> None:
    beside(story, (r("x"), r("y", 2)), (a("x", 1), r("y", 2)), (a("y", 2), r("x")))
    assert story.kinds(x=(1,), y=(2,)) == set()


def test_g0(story: Story) -> None:
    beside(story, (a("x", 1), a("y", 1)), (a("x", 2), a("y", 2)))
    assert story.kinds(x=(1, 2), y=(2, 1)) == {"G0"}


def test_g1a(story: Story) -> None:
    story.t(a("x", 1), outcome="failed")
    story.t(r("x", 1))
    story.t(r("x"))
    assert "G1a" in story.kinds()


def test_g1b(story: Story) -> None:
    beside(story, (a("x", 1), a("x", 2)), (r("x", 1),))
    assert "G1b" in story.kinds(x=(1, 2))


def test_g1c(story: Story) -> None:
    beside(story, (a("x", 1), r("y", 2)), (a("y", 2), r("x", 1)))
    assert story.kinds(x=(1,), y=(2,)) == {"G1c"}


def test_g_single_a_torn_read(story: Story) -> None:
    beside(story, (a("x", 1), a("y", 2)), (r("x", 1), r("y")))
    assert story.kinds(x=(1,), y=(2,)) == {"G-single"}


def test_g_single_a_lost_update(story: Story) -> None:
    """Both read the same and appended: neither is before the other."""
    beside(story, (r("x"), a("x", 1)), (r("x"), a("x", 2)))
    assert story.kinds(x=(1, 2)) == {"G-single"}


def test_g2_write_skew(story: Story) -> None:
    beside(story, (r("x"), a("y", 1)), (r("y"), a("x", 2)))
    assert story.kinds(x=(2,), y=(1,)) == {"G2"}


def test_g2_of_three_through_what_was_not_there(story: Story) -> None:
    """Phantoms: each saw a range without what the next one put there."""
    beside(story, (r("x"), a("y", 1)), (r("z"), a("x", 2)), (r("y"), a("z", 3)))
    assert story.kinds(x=(2,), y=(1,), z=(3,)) == {"G2"}


def test_a_lost_append(story: Story) -> None:
    story.t(a("x", 1))
    story.t(a("x", 2))
    assert story.kinds(x=(1,)) == {"lost append"}


def test_an_append_that_was_there_once(story: Story) -> None:
    story.t(a("x", 1), outcome="unknown")
    story.t(r("x", 1))
    assert "lost append" in story.kinds(x=())


def test_a_transaction_that_took_effect_twice(story: Story) -> None:
    story.t(a("x", 1))
    story.t(a("x", 2))
    assert "duplicate" in story.kinds(x=(1, 2, 1))


def test_a_value_of_nobodys(story: Story) -> None:
    story.t(r("x", 9))
    assert story.kinds(x=(9,)) == {"garbage"}


def test_lists_that_fit_no_order(story: Story) -> None:
    beside(story, (a("x", 1),), (a("x", 2),), (r("x", 1),), (r("x", 2, 1),))
    assert "incompatible order" in story.kinds(x=(2, 1))


def test_a_transaction_that_misses_its_own(story: Story) -> None:
    story.t(a("x", 1), r("x"))
    assert "internal" in story.kinds(x=(1,))
    again = Story()
    again.t(a("x", 1))
    again.t(r("x"), r("x", 1), began=0)
    assert "internal" in again.kinds(x=(1,))


def test_what_was_answered_is_seen_by_whoever_begins_later(story: Story) -> None:
    story.t(a("x", 1))
    story.t(r("x"))
    assert story.kinds(x=(1,)) == {"G-single in real time"}


def test_what_nobody_was_told_of_may_come_later(story: Story) -> None:
    story.t(a("x", 1), outcome="unknown")
    story.t(r("x"))
    assert story.kinds(x=(1,)) == set()
    story.t(r("x", 1))
    story.t(r("x"))
    assert story.kinds(x=(1,)) == {"G-single in real time"}


def test_no_effect_before_its_cause(story: Story) -> None:
    """A value was read by who had been answered before its writer began."""
    story.t(r("x", 1))
    story.t(a("x", 1))
    assert story.kinds(x=(1,)) == {"G1c in real time"}


def test_values_must_differ(story: Story) -> None:
    story.t(a("x", 1))
    story.t(a("x", 1))
    with pytest.raises(ValueError, match="appended to x twice"):
        story.kinds()


class Serial:
    """A history that was run one after the other, and told with each transaction's time reaching over its neighbours'."""

    def __init__(self, seed: int, count: int = 400) -> None:
        chance = random.Random(seed)
        lists: dict[str, tuple[int, ...]] = {f"k{number}": () for number in range(6)}
        self.transactions: list[Transaction] = []
        for number in range(count):
            outcome = chance.choices(("ok", "failed", "unknown"), (8, 1, 1))[0]
            happens = outcome == "ok" or (outcome == "unknown" and chance.random() < 0.5)
            after = dict(lists)
            did: list[Append | Read] = []
            for each in range(chance.randrange(1, 5)):
                key = chance.choice(list(lists))
                if chance.random() < 0.5:
                    did.append(Append(key, number * 10 + each))
                    after[key] += (number * 10 + each,)
                else:
                    did.append(Read(key, after[key]))
            if outcome == "unknown":
                did = [each for each in did if isinstance(each, Append)]
            lists = after if happens else lists
            at = number * 10
            self.transactions.append(
                Transaction(at - chance.randrange(40), at + chance.randrange(40), outcome, tuple(did))  # type: ignore[arg-type]
            )
        self.final = lists


@pytest.mark.parametrize("seed", range(10))
def test_histories_that_were_serial_are_sound(seed: int) -> None:
    made = Serial(seed)
    assert History(made.transactions, final=made.final).anomalies() == []


@pytest.mark.parametrize("seed", range(10))
def test_one_stale_read_in_a_long_history_is_found(seed: int) -> None:
    """A transaction saw a key without its newest value, whose writer had been answered long before."""
    made = Serial(seed)
    stale = [
        (number, at)
        for number, transaction in enumerate(made.transactions)
        for at, did in enumerate(transaction.did)
        if transaction.outcome == "ok" and isinstance(did, Read) and did.values and is_old(made, did, number)
    ]
    number, at = random.Random(seed).choice(stale)
    told = list(made.transactions[number].did)
    key, values = told[at].key, told[at].values  # type: ignore[union-attr]
    for place, did in enumerate(told):
        if isinstance(did, Read) and did.key == key:
            told[place] = Read(key, values[:-1])
    made.transactions[number] = made.transactions[number]._replace(did=tuple(told))
    assert {"G-single in real time", "G-single"} & {
        each.kind for each in History(made.transactions, final=made.final).anomalies()
    }


def is_old(made: Serial, read: Read, number: int) -> bool:
    """Whether the last value was acknowledged before that transaction began."""
    writer = made.transactions[read.values[-1] // 10]
    return writer.outcome == "ok" and writer.ended < made.transactions[number].began
