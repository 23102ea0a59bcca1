"""The machine shows what ARMv8 may show, and nothing that it may not: the classic litmus tests, with and without order."""

import pytest

from .machine import Claim, Exchange, Fence, Jump, Label, Load, Program, Sleep, Store, Wake, explore


def test_store_buffering() -> None:
    """SB: both stores may be late; only a full fence between store and load keeps one of them from being missed."""

    def outcomes(*between: Fence, release: bool = False) -> set[tuple[int, ...]]:
        def thread(own: str, other: str) -> Program:
            return [Store(own, 1, release), *between, Load("seen", other, acquire=release)]

        return explore({"t0": thread("x", "y"), "t1": thread("y", "x")}).values("t0.seen", "t1.seen")

    assert outcomes() == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert (0, 0) in outcomes(release=True)
    assert (0, 0) in outcomes(Fence("stores"), Fence("loads"))
    assert outcomes(Fence("full")) == {(0, 1), (1, 0), (1, 1)}


PLAIN = [Store("data", 1), Store("flag", 1)]
RELEASED = [Store("data", 1), Store("flag", 1, release=True)]
FENCED = [Store("data", 1), Fence("stores"), Store("flag", 1)]


def reader(*between: Fence, acquire: bool = False) -> Program:
    return [Load("f", "flag", acquire), *between, Load("d", "data")]


@pytest.mark.parametrize(
    ("write", "read", "stale"),
    [
        (PLAIN, reader(), True),
        (RELEASED, reader(), True),
        (PLAIN, reader(acquire=True), True),
        (RELEASED, reader(acquire=True), False),
        (FENCED, reader(Fence("loads")), False),
        (FENCED, reader(Fence("stores")), True),
    ],
)
def test_message_passing(write: Program, read: Program, stale: bool) -> None:
    """MP: who sees the flag sees the data only if both sides say so."""
    found = explore({"w": write, "r": read}).values("r.f", "r.d")
    assert ((1, 0) in found) is stale
    assert {(0, 0), (0, 1), (1, 1)} <= found


def test_a_branch_orders_stores_behind_a_load_but_no_loads() -> None:
    """MP and LB with control dependencies: a load is satisfied on a guess, a store waits for the decision."""
    writer = [Store("data", 1), Store("flag", 1, release=True)]
    guessed = [Load("f", "flag"), Jump("end", ("f",), lambda f: f == 0), Load("d", "data"), Label("end")]
    assert (1, 0) in explore({"w": writer, "r": guessed}).values("r.f", "r.d")

    def behind(read: str, write: str) -> Program:
        return [Load("a", read), Jump("end", ("a",), lambda a: a == 0), Store(write, 1), Label("end")]

    both = {"t0": behind("x", "y"), "t1": behind("y", "x")}
    assert explore(both).values("t0.a", "t1.a") == {(0, 0)}
    assert explore(both, branches=False).values("t0.a", "t1.a") == {(0, 0), (1, 1)}


def test_load_buffering() -> None:
    """LB: stores may overtake loads in front of them, unless the load acquires, the store releases, or any fence stands
    between: each orders loads before it with stores behind it."""

    def outcomes(*between: Fence, acquire: bool = False, release: bool = False) -> set[tuple[int, ...]]:
        return explore({
            "t0": [Load("a", "x", acquire), *between, Store("y", 1, release)],
            "t1": [Load("b", "y", acquire), *between, Store("x", 1, release)],
        }).values("t0.a", "t1.b")  # fmt: skip

    assert (1, 1) in outcomes()
    for ordered in (
        outcomes(acquire=True),
        outcomes(release=True),
        outcomes(Fence("stores")),
        outcomes(Fence("loads")),
        outcomes(Fence("full")),
    ):
        assert ordered == {(0, 0), (0, 1), (1, 0)}


def test_independent_reads_of_independent_writes() -> None:
    """IRIW: two readers may disagree only because each may reorder its own loads: memory itself is one."""

    def disagree(*between: Fence, acquire: bool = False) -> bool:
        found = explore({
            "w0": [Store("x", 1)],
            "w1": [Store("y", 1)],
            "r0": [Load("a", "x", acquire), *between, Load("b", "y")],
            "r1": [Load("c", "y", acquire), *between, Load("d", "x")],
        })  # fmt: skip
        return (1, 0, 1, 0) in found.values("r0.a", "r0.b", "r1.c", "r1.d")

    assert disagree()
    assert disagree(Fence("stores"))
    assert not disagree(acquire=True)
    assert not disagree(Fence("loads"))
    assert not disagree(Fence("full"))


def test_one_word_never_goes_back() -> None:
    """Coherence: loads of one word in one thread see it move forward; an own store is seen at once."""
    found = explore({"w": [Store("x", 1), Store("x", 2)], "r": [Load("a", "x"), Load("b", "x")]})
    assert found.values("r.a", "r.b") == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)}
    own = explore({"t": [Store("x", 1), Load("a", "x")], "w": [Store("x", 2)]})
    assert own.values("t.a") == {(1,), (2,)}


def test_a_store_is_seen_by_its_own_thread_first() -> None:
    """Forwarding: each thread sees its own store and not yet the other's, which one memory alone could not show."""
    found = explore({
        "t0": [Store("x", 1), Load("a", "x"), Load("b", "y")],
        "t1": [Store("y", 1), Load("c", "y"), Load("d", "x")],
    })  # fmt: skip
    assert (1, 0, 1, 0) in found.values("t0.a", "t0.b", "t1.c", "t1.d")


def test_a_lock_excludes_and_orders() -> None:
    """Exchange and a releasing store; without release the next owner may miss what the last one wrote."""

    def owner(release: bool) -> Program:
        return [
            Label("again"), Exchange("held", "lock", 1), Jump("again", ("held",), lambda held: held == 1),
            Load("n", "count"), Jump("second", ("n",), lambda n: n == 1), Store("count", 1), Jump("leave"),
            Label("second"), Store("count", 2), Label("leave"), Store("lock", 0, release),
        ]  # fmt: skip

    def both(release: bool) -> set[tuple[int, ...]]:
        return explore({"t0": owner(release), "t1": owner(release)}).values("t0.n", "t1.n")

    assert both(release=True) == {(0, 1), (1, 0)}
    assert (0, 0) in both(release=False)


def test_a_sleeper_that_nobody_wakes_is_found() -> None:
    found = explore({"s": [Sleep("word", 0)], "w": [Store("word", 1)]})
    assert list(found.failures) == ["s sleeps on word for ever"]
    assert not explore({"s": [Sleep("word", 0)], "w": [Store("word", 1), Wake("word")]}).failures


def test_a_claim_that_fails_in_some_run_is_found_with_its_way() -> None:
    found = explore(
        {"w": [Store("x", 1)], "r": [Load("a", "x"), Claim("x is still 0", ("a",), lambda a: a == 0)]}
    )
    failure = found.failures["r: x is still 0"]
    assert failure.steps[0] == "w: x = 1"
