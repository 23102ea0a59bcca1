"""Rows that their writer made to be shown badly: each is shown somehow, and none hides those beside it."""

import json
import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc.published import Field, Kind, TableShape
from atoll.ipc.system.calls import LATEST, OpeningRow, Recorded
from atoll.ipc.system.kernel import PublishedTable
from atoll.ipc.system.state import Item
from atoll.servers.shell import printing, sql
from atoll.servers.shell.calls import COLUMNS, row_of
from atoll.servers.shell.recorded import Process
from atoll.servers.shell.rows import value_of
from atoll.servers.shell.tables import OF_CALL, OF_VERSION, Column, Table, of_calls, of_shape

pack = msgspec.msgpack.encode
HOSTILE = {
    "extension": pack([msgspec.msgpack.Ext(5, b"x")]),
    "extension as a key": b"\x81\xd4\x05\x00\x01",
    "nested too far to be read": b"\x91" * 3000 + b"\xc0",
    "nested too far to be shown": b"\x91" * 300 + b"\xc0",
    "nested as far as may be": b"\x91" * printing.DEEPEST + b"\xc0",
    "maps nested": b"\x81\xa1a" * 400 + b"\xc0",
    "a list as a key": b"\x81\x91\x01\x02",
    "keys nested": b"\x81" + b"\x91" * 300 + b"\x01\x02",
    "a map as a key": b"\x81\x81\x01\x02\x03",
    "no number": pack(math.nan),
    "no number as a key": pack({math.nan: 1}),
    "endless": pack([math.inf, -math.inf]),
    "a surrogate": b"\xa3\xed\xa0\x80",
    "a time": pack(datetime.now(UTC)),
    "a time beyond all": b"\xc7\x0c\xff\0\0\0\0" + (2**62).to_bytes(8, "big"),
    "large": pack([2**64 - 1, -(2**63)]),
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_any_value_is_shown(name: str) -> None:
    json.loads(printing.json(value_of(HOSTILE[name])))


@given(st.binary(max_size=200))
def test_any_bytes_are_shown(stored: bytes) -> None:
    json.loads(printing.json(value_of(stored)))


def test_what_is_shown_says_what_was_left_out() -> None:
    assert value_of(HOSTILE["extension"]) == ["(extension 5) x"]
    assert str(value_of(HOSTILE["nested too far to be read"])).startswith("0x9191")
    assert "(nested more than 100 levels deep)" in printing.json(
        value_of(HOSTILE["nested too far to be shown"])
    )
    assert "null" in printing.json(value_of(HOSTILE["nested as far as may be"]))


@pytest.mark.parametrize(
    ("kind", "stored", "shown"),
    [
        *(
            ("seconds", pack([value]), None)
            for value in (math.nan, math.inf, -math.inf, 1e300, -1e300, 1e13, 2**63)
        ),
        ("seconds", pack([1.5]), datetime(1970, 1, 1, 0, 0, 1, 500_000)),
        ("seconds", pack([253_402_300_799]), datetime(9999, 12, 31, 23, 59, 59)),
        ("moment", pack([2**64 - 1]), datetime(2554, 7, 21, 23, 34, 33, 709551)),
        ("moment", pack([-(2**63)]), datetime(1677, 9, 21, 0, 12, 43, 145224)),
        ("number", pack([2**64 - 1]), 2**64 - 1),
        ("real", pack([2**64 - 1]), float(2**64 - 1)),
        ("text", pack(["a\0b"]), "a\0b"),
        ("json", b"\x91" + HOSTILE["nested too far to be shown"], ...),
        ("json", b"\x91" + HOSTILE["extension"], '["(extension 5) x"]'),
        ("json", b"\x91" + HOSTILE["nested too far to be read"], None),
        ("json", b"\x91" + HOSTILE["a surrogate"], None),
    ],
)
def test_a_published_field_is_shown_or_none(kind: Kind, stored: bytes, shown: Any) -> None:
    of = PublishedTable(
        server="s", name="t", keyspace="k", shape=TableShape("rows", "", (Field("f", kind, (0,)),))
    )
    columns = Column("_key", "text"), Column("f", "moment" if kind == "seconds" else kind), *OF_VERSION
    batch = of_shape(of, [Item(b"k", stored, 1, 1000), Item(b"l", pack([None]), 2, 2000)])
    database = sql.opened()
    table = Table(columns, lambda: iter([batch]))
    sql.fill(database, sql.declare(database, sql.NOW, "main", "t", table), table)
    rows = database.execute("select f from memory.main.t order by _key").fetchall()
    assert len(rows) == 2 and (shown is ... or rows[0] == (shown,))


class Nobody:
    """Who knows no client of a channel."""

    def client(self, *_: object) -> str:
        return ""


@pytest.mark.parametrize(
    "lie",
    [
        {"time": 5, "answered": 3},  # or a clock that was set back in between
        {"channel": 2**32 - 1, "request": 2**64 - 1},
        {"time": LATEST, "answered": LATEST, "trace": 2**64 - 1, "badge": 2**64 - 1},
    ],
)
def test_a_recorded_call_is_a_row_whatever_its_process_wrote_of_it(lie: dict[str, int]) -> None:
    opening = OpeningRow(
        boot=1, process=1, server="liar", package="liar", version="v", payloads=False, began=0, methods=(), rights=(),
        needs={}, keyspaces={},
    )  # fmt: skip
    honest: dict[str, Any] = {
        "boot": 1, "process": 1, "channel": 1, "request": 1, "time": 1, "method": 1, "badge": 0, "rights": 0,
        "interface": 0, "lane": 0, "deadline": 0, "trace": 0, "capability": 0, "cast": False, "again": False,
        "context": b"", "arguments": None, "size": 0,
    }  # fmt: skip
    nobody: Any = Nobody()
    row = row_of(nobody, Process(server="liar", opening=opening, state=nobody), Recorded(**honest | lie))
    assert printing.table([row], COLUMNS)
    database = sql.opened()
    table = Table(OF_CALL, lambda: iter([of_calls([row])]))
    sql.fill(database, sql.declare(database, sql.NOW, "kernel", "call", table), table)
    assert database.execute("select count(*) from kernel.call").fetchall() == [(1,)]
