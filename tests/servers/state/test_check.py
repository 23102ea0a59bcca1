"""The check finds what is planted, at its path; formats are upgraded or refused; the command's exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from atoll.ipc.errors import AtollError
from atoll.ipc.system.state import Pin, Retention, Write
from atoll.servers.state import horizons, layout, pins
from atoll.servers.state.check import check
from atoll.servers.state.engine import Batch, Engine, Table
from atoll.servers.state.gather import Gather
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.ownership import FormatRefused, settle_format

from .history_kit import Kit, key
from .kept import Kept


def planted(what: str, kit: Kit) -> Batch:
    """A batch that breaks one invariant of a store with revisions base+1 and base+2 of the key `a`."""
    batch = Batch()
    last = kit.base + 2
    if what == "a version is missing":
        batch.delete(Table.VERSIONS, layout.versioned(key("a"), last))
    elif what == "a value is missing":
        batch.delete(Table.VALUES, layout.place(kit.base + 1, 0))
    elif what == "a value too many":
        batch.put(Table.VALUES, layout.place(last + 7, 0), b"x")
    elif what == "a version nobody wrote":
        batch.put(Table.VERSIONS, layout.versioned(key("b"), last), b"\1x")
    elif what == "a revision of the future":
        batch.put(Table.VERSIONS, layout.versioned(key("a"), last + 9), b"\1x")
    elif what == "a keyspace that is none":
        batch.put(Table.VERSIONS, layout.versioned(key("a", 77), last), b"\1x")
    elif what == "no row at all":
        batch.put(Table.VERSIONS, b"rubbish", b"\1x")
    elif what == "a gap in the revisions":
        batch.append(last + 2, layout.event(kit.clock * 2, layout.Entry(1, "", 0, "", b"", b"", [])))
    elif what == "time runs back":
        batch.append(last + 1, layout.event(1, layout.Entry(1, "", 0, "", b"", b"", [])))
    elif what == "another's keyspace":
        row = layout.versioned(key("a", 2), last + 1)
        batch.put(Table.VERSIONS, row, b"\1x")
        batch.append(
            last + 1, layout.event(kit.clock * 2, layout.Entry(1, "", 0, "", b"", b"", [key("a", 2)]))
        )
    elif what == "an id to nowhere":
        batch.put(Table.COMMITS, b"id", layout.pack(last + 5))
    elif what == "an id to another's revision":
        batch.put(Table.COMMITS, b"id", layout.pack(last))
    else:
        batch.append(last + 1, layout.pack(kit.clock * 2) + b"\xc1")
    return batch


@pytest.mark.parametrize(
    ("what", "path", "told"),
    [
        ("a version is missing", "feed/", "no such version"),
        ("a value is missing", "versions/first/b'a'/", "nothing is there"),
        ("a value too many", "values", "no version points to it"),
        ("a version nobody wrote", "versions", "the feed tells of"),
        ("a revision of the future", "versions/first/b'a'/", "none of the store's"),
        ("a keyspace that is none", "versions/#77/b'a'/", "which does not exist"),
        ("no row at all", "versions/", "no row of a key's version"),
        ("a gap in the revisions", "feed/", "not dense"),
        ("time runs back", "feed/", "does not come after"),
        ("another's keyspace", "feed/", "outside the keyspaces"),
        ("an id to nowhere", "commits/", "is not there"),
        ("an id to another's revision", "commits/", "has another id"),
        ("an event that cannot be decoded", "feed/", "cannot be decoded"),
    ],
)
def test_each_breach_is_found_at_its_place(what: str, path: str, told: str) -> None:
    model = MemoryEngine()
    kit = Kit(lambda: model)
    kit.commit({"a": "x" * 200})
    kit.commit({"a": "y"}, id=layout.prefix(1) + b"id")
    assert not check(model).breaches
    model.commit(planted(what, kit))
    breaches = check(model).breaches
    assert any(breach.path.startswith(path) and told in breach.what for breach in breaches), breaches


def compacted(what: str, kept: Kept) -> Batch:
    """A batch that breaks an invariant of a store in which the keyspace `rows` (1) was compacted."""
    batch = Batch()
    with kept.server._engine.snapshot() as snapshot:
        head, progress = snapshot.bounds()[1], horizons.progress_of(snapshot, 1)
    if what == "a version too few":
        batch.delete(Table.VERSIONS, layout.versioned(key("a"), head - 1))
    elif what == "a revision too few":
        batch.drop(head - 1)
    elif what == "an id too few":
        batch.delete(Table.COMMITS, layout.prefix(1) + b"late")
    elif what == "a horizon ahead":
        horizons.put(batch, 1, msgspec.structs.replace(progress, horizon=head + 5))
    elif what == "a horizon of nothing":
        horizons.put(batch, 77, progress)
    elif what == "an empty revision":
        batch.delete(Table.VERSIONS, layout.versioned(key("b"), head - 3))
    elif what == "a pin on nothing":
        pin = Pin("p", head + 9, "", "rows", "1:2", 1)
        layout.put_versions(batch, [(pins.key_of(1, "p"), pins.encode(pin))], head + 1)
        entry = layout.Entry(0, "", 0, "", b"", b"", [pins.key_of(1, "p")])
        batch.append(head + 1, layout.event(10**18, entry))
    else:
        batch.put(Table.META, b"horizon/" + layout.prefix(1), b"\xc1")
    return batch


@pytest.mark.parametrize(
    ("what", "path", "told"),
    [
        ("a version too few", "feed/", "no such version"),
        ("a revision too few", "feed/", "not dense"),
        ("an id too few", "feed/", "points to nothing"),
        ("a horizon ahead", "meta/horizon/rows", "was swept up to"),
        ("a horizon of nothing", "meta/horizon/#77", "which does not exist"),
        ("an empty revision", "feed/", "nothing that it wrote is left"),
        ("a pin on nothing", "pins/rows/p", "none of the store's"),
        ("a horizon that cannot be decoded", "meta/horizon/rows", "cannot be decoded"),
    ],
)
def test_what_compaction_does_not_explain_is_found(what: str, path: str, told: str) -> None:
    model = MemoryEngine()
    kept = Kept(lambda: model)
    rows = kept.keyspace_state("rows", Retention(age=5.0))
    for number in range(20):
        rows.commit.start([Write(b"a", b"%d" % number)]).result()
    rows.commit.start([Write(b"b", b"1")]).result()
    kept.hands.now += 100
    rows.commit.start([Write(b"c", b"1")], id=b"late").result()
    rows.commit.start([Write(b"a", b"late")]).result()
    kept.compact()
    assert rows.horizon.start().result().versions == 19
    assert not check(model).breaches
    model.commit(compacted(what, kept))
    breaches = check(model).breaches
    assert any(breach.path.startswith(path) and told in breach.what for breach in breaches), breaches


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atoll.servers.state.check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(tmp_path: Path) -> None:
    kit = Kit(lambda: LmdbEngine(tmp_path / "store", map_size=1 << 30))
    kit.commit({"a": "1"})
    good = command(str(tmp_path / "store"), "--json")
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["revisions"] == 3
    kit.engine.commit(planted("an id to nowhere", kit))
    kit.engine.close()
    bad = command(str(tmp_path / "store"))
    assert bad.returncode == 1
    assert "commits/6964: points to revision" in bad.stdout
    none = command(str(tmp_path / "nothing"))
    assert none.returncode == 2
    assert "there is no store" in none.stderr
    assert command().returncode == 2


def stamped(version: int) -> MemoryEngine:
    engine = MemoryEngine()
    settle_format(engine, latest=version)
    return engine


def test_an_older_format_is_upgraded_step_by_step() -> None:
    engine = stamped(1)
    steps: list[int] = []

    def step(number: int) -> None:
        steps.append(number)

    ladder = {1: lambda _: step(1), 2: lambda _: step(2)}
    assert settle_format(engine, ladder=ladder, readable=3) == "the store was upgraded from format 1 to 3"
    assert steps == [1, 2]
    assert settle_format(engine, ladder=ladder, readable=3) == "the store has format 3"


def test_an_upgrade_that_dies_goes_on_where_it_was() -> None:
    engine = stamped(1)

    def dies(_: Engine) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settle_format(engine, ladder={1: lambda _: None, 2: dies}, readable=3)
    assert (
        settle_format(engine, ladder={2: lambda _: None}, readable=3)
        == "the store was upgraded from format 2 to 3"
    )


def test_a_newer_format_is_refused_with_what_to_do() -> None:
    with pytest.raises(FormatRefused, match="run the version that wrote it"):
        settle_format(stamped(9))
    with pytest.raises(FormatRefused, match="start the writer once"):
        settle_format(stamped(1), ladder={1: lambda _: None}, readable=2, read_only=True)
    with pytest.raises(FormatRefused, match="no way leads from 1 to 2"):
        settle_format(stamped(1), ladder={}, readable=2)


def test_a_lone_client_never_waits_and_a_crowd_is_waited_for() -> None:
    gather = Gather()
    gather.committed(1, 0.001)
    assert gather.wait(1, 0.0) == 0.0
    gather.committed(64, 0.001)
    assert gather.wait(10, 0.0) == pytest.approx(0.0005)
    assert gather.wait(10, 0.0004) == pytest.approx(0.0001)
    assert gather.wait(10, 0.0006) == 0.0
    assert gather.wait(64, 0.0) == 0.0
    for _ in range(60):
        gather.committed(1, 0.001)
    assert gather.wait(1, 0.0) == 0.0


def test_errors_read_as_sentences(tmp_path: Path) -> None:
    kit = Kit(MemoryEngine)
    with pytest.raises(AtollError) as error:
        kit.history.get(key("a"), 99)
    assert str(error.value) == "revision 99 lies ahead of the store, at 2: ask for that or less"
