"""What a call commits: each of its writes once, whoever writes beside it and however often it is delivered; transactions
that read much, that only read, and that are done again."""

from pathlib import Path

import pytest
import trio
import trio.testing

from atoll.ipc.context import Call, in_hand
from atoll.ipc.errors import Conflict, TooLarge
from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.system.state import Committed, Expect, State, Write
from atoll.ipc.transaction import Transaction
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.transactions import LONGEST

from .kept import Kept
from .test_keyspace import hand, rows
from .test_server import ALL, serving

LONG = "x" * 10_000
MANY = 150
"""So many long rows are more than a page, which ends at 512 KiB."""


async def put(keyspace: Keyspace[int], call: Call, key: str, value: int) -> None:
    with in_hand(call):
        written = keyspace.put(key, value)
    await settled(written)


async def spend(keyspace: Keyspace[int], call: Call, by: int) -> int:
    """What a handler does in its one transaction; gives what is left."""
    with in_hand(call):
        async with keyspace.transaction() as transaction:
            left = (await transaction.get("purse") or 0) - by
            transaction.put("purse", left)
        return left


async def test_calls_that_write_in_turns_lose_nothing(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        one, other = hand(1), hand(2)
        await put(keyspace, one, "a", 1)
        await put(keyspace, other, "b", 1)
        await put(keyspace, one, "a", 2)
        await put(keyspace, other, "b", 2)
        assert [await keyspace.get("a"), await keyspace.get("b")] == [2, 2]


async def test_two_holders_of_one_keyspace_write_in_one_call(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        twin = Keyspace[int](keyspace.state, int, boot=1)
        call = hand(1)
        await put(keyspace, call, "a", 1)
        await put(twin, call, "a", 2)
        assert await keyspace.get("a") == 2


async def test_a_call_that_is_delivered_again_may_write_in_another_order(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        await put(keyspace, hand(1), "a", 1)  # then its server died
        again = hand(1)
        await put(keyspace, again, "b", 1)
        await put(keyspace, again, "a", 1)
        assert [await keyspace.get("a"), await keyspace.get("b")] == [1, 1]


async def test_a_range_of_a_transaction_is_whole_and_kept_so(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        texts = Keyspace[str](node.proxy(State, await kernel.make_keyspace("texts"), ALL), str)
        for first in range(0, MANY, 50):
            await settled(texts.put_all({f"{number:03}": LONG for number in range(first, first + 50)}))
        async with texts.transaction() as transaction:
            assert len(await transaction.range()) == MANY
            assert len(await transaction.range(limit=70)) == 70
            for number in range(100):
                transaction.delete(f"{number:03}")
            left = [key for key, _ in await transaction.range()]
            assert left == [f"{number:03}" for number in range(100, MANY)]

        async def count_beside_another() -> None:
            async with texts.transaction() as transaction:
                transaction.put("count", str(len(await transaction.range())))
                await settled(texts.put("149a", "another's"))

        with pytest.raises(Conflict, match="149a"):
            await count_beside_another()
        assert await texts.get("count") is None


async def test_a_transaction_that_only_reads_neither_conflicts_nor_commits(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        await settled(keyspace.put_all({"a": 1, "b": 1}))
        before = (await keyspace.state.statistics())["groups"]
        async with keyspace.transaction() as transaction:
            first = await transaction.get("a")
            await settled(keyspace.put_all({"a": 2, "b": 2}))
            assert (first, await transaction.get("b")) == (1, 1), "both as it began"
        assert (await keyspace.state.statistics())["groups"] == before + 1, "the other's"


async def test_what_was_expected_must_hold_though_nothing_is_written(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        state = keyspace.state
        await settled(keyspace.put("a", 1))
        transaction = await state.begin(10.0)
        await state.commit([], [Expect(b"a", 7)], transaction=transaction)
        with pytest.raises(Conflict):
            await state.finish(transaction)


async def test_a_call_that_is_delivered_again_spends_once_and_says_the_same(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        await settled(keyspace.put("purse", 10))
        assert await spend(keyspace, hand(1), 3) == 7
        assert await spend(keyspace, hand(1), 3) == 7
        assert await keyspace.get("purse") == 7
        assert await spend(keyspace, hand(2), 3) == 4
        assert await spend(keyspace, hand(1), 3) == 7, "also when others have spent since"
        assert await keyspace.get("purse") == 4


async def test_what_a_call_expects_when_it_is_delivered_again_is_no_hindrance(tmp_path: Path) -> None:
    """It knows rows as they are by then, from its local view say, and reads them as they were."""
    async with rows(tmp_path) as (_, keyspace, _kernel):
        await settled(keyspace.put("purse", 10))
        for looks_first in (True, False):
            for _ in range(2):
                known = await keyspace.row("purse")
                assert known is not None
                with in_hand(hand(1 + looks_first)):
                    async with keyspace.transaction() as transaction:
                        if looks_first:
                            assert await transaction.get("purse") == 10
                        transaction.expect("purse", known.revision)
                        await transaction.range("q")
                        left = await transaction.get("purse") or 0
                        transaction.put("purse", left - 1)
        assert await keyspace.get("purse") == 8


async def test_a_transaction_that_was_tried_again_is_not_done_again_at_the_next_delivery(
    tmp_path: Path,
) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        await settled(keyspace.put("purse", 10))
        call, rival = hand(1), 1

        async def body(transaction: Transaction[int]) -> None:
            nonlocal rival
            left = await transaction.get("purse") or 0
            if rival:
                rival = 0
                await put(keyspace, hand(2), "purse", 20)
            transaction.put("purse", left - 1)

        with in_hand(call):
            await keyspace.retry(body)
        assert await keyspace.get("purse") == 19
        with in_hand(hand(1)):
            await keyspace.retry(body)
        assert await keyspace.get("purse") == 19


async def test_transactions_of_one_call_beside_one_another_are_two(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        with in_hand(hand(1)):
            async with keyspace.transaction() as one, keyspace.transaction() as other:
                one.put("a", 1)
                other.put("b", 1)
        assert [await keyspace.get("a"), await keyspace.get("b")] == [1, 1]


async def test_what_a_call_commits_after_it_gave_a_transaction_up_is_committed(tmp_path: Path) -> None:
    """Before, it was taken for what was given up and had been committed all the same: its writes were lost, without an
    error."""
    async with rows(tmp_path) as (node, keyspace, _kernel):

        async def commit(key: str) -> None:
            async with keyspace.transaction() as transaction:
                transaction.put(key, 1)

        with in_hand(hand(1)):
            async with trio.open_nursery() as nursery:
                node.held = True
                nursery.start_soon(commit, "given up")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                node.held = False
                node.drained()
            await commit("in its place")
        assert [row.key async for row in keyspace.range()] == ["given up", "in its place"]


async def test_a_deadline_that_has_passed_keeps_nobody_from_an_outcome_nor_from_giving_up() -> None:
    kept = Kept(MemoryEngine)
    rows = kept.keyspace_state("rows")
    seconds = 0.0
    kept.server._transactions._now = lambda: seconds
    committed = await rows.commit([Write(b"k", b"1")], id=b"an id")
    again, given_up = await rows.begin(1.0, b"an id"), await rows.begin(1.0)
    seconds = 2.0
    assert (await rows.finish(again, id=b"an id")).revision == committed.revision
    await rows.abort(given_up)
    assert (await rows.statistics())["transactions"] == 0


async def test_a_repeated_finish_finds_its_outcome_by_either_id(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        state = keyspace.state
        transaction = await state.begin(10.0, b"call")
        await state.commit([], transaction=transaction)
        await settled(keyspace.put("a", 1))
        await state.commit([Write(b"b", b"\x01")], transaction=transaction)
        first = await state.finish(transaction, id=b"call")
        again = await state.finish(transaction, id=b"call")
        assert (again.revision, again.repeated) == (first.revision, True)


async def test_one_that_cannot_be_finished_holds_no_place(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _kernel):
        texts = Keyspace[str](keyspace.state, str)

        async def too_much() -> None:
            async with texts.transaction() as transaction:
                transaction.put("a", "x" * (17 << 20))

        with pytest.raises(TooLarge):
            await too_much()
        await trio.testing.wait_all_tasks_blocked()
        assert (await keyspace.state.statistics())["transactions"] == 0


@pytest.mark.parametrize("rights", [{"read", "write"}, {"read", "write", "history"}])
async def test_what_was_committed_long_ago_leads_nobody_back_without_the_right_to_the_past(
    rights: set[str],
) -> None:
    """Before, whoever might read and write saw all the past of a keyspace by ids of its commits, which can be guessed."""
    kept = Kept(MemoryEngine)
    badge = await kept.state().make_keyspace("vault")
    owner, guest = kept.state(badge), kept.state(badge, frozenset(rights))
    await owner.commit([Write(b"secret", b"1")])
    committed = await owner.commit([Write(b"k", b"1")], id=b"an id")
    await owner.commit([Write(b"secret")])

    async def seen() -> bytes | None:
        transaction = await guest.begin(10.0, b"an id")
        item = await guest.read(transaction, b"secret")
        assert len((await guest.scan(transaction, b"s")).items) == (item is not None)
        await guest.commit([Write(b"k", b"2")], transaction=transaction)
        assert (await guest.finish(transaction, id=b"an id")).revision == committed.revision
        return None if item is None else item.value

    assert await seen() == b"1", "as one that is done again after a crash"
    kept.hands.now += LONGEST + 1
    assert await seen() == (b"1" if "history" in rights else None)


async def test_what_another_was_answered_is_not_told_to_whoever_may_not_read() -> None:
    """It is a row, as `update` has it, and ids can be guessed."""
    kept = Kept(MemoryEngine)
    badge = await kept.state().make_keyspace("rows")
    owner, guest = kept.state(badge), kept.state(badge, frozenset({"write", "append"}))
    committed = await owner.commit([Write(b"k", b"secret")], id=b"an id", reply=b"secret")

    async def again(reply: bytes) -> Committed:
        transaction = await guest.begin(10.0, b"an id")
        finished = await guest.finish(transaction, reply, id=b"an id")
        for how in (guest.commit, guest.append):
            assert await how([Write(b"mine", b"1")], id=b"an id", reply=reply) == finished
        return finished

    for given, told in ((b"mine", None), (b"secret", b"secret")):
        outcome = await again(given)
        assert (outcome.revision, outcome.reply, outcome.repeated) == (committed.revision, told, True)
    assert (await owner.commit([], id=b"an id")).reply == b"secret"


async def test_whoever_commits_beside_another_by_his_id_is_not_told_what_that_one_is_answered(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        badge = await kernel.make_keyspace("rows")
        owner, guest = node.proxy(State, badge, ALL, client=1), node.proxy(State, badge, {"write"}, client=2)
        async with node.batch():
            first = owner.commit.start([Write(b"k", b"secret")], id=b"an id", reply=b"secret")
            beside = guest.commit.start([Write(b"mine", b"1")], id=b"an id")
            again = owner.commit.start([Write(b"k", b"secret")], id=b"an id", reply=b"secret")
        assert (await beside).reply is None
        assert ((await again).reply, (await again).revision) == (b"secret", (await first).revision)
