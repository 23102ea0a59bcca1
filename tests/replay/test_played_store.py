"""The store as a replay plays it: what it was not asked then it answers as of then, under what the call has written."""

import msgspec

from atoll.ipc.bound import bind
from atoll.ipc.method import MethodSpec
from atoll.ipc.replay.effects import Effects
from atoll.ipc.replay.needs import PlayedStore, Stage
from atoll.ipc.system.state import Item, Page, State, Write

ROWS = [Item(b"%d" % number, b"then", 1, 1) for number in range(5)]
T, PART, INNER = b"t" * 16, b"p" * 16, b"i" * 16


def two_at_a_time(need: str, label: str, payload: bytes) -> bytes:
    given = msgspec.msgpack.decode(payload, type=State.range.spec.arguments)
    rows = [row for row in ROWS if row.key >= given.start]
    return msgspec.msgpack.encode(Page(rows[:2], len(rows) > 2, 1))


async def test_a_scan_goes_on_where_its_page_ends() -> None:
    store = bind(State, PlayedStore(Stage(two_at_a_time), "rows"))
    await store.commit([Write(b"1"), Write(b"3", b"now")], transaction=T)
    keys, here = list[bytes](), b""
    for _ in ROWS:
        page = await store.scan(T, here)
        keys += [item.key for item in page.items]
        here = page.rest
        if not page.more:
            break
    assert keys == [b"0", b"2", b"3", b"4"]


def happened(effects: Effects, method: MethodSpec, reply: object, *given: object) -> None:
    payload, told = msgspec.msgpack.encode(method.arguments(*given)), msgspec.msgpack.encode(reply)
    effects.happened("rows", method.label, payload, told)


def wrote(effects: Effects, key: bytes, transaction: bytes) -> None:
    happened(effects, State.commit.spec, None, [Write(key, b"")], [], b"", b"", "", transaction)


def test_a_part_that_comes_to_nothing_takes_nothing_with_it_that_was_written_beside_it() -> None:
    effects = Effects()
    happened(effects, State.share.spec, PART, T)
    wrote(effects, b"in it", PART)
    happened(effects, State.share.spec, INNER, PART)
    wrote(effects, b"in a part of it", INNER)
    happened(effects, State.join.spec, None, INNER)
    wrote(effects, b"beside it", T)
    happened(effects, State.retract.spec, None, PART)
    assert set(effects.rows) == {("rows", b"beside it")}
    happened(effects, State.finish.spec, None, T)
    happened(effects, State.abort.spec, None, T)
    assert set(effects.rows) == {("rows", b"beside it")}
