"""The node's rows asked by SQL, on a live node: now, as of a moment, as of two at once; and nothing but them."""

import re

import pytest

from atoll.servers.shell import exits

from .conftest import HOUSE, Shell


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


def test_what_was_is_joined_with_what_is(tally: Shell) -> None:
    first = tally.json("history", "tally.rows", "rain")[1]["revision"]
    query = "select value::int as v from tally.rows"
    assert tally.json("sql", query, "--at", str(first)) == [{"v": 2}]
    query = """
        select key, was.value::int as before, r.value::int as after
        from before.tally.rows was join tally.rows r using (key)
    """
    assert tally.json("sql", query, "--as", f"before={first}") == [{"key": "rain", "before": 2, "after": 42}]


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
    assert "--at" in tally.refused(exits.WRONG_INPUT, "sql", "select 1", "--as", "before=soon")


def test_what_the_manual_asks_is_answered(tally: Shell) -> None:
    manual = (HOUSE / "docs" / "manual.md").read_text()
    (fence,) = re.findall(r"^```sql\n(.*?)^```$", manual, re.MULTILINE | re.DOTALL)
    queries = [query for query in re.sub("^--.*$", "", fence, flags=re.MULTILINE).split(";") if query.strip()]
    assert len(queries) == 3
    for query in queries:
        tally.json("sql", query, "--as", "before=1")
