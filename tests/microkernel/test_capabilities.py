"""The capability tree: what each operation allows, and the invariants under any sequence of them."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.ipc.errors import BadRequest, NotAllowed, NotFound, QuotaExceeded
from atoll.ipc.naming import badge_number
from atoll.ipc.system.records import CapabilityRow
from atoll.microkernel import slots
from atoll.microkernel.accounts import Ledger
from atoll.microkernel.capabilities import NEVER, ROOT_SLOT, Capability, Tree, no_later
from atoll.microkernel.capability_rows import capability_of, row_of, session_row, write_ended, write_made
from atoll.microkernel.changes import Batch
from atoll.microkernel.image import DELEGATE, Account
from atoll.microkernel.rights import DELEGATE_BIT, extend, mask, names


def make_tree(capabilities: int = 1000, boot: int = 1) -> Tree:
    tree = Tree(boot, Ledger({"": Account(capabilities=capabilities)}))
    tree.offer("store", "Store", ("read", "write"))
    return tree


def hand_out(tree: Tree, to: str = "alice", **options: object) -> Capability:
    """A capability with all rights and `delegate`, for `to`."""
    root = tree.root("store", "Store")
    rights = options.pop("rights", ("read", "write", DELEGATE))
    return tree.mint(root.id, by="store", to=to, badge=7, rights=rights, **options)  # type: ignore[arg-type]


def test_a_root_stands_in_no_table_and_has_all_rights() -> None:
    root = make_tree().root("store", "Store")
    assert (root.holder, root.badge, root.slot, root.parent) == ("store", 0, ROOT_SLOT, 0)
    assert root.rights == {"read", "write", DELEGATE}


def test_derive_keeps_the_badge_and_never_adds_rights() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    weaker = tree.derive(mine.id, by="alice", rights={"read"})
    assert (weaker.badge, weaker.rights, weaker.holder) == (7, {"read"}, "alice")
    with pytest.raises(NotAllowed, match="derive needs the right 'write', and this capability holds 'read'"):
        tree.derive(weaker.id, by="alice", rights={"read", "write"})


def test_derive_cannot_outlive_its_parent() -> None:
    tree = make_tree()
    mine = hand_out(tree, expiry=100)
    assert tree.derive(mine.id, by="alice", rights=()).expiry == 100
    assert tree.derive(mine.id, by="alice", rights=(), expiry=50).expiry == 50
    with pytest.raises(BadRequest, match="derive, expiry: expected at most 100, got 101"):
        tree.derive(mine.id, by="alice", rights=(), expiry=101)


def test_a_badge_once_set_never_changes() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    with pytest.raises(BadRequest, match="expected an unbadged one, got one with badge 7"):
        tree.mint(mine.id, by="alice", to="alice", badge=8, rights=())


@pytest.mark.parametrize("badge", [0, -1, 1 << 63])
def test_mint_refuses_what_is_no_badge(badge: int) -> None:
    tree = make_tree()
    with pytest.raises(BadRequest, match=r"badge: expected a number from 1 to 2\*\*63 - 1"):
        tree.mint(tree.root("store", "Store").id, by="store", to="alice", badge=badge, rights=())


def test_the_holder_of_an_unbadged_capability_may_mint() -> None:
    tree = make_tree()
    unbadged = tree.grant(tree.root("store", "Store").id, by="store", to="alice", rights=("read", DELEGATE))
    minted = tree.mint(unbadged.id, by="alice", to="bob", badge=9, rights=("read",))
    assert (minted.holder, minted.badge, minted.parent) == ("bob", 9, unbadged.id)


def test_grant_needs_delegate_and_leaves_it_out_unless_asked() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    theirs = tree.grant(mine.id, by="alice", to="bob")
    assert theirs.rights == {"read", "write"}
    with pytest.raises(NotAllowed, match="grant needs the right 'delegate'"):
        tree.grant(theirs.id, by="bob", to="carol")


def test_mint_for_another_needs_delegate_too() -> None:
    tree = make_tree()
    unbadged = tree.grant(tree.root("store", "Store").id, by="store", to="alice", rights=("read",))
    assert tree.mint(unbadged.id, by="alice", to="alice", badge=9, rights=("read",)).badge == 9
    with pytest.raises(NotAllowed, match="mint needs the right 'delegate'"):
        tree.mint(unbadged.id, by="alice", to="bob", badge=9, rights=("read",))


def test_what_others_hold_is_not_there() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    for attempt in (
        lambda: tree.derive(mine.id, by="mallory", rights=()),
        lambda: tree.grant(mine.id, by="mallory", to="mallory"),
        lambda: tree.revoke(mine.id, by="mallory"),
        lambda: tree.derive(12345, by="mallory", rights=()),
    ):
        with pytest.raises(NotFound, match="there is no capability"):
            attempt()


def test_revoke_takes_everything_below_parents_first() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    bobs = tree.grant(mine.id, by="alice", to="bob", rights=("read", DELEGATE))
    carols = tree.grant(bobs.id, by="bob", to="carol", rights=("read",))
    other = tree.derive(mine.id, by="alice", rights=("write",))
    assert tree.revoke(bobs.id, by="alice").gone == [bobs, carols]
    assert [capability.id for capability in tree] == [tree.root("store", "Store").id, mine.id, other.id]
    assert tree.revoke(mine.id, by="store").gone == [mine, other]


def test_revoke_can_keep_the_capability_itself() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    bobs = tree.grant(mine.id, by="alice", to="bob")
    assert tree.revoke(mine.id, by="alice", keep=True).gone == [bobs]
    assert tree.get(mine.id) == mine


def test_nobody_revokes_upwards_or_a_root() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    bobs = tree.grant(mine.id, by="alice", to="bob")
    with pytest.raises(NotFound):
        tree.revoke(mine.id, by="bob")
    assert tree.get(bobs.id) == bobs
    with pytest.raises(BadRequest, match="the root of store"):
        tree.revoke(tree.root("store", "Store").id, by=None)


def test_session_capabilities_die_with_their_holder_and_lasting_ones_stay() -> None:
    tree = make_tree()
    stays = hand_out(tree, lasting=True)
    goes = hand_out(tree)
    assert tree.died("alice").gone == [goes]
    assert tree.held_by("alice") == [stays]


def test_what_a_dead_holder_had_passed_on_moves_up_and_can_still_be_revoked() -> None:
    tree = make_tree()
    root = tree.root("store", "Store")
    mine = hand_out(tree)
    own = tree.derive(mine.id, by="alice", rights=("read", DELEGATE))
    bobs = tree.grant(own.id, by="alice", to="bob")
    ended = tree.died("alice")
    assert {capability.id for capability in ended.gone} == {mine.id, own.id}
    assert [(moved.id, moved.parent) for moved in ended.moved] == [(bobs.id, root.id)]
    assert tree.check() == []
    assert [capability.id for capability in tree.revoke(bobs.id, by="store").gone] == [bobs.id]


def test_a_lasting_capability_is_not_made_from_a_session() -> None:
    tree = make_tree()
    with pytest.raises(BadRequest, match="expected one of this session, as it is, got lasting"):
        tree.derive(hand_out(tree).id, by="alice", rights=(), lasting=True)


def test_expiry_takes_what_is_due_and_says_when_the_next_is() -> None:
    tree = make_tree()
    first = hand_out(tree, expiry=10)
    child = tree.derive(first.id, by="alice", rights=("read",), expiry=10)
    later = hand_out(tree, expiry=20)
    assert tree.next_expiry() == 10
    assert tree.expire(9).gone == []
    assert tree.expire(10).gone == [first, child]
    assert tree.next_expiry() == 20
    tree.revoke(later.id, by=None)
    assert tree.next_expiry() is None


def test_capabilities_are_charged_and_credited() -> None:
    tree = make_tree(capabilities=2)
    mine = hand_out(tree)
    hand_out(tree)
    with pytest.raises(QuotaExceeded, match="account '' has used its 2 of capabilities"):
        hand_out(tree)
    assert tree.check() == []
    tree.revoke(mine.id, by=None)
    hand_out(tree)


def test_a_slot_comes_back_under_a_new_generation() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    tree.revoke(mine.id, by=None)
    again = hand_out(tree)
    assert (again.slot, again.generation) == (mine.slot, mine.generation + 1)
    assert tree.at("store", mine.slot, mine.generation) is None
    assert tree.at("store", again.slot, again.generation) == again


def test_a_slot_whose_generations_are_spent_is_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "LAST_GENERATION", 3)
    table = slots.Slots()
    taken = []
    for _ in range(4):
        taken.append(table.take())
        table.free(taken[-1][0])
    assert taken == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert table.check() == []


def test_rights_keep_their_bits_over_versions() -> None:
    first = extend((), ("read", "write"))
    second = extend(first, ("grow", "read"))
    assert second == ("read", "write", "grow")
    assert mask({"grow", DELEGATE}, second) == 1 << 2 | 1 << DELEGATE_BIT
    assert names(mask({"grow", DELEGATE}, second), second) == {"grow", DELEGATE}
    with pytest.raises(BadRequest, match="at most 63 names over all versions, got 64"):
        extend(second, (f"right{number}" for number in range(61)))


def test_a_new_version_widens_the_root_and_nothing_else() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    root, before = tree.offer("store", "Store", ("read", "purge"))
    assert before is not None
    assert before.rights == {"read", "write", DELEGATE}
    assert root.rights == {"read", "write", "purge", DELEGATE}
    assert tree.get(mine.id).rights == {"read", "write", DELEGATE}
    assert tree.rights_map("store", "Store") == ("read", "write", "purge")


def test_a_server_that_leaves_takes_its_objects_along() -> None:
    tree = make_tree()
    mine = hand_out(tree)
    assert [capability.id for capability in tree.withdraw("store").gone][1:] == [mine.id]
    assert len(tree) == 0
    with pytest.raises(NotFound, match=r"there is no interface 'store\.Store'"):
        tree.root("store", "Store")


def test_a_boot_brings_back_the_lasting_ones_with_their_numbers() -> None:
    tree = make_tree()
    mine = hand_out(tree, lasting=True, account="people")
    below = tree.grant(mine.id, by="alice", to="bob", lasting=True)
    hand_out(tree)
    rows = [row_of(capability) for capability in tree if capability.lasting]
    assert [msgspec.msgpack.decode(row.value(), type=CapabilityRow) for row in rows] == rows

    again = Tree(2, Ledger({"people": Account(capabilities=1)}))
    assert again.restore([capability_of(row) for row in reversed(rows)]) == []
    root, _ = again.offer("store", "Store", ("read", "write", "purge"))
    assert root.id == tree.root("store", "Store").id
    assert [capability.id for capability in again] == [root.id, mine.id, below.id]
    assert again.check() == []
    assert hand_out(again).id >> 32 == 2


def test_a_row_that_has_more_than_its_parent_does_not_come_back() -> None:
    tree = make_tree()
    mine = hand_out(tree, lasting=True, rights=("read",))
    forged = msgspec.structs.replace(
        mine, id=mine.id + 1, parent=mine.id, rights=frozenset({"read", "write"})
    )
    orphan = msgspec.structs.replace(mine, id=mine.id + 2, parent=999)
    again = Tree(2, Ledger())
    assert again.restore([tree.root("store", "Store"), mine, forged, orphan]) == [forged, orphan]


def test_rows_of_a_change() -> None:
    tree = make_tree()
    mine = hand_out(tree, lasting=True)
    session = hand_out(tree)
    made = write_made(Batch(b"1"), mine, session).changes()
    assert list(made.writes) == [CapabilityRow.key_of(mine.id)]
    ended = tree.revoke(mine.id, by=None)
    assert write_ended(Batch(b"2"), ended).changes().writes == {CapabilityRow.key_of(mine.id): None}
    record = session_row(1, 5, 99, began=[mine, session], ended=[session])
    assert [row.id for row in record.began] == [session.id]
    assert record.ended == (session.id,)


def test_badges_of_names_are_stable() -> None:
    assert badge_number("feedback") == badge_number("feedback") != badge_number("storage")
    assert 0 < badge_number("feedback") < 1 << 63


def test_no_account_fills_a_servers_table() -> None:
    """Alone it gets half of it; the next gets half of what is left; nobody gets a slot beyond its end."""
    tree = Tree(1, Ledger({"greedy": Account(capabilities=1 << 20)}))
    root, _ = tree.offer("store", "Store", ("read",))
    tree.offer("queue", "Queue", ("read",))
    got = dict.fromkeys(("greedy", "b"), 0)
    for account in got:
        with suppress(QuotaExceeded):
            while tree.derive(root.id, by="store", rights=(), account=account).slot < slots.MOST:
                got[account] += 1
        with pytest.raises(QuotaExceeded, match=f"its {got[account]} of capabilities on store"):
            tree.derive(root.id, by="store", rights=(), account=account)
    assert got == {"greedy": slots.MOST // 2, "b": slots.MOST // 4}
    tree.derive(root.id, by="store", rights=(), account="c")
    tree.derive(tree.root("queue", "Queue").id, by="queue", rights=(), account="greedy")
    assert tree.check() == []


def test_rows_beyond_a_table_cannot_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(1, Ledger())
    root, _ = tree.offer("store", "Store", ("read",))
    for _ in range(4):
        tree.derive(root.id, by="store", rights=(), lasting=True)
    rows = list(tree)
    monkeypatch.setattr(slots, "MOST", 3)
    again = Tree(2, Ledger())
    assert again.restore(rows) == rows[-1:]
    assert again.check() == []


def test_taking_back_does_not_look_at_all_that_its_holder_holds() -> None:
    """Each step up is one look, and there are no more than the capability is deep."""
    tree = Tree(1, Ledger())
    root, _ = tree.offer("store", "Store", ("read",))
    for _ in range(100):
        tree.grant(root.id, by="store", to="alice", rights=("read",))
    deep = tree.grant(root.id, by="store", to="alice", rights=("read",))
    for _ in range(10):
        deep = tree.derive(deep.id, by="alice", rights=())
    looks = 0

    class Counted(dict[int, Capability]):
        def __getitem__(self, id: int) -> Capability:
            nonlocal looks
            looks += 1
            return super().__getitem__(id)

    tree._all = Counted(tree._all)
    assert tree.revoke(deep.id, by="alice").gone == [deep]
    assert looks < 30
    with pytest.raises(NotFound):
        tree.revoke(tree.held_by("alice")[0].id, by="bob")


def covers(tree: Tree, ancestor: int, id: int) -> bool:
    """Whether `ancestor` is `id` or above it."""
    while id and id != ancestor:
        id = tree.get(id).parent
    return id == ancestor != 0


HOLDERS = ("store", "queue", "alice", "bob", "@1")
RIGHTS = st.frozensets(st.sampled_from(("read", "write", DELEGATE)))
EXPIRIES = st.sampled_from((NEVER, 5, 10, 20))


class TreeMachine(RuleBasedStateMachine):
    """Any sequence of operations keeps the invariants, and a refused one changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree(1, Ledger({"a": Account(capabilities=12), "b": Account(capabilities=5)}))
        self.now = 0
        self.ever: dict[tuple[str, int, int], int] = {}
        """Which capability each (server, slot, generation) stood for; it may never stand for another."""
        self.boot = 1

    @initialize()
    def offer(self) -> None:
        self.tree.offer("store", "Store", ("read", "write"))
        self.tree.offer("queue", "Queue", ("read",))

    def pick(self, data: st.DataObject) -> Capability:
        return data.draw(st.sampled_from(list(self.tree)))

    def attempt(self, operation: object, *args: object, **options: object) -> Capability | None:
        before = list(self.tree), self.tree.ledger.usage()
        try:
            made = operation(*args, **options)  # type: ignore[operator]
        except (NotAllowed, NotFound, BadRequest, QuotaExceeded):
            assert (list(self.tree), self.tree.ledger.usage()) == before
            return None
        assert isinstance(made, Capability)
        parent = self.tree.get(made.parent)
        assert made.rights <= parent.rights
        assert no_later(made.expiry, parent.expiry)
        assert self.ever.setdefault((made.server, made.slot, made.generation), made.id) == made.id
        return made

    @rule(
        data=st.data(), by=st.sampled_from(HOLDERS), to=st.sampled_from(HOLDERS), badge=st.integers(0, 3),
        rights=RIGHTS, expiry=EXPIRIES, lasting=st.booleans(), account=st.sampled_from("ab"),
    )  # fmt: skip
    def mint(self, data: st.DataObject, by: str, to: str, badge: int, **rest: object) -> None:
        parent = self.pick(data)
        made = self.attempt(self.tree.mint, parent.id, by=by, to=to, badge=badge, **rest)
        if made is not None:
            assert (made.badge, parent.badge, parent.holder) == (badge, 0, by)
            assert to == by or DELEGATE in parent.rights

    @rule(
        data=st.data(), rights=RIGHTS, expiry=EXPIRIES, lasting=st.booleans(), account=st.sampled_from("ab")
    )
    def derive(self, data: st.DataObject, **rest: object) -> None:
        parent = self.pick(data)
        made = self.attempt(self.tree.derive, parent.id, by=parent.holder, **rest)
        if made is not None:
            assert (made.badge, made.holder) == (parent.badge, parent.holder)

    @rule(
        data=st.data(), to=st.sampled_from(HOLDERS), rights=st.none() | RIGHTS, expiry=EXPIRIES,
        lasting=st.booleans(), account=st.sampled_from("ab"),
    )  # fmt: skip
    def grant(self, data: st.DataObject, to: str, **rest: object) -> None:
        parent = self.pick(data)
        made = self.attempt(self.tree.grant, parent.id, by=parent.holder, to=to, **rest)
        if made is not None:
            assert (made.badge, made.holder) == (parent.badge, to)

    @rule(data=st.data(), by=st.none() | st.sampled_from(HOLDERS), keep=st.booleans())
    def revoke(self, data: st.DataObject, by: str | None, keep: bool) -> None:
        target = self.pick(data)
        below = [capability for capability in self.tree if covers(self.tree, target.id, capability.id)]
        may = by is None or any(covers(self.tree, held.id, target.id) for held in self.tree.held_by(by))
        try:
            ended = self.tree.revoke(target.id, by=by, keep=keep)
        except (NotFound, BadRequest):
            assert not may or target.parent == 0
            return
        assert may
        assert ended.gone == (below[1:] if keep else below)
        seen: set[int] = set()
        for capability in ended.gone:
            assert capability.id not in {other.parent for other in ended.gone if other.id in seen}
            seen.add(capability.id)

    @rule(step=st.integers(1, 8))
    def expire(self, step: int) -> None:
        self.now += step
        gone = self.tree.expire(self.now).gone
        assert all(0 < capability.expiry <= self.now for capability in gone)
        assert all(capability.expiry == NEVER or capability.expiry > self.now for capability in self.tree)

    @rule(holder=st.sampled_from(HOLDERS))
    def died(self, holder: str) -> None:
        others = {
            capability.id for capability in self.tree if capability.holder != holder or capability.lasting
        }
        self.tree.died(holder)
        assert {capability.id for capability in self.tree} == others

    @rule()
    def forget(self) -> None:
        self.tree.forget("bob")
        assert self.tree.held_by("bob") == []

    @rule(data=st.data())
    @precondition(lambda self: self.boot < 4)
    def boot_again(self, data: st.DataObject) -> None:
        lasting = [capability for capability in self.tree if capability.lasting]
        self.boot += 1
        self.ever.clear()
        self.tree = Tree(self.boot, Ledger({"a": Account(capabilities=12), "b": Account(capabilities=5)}))
        rows = data.draw(st.permutations([row_of(capability) for capability in lasting]))
        assert self.tree.restore([capability_of(row) for row in rows]) == []
        assert {row_of(capability).key() for capability in self.tree} == {row.key() for row in rows}

    @rule()
    def a_version_with_more_rights(self) -> None:
        self.tree.offer("queue", "Queue", ("read", "write"))

    @invariant()
    def holds(self) -> None:
        assert self.tree.check() == []


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
