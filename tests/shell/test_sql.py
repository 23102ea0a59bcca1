"""The node's rows asked by SQL, on a live node: now, as of a moment, as of two at once; and nothing but them."""

import json
import os
import re
import signal
from pathlib import Path

import msgspec
import pytest

from atoll.ipc.attach import connect
from atoll.ipc.errors import NotAllowed
from atoll.ipc.published import Field, TableShape
from atoll.ipc.system.kernel import Load, PublishedTable, Swap
from atoll.ipc.system.records import ConfigurationRow
from atoll.ipc.system.state import Item
from atoll.servers import gpu
from atoll.servers.gpu.interface import Gpu
from atoll.servers.shell import exits, sql
from atoll.servers.shell.tables import of_shape
from atoll.servers.storage.interface import Storage
from tests.microkernel.nodes import wait_for_end

from .conftest import HOUSE, Shell

SIREN = {
    "__init__.py": "",
    "interface.py": """
from atoll.ipc import Interface, call

class Siren(Interface):
    @call("ring", once=True)
    def ring(self, what: str, grade: int) -> int: ...
""",
    "server.py": """
from msgspec import Struct
from atoll.ipc import Deferred, Keyspace, Published, Serves, current
from .interface import Siren

class Grade(Struct, array_like=True):
    number: int
    sure: float | None = None

class Alarm(Struct, tag="alarm"):
    text: str
    rang: float
    grade: Grade
    words: list[str]
    raw: bytes = b""
    false: bool = False

class Test(Struct, tag="test"):
    number: int

class Server(Serves[Siren]):
    rows: Keyspace[Alarm | Test]
    publishes = {
        "alarm": Published("rows", Alarm, moments=("rang",)),
        "test": Published("rows", Test, "test/"),
    }

    @Siren.ring.serve
    def ring(self, what: str, grade: int) -> Deferred[int]:
        return self.rows.put_all({
            what: Alarm(what + "!", current().now(), Grade(grade), [what]), "test/1": Test(-(2**62))
        })
""",
}
"""A server that publishes rows of two types."""


def a_package(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def published(tally: Shell) -> Shell:
    """With a siren that rang while a program held a lease of the GPU, was swapped, and rang again under another lease; after
    which the program was refused something three times."""
    assert gpu.__file__ is not None
    with connect(str(tally.folder / "node")) as attached:
        for name, package in (
            ("siren", a_package(tally.folder / "siren", SIREN)),
            ("gpu", str(Path(gpu.__file__).parent)),
        ):
            attached.kernel.load.now(Load(server=name, package=package, level="process"))
        leasing, siren = attached.open("gpu", Gpu), attached.open_untyped("siren")
        lease = leasing.acquire.now("cpu", 1 << 20, purpose="training")
        siren.now("ring", ["fire", 3])
        attached.kernel.swap.now(Swap(server="siren"))
        assert leasing.release.now(lease.id)
        leasing.acquire.now("cpu", 1 << 20, purpose="judging")
        siren.now("ring", ["water", 1])
        siren.now("ring", ["fire", 2])
        looking = attached.open("gpu", Gpu, ["read"])
        for _ in range(3):
            with pytest.raises(NotAllowed):
                looking.acquire.now("cpu", 1 << 20)
    return tally


@pytest.fixture(scope="module")
def tally(node: Shell) -> Shell:
    """A server of a person's own that counted rain twice, was frozen once, and crashed once."""
    node.said("new", "server", "tally")
    node.said("load", "tally", "tally", "--level", "process")
    node.said("call", "tally", "add", '["rain", 2]')
    node.said("freeze", "tally")
    node.said("thaw", "tally")
    node.said("call", "tally", "add", '["rain", 40]')
    return node


def test_what_a_server_was_configured_with_is_a_table_with_a_past(published: Shell) -> None:
    assert gpu.__file__ is not None
    before = published.json("sql", "select max(_revision)::int as revision from kernel.server")[0]["revision"]
    package = str(Path(gpu.__file__).parent)
    published.said("load", "board", package, "--level", "process", "--need", 'config=config:{"grace": 7}')
    query = "select need, given->>'grace' as grace from kernel.configuration where server = 'board'"
    assert published.json("sql", query) == [{"need": "config", "grace": "7"}]
    assert published.json("sql", query, "--at", str(before)) == []
    (changed,) = published.json("diff", "--from", str(before), "--table", "configuration")
    assert (changed["key"], changed["before"]) == ("board config", None)
    assert changed["after"]["given"] == {"grace": 7}
    (version,) = published.json("blame", "kernel", "0x" + ConfigurationRow.key_of("board", "config").hex())
    assert (version["note"], version["revision"]) == ("load board", changed["revision"])
    (written,) = published.json(
        "sql",
        "select note, operation from store.change where kind = 'configuration' and key = 'board config'",
    )
    assert written == {"note": "load board", "operation": "put"}


def test_all_tables_are_listed_with_their_columns(published: Shell) -> None:
    listed = published.json("sql", "show tables;")
    columns = {(row["schema"], row["name"]): row["columns"].split(", ") for row in listed}
    assert {
        ("store", "change"),
        ("kernel", "call"),
        ("kernel", "crash"),
        ("siren", "alarm"),
        ("tally", "rows"),
    } <= set(columns)
    assert columns["siren", "alarm"][:3] == ["_key", "text", "rang"]
    assert {row["moment"] for row in listed} == {None}
    then = published.json("sql", "show all tables", "--as", "before=0s")
    assert {row["moment"] for row in then} == {None, "before"}
    counted = published.json("sql", "select count(*)::int as tables from (show all tables)")
    assert counted == [{"tables": len(listed)}]
    described = published.json("sql", "describe siren.alarm")
    assert [row["column_name"] for row in described] == columns["siren", "alarm"]


def test_the_rows_of_keyspaces_and_of_the_kernel_are_tables(tally: Shell) -> None:
    (row,) = tally.json(
        "sql", "select key, value::int as count, _revision from tally.rows where key = 'rain'"
    )
    newest = tally.json("history", "tally.rows", "rain")[0]
    assert row == {"key": "rain", "count": 42, "_revision": newest["revision"]}
    query = """
        select s.server, s.level, p.pid, p.started is not null as began, p.ended
        from kernel.server s join kernel.process p using (server)
        where p.ended is null and s.server = 'tally'
    """
    (row,) = tally.json("sql", query)
    assert row == {
        "server": "tally",
        "level": "process",
        "pid": tally.row("tally")["pid"],
        "began": True,
        "ended": None,
    }
    told = tally.said(
        "sql", "select kind, count(*) as times from kernel.event where who = 'tally' group by kind order by 1"
    )
    assert [line.split() for line in told.splitlines()] == [["kind", "times"], ["freeze", "1"], ["thaw", "1"]]
    assert tally.said("sql", "select * from tally.rows where key = 'snow'") == "no rows\n"
    every = tally.json("sql", "select distinct client from kernel.channel where server = 'tally'")
    assert all(each["client"].startswith("@") for each in every) and every


def test_what_storage_keeps_for_whom_is_a_table(tally: Shell) -> None:
    with connect(str(tally.folder / "node")) as attached:
        storage = attached.open("storage", Storage)
        refs = storage.put_many.now([b"one blob", b"another one"])
        storage.refer.now([ref.hash for ref in refs], "a model", "its weights")
    (row,) = tally.json("sql", "select _key, size::int as size from storage.reference")
    assert row["_key"].endswith("/a model/its weights") and row["size"] == sum(ref.size for ref in refs)


def test_what_was_is_joined_with_what_is(tally: Shell) -> None:
    first = tally.json("history", "tally.rows", "rain")[1]["revision"]
    query = "select value::int as v from tally.rows"
    assert tally.json("sql", query, "--at", str(first)) == [{"v": 2}]
    query = """
        select key, was.value::int as before, r.value::int as after
        from before.tally.rows was join tally.rows r using (key)
    """
    assert tally.json("sql", query, "--as", f"before={first}") == [{"key": "rain", "before": 2, "after": 42}]


def test_what_was_deleted_of_the_node_itself_has_its_key(tally: Shell) -> None:
    (root,) = [
        row["number"]
        for row in tally.json("caps", "tally")
        if row["interface"] == "Tally" and not row["parent"]
    ]
    number = tally.json("grant", str(root), "storage")["number"]
    tally.said("revoke", str(number))
    query = (
        f"select operation from store.change where kind = 'capability' and key = '{number}' order by revision"
    )
    assert [row["operation"] for row in tally.json("sql", query)] == ["put", "delete"]


def test_a_table_that_is_named_in_two_ways_has_each_row_once(tally: Shell) -> None:
    count = "select count(*) as n from tally.rows"
    twice = "select count(*) as n, (select count(*) from memory.tally.rows) as again from tally.rows"
    (once,) = tally.json("sql", count)
    assert tally.json("sql", twice) == [{"n": once["n"], "again": once["n"]}]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("create table x (i int)", "expected a SELECT"),
        ("selct 1", "syntax error"),
        ("select * from kernel.nothing", "nothing"),
        ("select * from read_csv('/etc/passwd')", "file system operations are disabled"),
        ("select * from '/etc/passwd'", "does not exist"),
        ("select 1; set enable_external_access = true", "SELECT"),
        ("attach '/tmp/x.db'", "expected a SELECT"),
    ],
)
def test_nothing_but_the_nodes_rows_is_read_and_nothing_is_written(
    tally: Shell, query: str, told: str
) -> None:
    assert told in tally.refused(exits.WRONG_INPUT, "sql", query)


def test_a_moment_has_a_name(tally: Shell) -> None:
    for wrong in ("then", "=1", "memory=1", "a b=1", "kernel=1", "tally=1"):
        assert "--as" in tally.refused(exits.WRONG_INPUT, "sql", "select 1", "--as", wrong)
    assert "--as" in tally.refused(exits.WRONG_INPUT, "sql", "select 1", "--as", "before=soon")


def asked(word: str) -> str:
    """The manual's query whose question has a word."""
    (found,) = [query for query in questions() if word in query]
    return found


def questions() -> list[str]:
    manual = (HOUSE / "docs" / "manual.md").read_text()
    (fence,) = re.findall(r"^```sql\n(.*?)^```$", manual, re.MULTILINE | re.DOTALL)
    return [re.sub("^--(.*)$", r"/*\1 */", query.strip(), flags=re.MULTILINE) for query in fence.split(";")][
        :-1
    ]


def test_what_the_manual_asks_is_answered(published: Shell) -> None:
    assert len(questions()) == 11
    for query in questions():
        published.json("sql", query, "--as", "before=1")


def test_who_held_the_gpu_when_the_alarm_rang(published: Shell) -> None:
    found = published.json("sql", asked("the alarm rang"))
    held = {(row["text"], row["purpose"]): row["ended"] for row in found}
    assert set(held) == {("fire!", "judging"), ("water!", "judging")}
    then = published.json("history", "siren.rows", "fire")[1]["revision"]
    before = published.json("sql", "select text, grade_number from siren.alarm", "--at", str(then))
    assert before == [{"text": "fire!", "grade_number": 3}]
    was = asked("the alarm rang").replace("from siren.alarm", "from was.siren.alarm alarm")
    assert [row["purpose"] for row in published.json("sql", was, "--as", f"was={then}")] == ["training"]


def test_which_refusals_rose_after_the_last_swap(published: Shell) -> None:
    found: list[dict[str, int]] = []
    while sum(row["more"] for row in found) < 3:  # they are written down in batches
        told = published.json("sql", asked("after the last swap"))
        # Storage's start is after that swap, too, and is refused what it does without.
        found = [row for row in told if row["who"] != "storage"]
    assert all(str(row["what"]).startswith("gpu, Gpu.acquire: ") for row in found), found
    assert sum(row["more"] for row in found) == 3


def test_who_changed_a_key_and_for_which_call(published: Shell) -> None:
    found = published.json("sql", asked("Who changed a key"), "--since", "1h")
    assert [(row["operation"], row["writer"], row["note"], row["client"]) for row in found] == [
        ("put", "siren.rows", "Siren.ring", "siren")
    ] * 2
    assert [re.search(r'"number":?|\[(\d)', row["value"]) is not None for row in found] == [True, True]
    count = (
        "select count(*) as n, count(distinct revision) as r from store.change where keyspace = 'siren.rows'"
    )
    assert published.json("sql", count) == [{"n": 6, "r": 3}]
    last = published.json("history", "siren.rows", "water")[0]["revision"]
    assert published.json("sql", count, "--since", str(last - 1)) == [{"n": 4, "r": 2}]
    assert published.json("sql", count, "--at", str(last)) == [{"n": 4, "r": 2}]
    assert published.json(
        "sql", "select distinct key from store.change where kind = 'server' and key in ('siren', 'tally')"
    )


def test_which_calls_touched_a_key_in_the_minute_before_a_crash(tally: Shell) -> None:
    """Those that wrote that key in that time, by the ids under which they are recorded; in less than a minute fewer."""
    tally.said("load", "meter", "tally", "--level", "process", "--record")
    for key in ("rain", "rain", "snow", "rain"):
        tally.said("call", "meter", "add", f'["{key}", 1]')
    pid = tally.row("meter")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    query = asked("wrote a key").replace("siren", "meter").replace("'fire'", "'rain'")
    while not (found := tally.json("sql", query)):  # the row of its end is written a little later
        pass
    tally.said("call", "meter", "add", '["rain", 1]')
    while len(recorded := tally.json("calls", "meter", "--method", "add")) < 5:  # the last one first
        pass
    third, _, second, first = recorded[1:]
    assert [row["call"] for row in tally.json("sql", query)] == [
        each["id"] for each in (first, second, third)
    ]
    assert [row["client"] for row in found] == [each["client"].split()[0] for each in (first, second, third)]
    assert [(row["method"], row["operation"], row["value"]) for row in found] == [
        ("Tally.add", "put", str(count)) for count in (1, 2, 3)
    ]
    shorter = query.replace("interval 1 minute", f"(x.time - timestamp '{found[1]['time']}')")
    assert [row["call"] for row in tally.json("sql", shorter)] == [second["id"], third["id"]]


def test_published_rows_have_a_column_a_field(published: Shell) -> None:
    query = "select * exclude (rang, _revision, _time) from siren.alarm order by text desc"
    assert published.json("sql", query) == [
        {
            "_key": text[:-1],
            "text": text,
            "grade_number": grade,
            "grade_sure": None,
            "words": f'["{text[:-1]}"]',
            "raw": "",
            "false": False,
        }
        for text, grade in (("water!", 1), ("fire!", 2))
    ]
    assert published.json("sql", "select _key, number from siren.test") == [
        {"_key": "test/1", "number": -(2**62)}
    ]
    query = "select count(*) as n from siren.rows r join siren.alarm a on a._key = r.key"
    assert published.json("sql", query) == [{"n": 2}]


def test_what_is_sealed_has_a_key_and_no_fields() -> None:
    """As rows of a private keyspace are, which this program cannot open."""
    shape = TableShape("rows", "", (Field("text", "text", ("text",)),), ("type", "alarm"))
    table = PublishedTable(server="siren", name="alarm", keyspace="siren.rows", shape=shape)
    items = [
        Item(b"open", msgspec.msgpack.encode({"type": "alarm", "text": "fire!"}), 7, 1000),
        Item(b"sealed", b"\xc1\x01" + bytes(60), 8, 2000),
        Item(b"another", msgspec.msgpack.encode({"type": "test"}), 9, 3000),
    ]
    assert of_shape(table, items).columns == [["open", "sealed"], ["fire!", None], [7, 8], [1, 2]]


def test_columns_of_one_name_are_all_told(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a join: in JSON the later ones are numbered, as DuckDB numbers them in a table."""
    database = sql.opened()
    sql.tell(database.execute("select 1 as time, 2 as time, 3 as time_1, 4 as time"), True)
    assert json.loads(capsys.readouterr().out) == [{"time": 1, "time_1": 2, "time_1_1": 3, "time_2": 4}]
    sql.tell(database.execute("select 1 as time, 2 as time"), False)
    assert capsys.readouterr().out.split() == ["time", "time", "1", "2"]
