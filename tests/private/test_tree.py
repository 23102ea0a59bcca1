"""A tree of seeds forgets the leaves that were pruned, and no other."""

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.servers.keys.tree import DEPTH, SEED, Tree, child

ROOT = bytes(range(SEED))
PLACES = st.one_of(st.integers(0, 2**DEPTH - 1), st.integers(0, 40), st.integers(2**DEPTH - 40, 2**DEPTH - 1))


def grown() -> Tree:
    return Tree([(0, 0, ROOT)])


@settings(max_examples=50, deadline=None)
@given(st.sets(PLACES, max_size=12), st.sets(PLACES, max_size=12))
def test_what_is_pruned_is_gone_and_the_others_are_as_they_were(pruned: set[int], looked: set[int]) -> None:
    whole, tree = grown(), grown()
    for place in pruned:
        assert tree.prune(place) and not tree.prune(place)
    again = Tree(tree.kept())
    for place in pruned | looked:
        assert again.leaf(place) == (None if place in pruned else whole.leaf(place))


@settings(max_examples=50, deadline=None)
@given(st.sets(PLACES, min_size=1, max_size=12))
def test_no_seed_that_is_kept_lies_above_a_pruned_leaf(pruned: set[int]) -> None:
    tree = grown()
    for place in pruned:
        tree.prune(place)
    kept = list(tree.kept())
    for depth, prefix, seed in kept:
        assert not [place for place in pruned if place >> (DEPTH - depth) == prefix]
        above = ROOT
        for level in range(depth):
            above = child(above, prefix >> (depth - level - 1) & 1)
        assert seed == above
    # They are disjoint, and cover all leaves but those that were pruned.
    assert sum(2 ** (DEPTH - depth) for depth, _, _ in kept) == 2**DEPTH - len(pruned)


def test_leaves_do_not_look_alike() -> None:
    tree = grown()
    leaves = {tree.leaf(place) for place in range(200)}
    assert len(leaves) == 200 and all(leaf is not None and len(leaf) == SEED for leaf in leaves)
