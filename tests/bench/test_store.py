"""Bare LMDB is measured with the rows that the `state` server writes: the recorder gives just those."""

from pathlib import Path

from atoll.servers.state.engine import Table
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.ownership import settle_format

from .store.grouped import Grouped, State
from .store.work import Rows, Work


def test_the_recorded_rows_are_those_of_a_real_store(tmp_path: Path) -> None:
    stream, layout = Work(), State()
    groups = [stream.group(5) for _ in range(4)]
    made = [layout.rows(group) for group in groups]
    engine = LmdbEngine(tmp_path / "store")
    settle_format(engine)
    store = Grouped(engine)
    for group in groups:
        store.commit(group)
    for table in (Table.VERSIONS, Table.COMMITS, Table.VALUES):
        expected = sorted(row for tables in made for row in tables[table])
        found: Rows = []
        with engine.snapshot() as snapshot:
            cursor = snapshot.cursor(table)
            row = cursor.seek(b"")
            while row is not None:
                found.append((bytes(row[0]), bytes(row[1])))
                row = cursor.next()
        assert found == expected
    with engine.snapshot() as snapshot:
        events = {position: len(event) for position, event in snapshot.feed(0)}
    expected_events = [
        (int.from_bytes(key, "big"), len(event)) for tables in made for key, event in tables[-1]
    ]
    assert events == dict(expected_events)
    assert [len(rows) for rows in made[-1]][1:] == [5, 0, 5, 5]
    engine.close()
