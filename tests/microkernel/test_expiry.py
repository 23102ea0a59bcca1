"""The sweep of the node's record over keyspaces in which a server that was taken over wrote what it liked."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import trio

from atoll.ipc.system.calls import ChunkRow, OpeningRow
from atoll.ipc.system.records import IntentRow, ProcessRow, RefusalRow, Row
from atoll.ipc.system.state import Item, Write, absolute
from atoll.microkernel.expiry import PAGE, Expiry
from atoll.microkernel.image import Keep
from atoll.microkernel.intents import DONE, UNDONE, EndProcess, intend
from atoll.microkernel.keeping import tables

KEYSPACE, BEFORE = 7, 100
MOST = 50
"""Looks at the store: a sweep of so few rows needs fewer."""


class Keyspace:
    """Rows in memory; counts how often it is looked at."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.looks = 0

    def put(self, row: Row, key: bytes = b"") -> None:
        self.rows[absolute(KEYSPACE, key or row.key())] = row.value()

    async def range(self, start: bytes, end: bytes, limit: int) -> Any:
        self.looks += 1
        assert self.looks < MOST, "it finds no end"
        await trio.lowlevel.checkpoint()
        keys = sorted(key for key in self.rows if start <= key < end)
        items = [Item(key=key, value=self.rows[key], revision=1, time=1) for key in keys[:limit]]
        return SimpleNamespace(items=items, more=len(keys) > limit)

    async def commit(self, writes: Sequence[Write], note: str = "") -> None:
        for write in writes:
            self.rows.pop(write.key, None)


def chunk(process: int, position: int, time: int) -> ChunkRow:
    return ChunkRow(boot=1, process=process, position=position, wall=0, time=time, dropped=0, tape=b"")


async def sweep(keyspace: Keyspace) -> None:
    node: Any = SimpleNamespace(store=SimpleNamespace(state=keyspace), parties={}, boot=2)
    await Expiry(node)._calls(KEYSPACE, BEFORE)


async def swept(keyspace: Keyspace) -> list[tuple[int, int]]:
    """What is left, by process and position, after a sweep."""
    await sweep(keyspace)
    rows = [msgspec.msgpack.decode(value, type=ChunkRow) for value in keyspace.rows.values()]
    return sorted((row.process, row.position) for row in rows)


async def test_of_each_process_what_is_old_goes() -> None:
    keyspace = Keyspace()
    for process in (2, 3):
        for position in range(PAGE + 5):
            keyspace.put(chunk(process, position, BEFORE + position - PAGE))
    assert await swept(keyspace) == [(process, PAGE + n) for process in (2, 3) for n in range(5)]


async def test_rows_that_lie_where_none_belongs_go_and_hold_up_nobody() -> None:
    keyspace, young = Keyspace(), chunk(3, 0, BEFORE)
    keyspace.put(young)
    for key in (b"", b"x", b"\xff" * 8, b"x" * 8, b"\0" * 30):
        keyspace.put(young, ChunkRow.table + key)
    keyspace.put(chunk(-1, 0, BEFORE), ChunkRow.table + b"beyond")
    assert await swept(keyspace) == [(3, 0)]


async def test_a_process_that_no_key_can_name_is_none() -> None:
    keyspace = Keyspace()
    opening = OpeningRow(
        boot=1, process=-1, server="evil", package="evil", version="v", payloads=False, began=1, methods=(),
        rights=(), needs={}, keyspaces={},
    )  # fmt: skip
    keyspace.put(opening, OpeningRow.table + b"beyond")
    await sweep(keyspace)
    assert len(keyspace.rows) == 1


# the kernel's tables ---------------------------------------------------------------------------------------------------


def process(number: int, started: int, ended: int, boot: int = 1) -> ProcessRow:
    return ProcessRow(
        boot=boot, process=number, server="counter", version="v", pid=number, started=started, uid=0,
        ended=ended, exit="exited with status 0" if ended else "",
    )  # fmt: skip


def refusal(what: str, last: int, boot: int = 1) -> RefusalRow:
    return RefusalRow(boot=boot, who="counter", what=what, by="quota", first=1, last=last, count=1)


async def kept(*rows: Row) -> list[Row]:
    """What a sweep leaves of the rows of one table, during boot 2."""
    keyspace, table = Keyspace(), type(rows[0])
    for row in rows:
        keyspace.put(row)
    node: Any = SimpleNamespace(store=SimpleNamespace(state=keyspace, keyspace=KEYSPACE), boot=2)
    (line,) = (line for line in tables(Keep(), 2) if line.table is table)
    await Expiry(node)._rows(line, BEFORE)
    return [msgspec.msgpack.decode(value, type=table) for _, value in sorted(keyspace.rows.items())]


async def test_what_was_over_long_ago_goes_also_behind_what_lived_longer() -> None:
    old = [process(number, 2, BEFORE - 1) for number in range(2, PAGE + 5)]
    young, runs = process(1, 1, BEFORE), process(1, 3, 0, boot=2)
    late = [process(number, BEFORE, BEFORE + 1, boot=2) for number in range(2, MOST * PAGE)]
    assert await kept(young, *old, runs, *late) == [young, runs, *late]


async def test_refusals_lie_in_no_order_of_time() -> None:
    rows = [refusal("a", BEFORE), refusal("b", BEFORE - 1), refusal("c", BEFORE), refusal("d", BEFORE - 1)]
    of_now = refusal("a", 1, boot=2)
    assert await kept(*rows, of_now) == [rows[0], rows[2], of_now]


def intent(number: int, time: int, outcome: str) -> IntentRow:
    return msgspec.structs.replace(
        intend(1, number, EndProcess(server="counter", process=number, mark=f"1-{number}"), time),
        outcome=outcome,
    )


async def test_what_was_said_before_a_start_goes_once_it_is_known_what_came_of_it() -> None:
    rows = [intent(1, 1, ""), intent(2, 2, DONE), intent(3, 3, UNDONE), intent(4, BEFORE, DONE)]
    assert await kept(*rows) == [rows[0], rows[3]]
