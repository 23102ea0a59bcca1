"""Damage in a copy of a real store is named at its place: rows that break an invariant, and pages that are not what they
were. The check itself comes through whatever it reads."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from atoll.servers.state import layout
from atoll.servers.state.check import check_folder
from atoll.servers.state.lmdb_engine import LmdbEngine

from .history_kit import Kit, key

PAGE = 4096


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousand revisions of small and large values, deletions, commit ids, in two keyspaces."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    kit = Kit(lambda: LmdbEngine(folder, map_size=1 << 30, limit=512 << 20))
    chance = random.Random(3)
    for number in range(1500):
        name = f"k{chance.randrange(200)}"
        value = None if number % 17 == 0 else chance.choice(["small", "large" * 200])
        kit.admit(
            [(key(name), None if value is None else value.encode())], id=layout.prefix(1) + b"%d" % number
        )
        if number % 100 == 0:
            kit.group.flush()
    kit.commit({"a": "x" * 200}, id=layout.prefix(1) + b"last")
    kit.engine.close()
    assert check(folder).returncode == 0
    return folder


def check(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "atoll.servers.state.check", str(folder), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )


class Rows:
    """The raw tables of a store, to plant in."""

    def __init__(self, transaction: lmdb.Transaction, environment: lmdb.Environment) -> None:
        self.transaction = transaction
        self.tables = {
            name: environment.open_db(name.encode(), txn=transaction, create=False)
            for name in ("meta", "versions", "commits", "values", "events")
        }

    def put(self, table: str, row: bytes, value: bytes) -> None:
        assert self.transaction.put(row, value, db=self.tables[table])

    def drop(self, table: str, row: bytes) -> None:
        assert self.transaction.delete(row, db=self.tables[table])

    def get(self, table: str, row: bytes) -> bytes:
        found = self.transaction.get(row, db=self.tables[table])
        assert found is not None
        return bytes(found)

    def last(self) -> int:
        cursor = self.transaction.cursor(self.tables["events"])
        assert cursor.last()
        return int.from_bytes(cursor.key(), "big")

    def event(self, revision: int, **changes: object) -> None:
        """Rewrite an event, its time and fields as they were but for the changes."""
        raw = self.get("events", layout.pack(revision))
        entry = layout.entry_of(raw)
        fields = {name: changes.get(name, getattr(entry, name)) for name in entry.__struct_fields__}
        time = changes.get("time", layout.time_of(raw))
        self.put("events", layout.pack(revision), layout.event(time, layout.Entry(**fields)))  # type: ignore[arg-type]


Plant = Callable[[Rows], object]
A = key("a")


def keyspace_row(rows: Rows) -> bytes:
    cursor = rows.transaction.cursor(rows.tables["versions"])
    assert cursor.set_range(layout.prefix(0) + b"keyspace/")
    return bytes(cursor.key())


def pick(rows: Rows) -> bytes:
    """The row of the newest version of `a`."""
    return layout.versioned(A, rows.last())


PLANTED: dict[str, tuple[Plant, str, str]] = {
    "an event is missing": (lambda rows: rows.drop("events", layout.pack(700)), "feed/701", "not dense"),
    "the first event is missing": (
        lambda rows: rows.drop("events", layout.pack(1)),
        "feed",
        "begins at revision 2",
    ),
    "the last event is missing": (
        lambda rows: rows.drop("events", layout.pack(rows.last())),
        "versions/first/b'a'",
        "none of the store's",
    ),
    "an event is cut short": (
        lambda rows: rows.put("events", layout.pack(700), b"\0\1\2"),
        "feed/700",
        "cannot be decoded",
    ),
    "an event is rubbish": (
        lambda rows: rows.put("events", layout.pack(700), b"\x7f" * 90),
        "feed/700",
        "cannot be decoded",
    ),
    "the id of an event that is rubbish": (
        lambda rows: rows.put("events", layout.pack(700), b"\x7f" * 90),
        "commits/",
        "cannot be decoded",
    ),
    "times that do not rise": (lambda rows: rows.event(700, time=1), "feed/700", "does not come after"),
    "a write of no keyspace": (lambda rows: rows.event(700, keys=[b"\1"]), "feed/700", "in no keyspace"),
    "a write of another's keyspace": (
        lambda rows: rows.event(700, keys=[key("x", 2)]),
        "feed/700",
        "outside the keyspaces",
    ),
    "a key written twice": (
        lambda rows: rows.event(700, keys=2 * layout.entry_of(rows.get("events", layout.pack(700))).keys),
        "feed/700",
        "names a key twice",
    ),
    "an owner that is none": (
        lambda rows: rows.event(700, badge=55),
        "feed/700",
        "keyspace 55, which does not exist",
    ),
    "an id of another keyspace": (
        lambda rows: (
            rows.event(700, id=layout.prefix(2) + b"x"),
            rows.put("commits", layout.prefix(2) + b"x", layout.pack(700)),
        ),
        "feed/700",
        "is not of keyspace 1",
    ),
    "the list of keyspaces is rubbish": (
        lambda rows: rows.put("versions", keyspace_row(rows), b"\1\xc1"),
        "versions/store",
        "the list of keyspaces",
    ),
    "a keyspace is missing": (
        lambda rows: rows.drop("versions", keyspace_row(rows)),
        "",
        "which does not exist",
    ),
    "a version is missing": (lambda rows: rows.drop("versions", pick(rows)), "feed/", "no such version"),
    "a version of nobody's": (
        lambda rows: rows.put("versions", layout.versioned(key("b"), 700), b"\1x"),
        "versions",
        "the feed tells of",
    ),
    "a version of another form": (
        lambda rows: rows.put("versions", pick(rows), b"\7"),
        "versions/first/b'a'/",
        "has no value",
    ),
    "a version without form": (
        lambda rows: rows.put("versions", pick(rows), b""),
        "versions/first/b'a'/",
        "has no value",
    ),
    "a row that is too short": (
        lambda rows: rows.put("versions", b"\0\0\0\1", b"\1"),
        "versions/00000001",
        "no row of",
    ),
    "a key that is not escaped": (
        lambda rows: rows.put("versions", layout.prefix(1) + b"a\0b\0\0" + bytes(8), b"\1"),
        "versions/",
        "no row of",
    ),
    "a value is missing": (
        lambda rows: rows.drop("values", layout.place(rows.last(), 0)),
        "versions/first/b'a'/",
        "nothing is there",
    ),
    "a value of nobody's": (
        lambda rows: rows.put("values", layout.place(700, 9), b"x"),
        "values/",
        "no version points",
    ),
    "a value at no place": (lambda rows: rows.put("values", b"x", b"x"), "values/78", "no version points"),
    "an id is missing": (
        lambda rows: rows.drop("commits", layout.prefix(1) + b"last"),
        "feed/",
        "points to nothing",
    ),
    "an id to the future": (
        lambda rows: rows.put("commits", b"id", layout.pack(99999)),
        "commits/6964",
        "is not there",
    ),
    "an id to another's revision": (
        lambda rows: rows.put("commits", b"id", layout.pack(700)),
        "commits/6964",
        "another id",
    ),
    "an id to what is no revision": (
        lambda rows: rows.put("commits", b"id", bytes(9)),
        "commits/6964",
        "no revision",
    ),
    "an owner that no keyspace can be": (
        lambda rows: rows.event(700, badge=1 << 40),
        "feed/700",
        f"keyspace {1 << 40}, which does not exist",
    ),
    "an event at no revision": (
        lambda rows: rows.put("events", b"\xff" * 9, rows.get("events", layout.pack(700))),
        "feed",
        "cannot be read to its end",
    ),
    "an owner cut short": (lambda rows: rows.put("meta", b"owner", b"x"), "meta/owner", "in place of 16"),
    "no owner": (lambda rows: rows.drop("meta", b"owner"), "meta/owner", "nobody ever claimed"),
    "a strange row": (lambda rows: rows.put("meta", b"strange", b"x"), "meta/b'strange'", "no row that"),
}


@pytest.fixture
def copy(whole_store: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copyfile(whole_store / "data.mdb", folder / "data.mdb")
    return folder


@pytest.mark.parametrize("what", PLANTED)
def test_each_kind_of_damage_in_a_real_store_is_named(copy: Path, what: str) -> None:
    plant, path, told = PLANTED[what]
    with (
        lmdb.open(str(copy), map_size=1 << 30, max_dbs=8) as environment,
        environment.begin(write=True) as transaction,
    ):
        plant(Rows(transaction, environment))
    breaches = check_folder(copy).breaches
    assert any(each.path.startswith(path) and told in each.what for each in breaches), breaches[:5]


def test_a_store_without_its_format_is_no_store(copy: Path) -> None:
    with (
        lmdb.open(str(copy), map_size=1 << 30, max_dbs=8) as environment,
        environment.begin(write=True) as transaction,
    ):
        Rows(transaction, environment).drop("meta", b"format")
    done = check(copy)
    assert done.returncode == 2
    assert "no format" in json.loads(done.stdout)["error"]


def pages_in_use(folder: Path) -> int:
    with lmdb.open(str(folder), readonly=True, lock=False, max_dbs=8) as environment:
        return int(environment.info()["last_pgno"]) + 1


@pytest.mark.parametrize("seed", range(6))
def test_damaged_pages_never_take_the_check_with_them(copy: Path, seed: int) -> None:
    """Bytes changed anywhere, whole pages blanked: an exit code and a sentence, never a traceback or a signal."""
    chance = random.Random(seed)
    pages = pages_in_use(copy)
    with open(copy / "data.mdb", "r+b") as file:
        for _ in range(chance.choice([1, 8, 64])):
            place = chance.randrange(2 * PAGE, pages * PAGE)
            size = chance.choice([1, 16, PAGE])
            file.seek(place // PAGE * PAGE if size == PAGE else place)
            file.write(bytes(size) if seed % 2 else chance.randbytes(size))
    done = check(copy)
    assert done.returncode in (0, 1, 2), done.stderr
    assert "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert done.returncode == 0 or said.get("error") or said["breaches"]


def test_a_blank_root_is_named(copy: Path) -> None:
    """Every page but the two that lead to the others."""
    with open(copy / "data.mdb", "r+b") as file:
        file.seek(2 * PAGE)
        file.write(bytes((pages_in_use(copy) - 2) * PAGE))
    done = check(copy)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
