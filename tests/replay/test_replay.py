"""Calls of a real node run again: the same, not the same, or said why it cannot be told."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import NotAllowed, NotFound, PeerDied
from atoll.ipc.system.calls import PREFIX, Recorded
from atoll.ipc.system.kernel import Swap
from atoll.ipc.system.records import name_of, table_of
from atoll.ipc.system.state import State
from atoll.servers.shell.differences import differences
from atoll.servers.shell.recorded import Process, Records
from atoll.servers.shell.replay import Again
from atoll.servers.shell.travel import KERNEL

from .conftest import PACKAGES, Recording


def changed(folder: Path, old: str, new: str) -> Path:
    """The package `till`, edited."""
    package = folder / "till"
    shutil.copytree(PACKAGES / "till", package)
    change(package, old, new)
    return package


def change(package: Path, old: str, new: str) -> None:
    source = (package / "server.py").read_text()
    assert old in source
    (package / "server.py").write_text(source.replace(old, new))


def test_what_keeps_to_its_call_is_the_same(recording: Recording) -> None:
    till = recording.till
    till.add.now("a", 6)
    ids = {
        "stamp": recording.made("till", "stamp", lambda: till.stamp.now("b")),
        "exchange": recording.made("till", "exchange", lambda: till.exchange.now("a", "eur")),
        "fault": recording.made("till", "exchange", lambda: till.exchange.now("a", "mark")),
        "move": recording.made("till", "move", lambda: till.move.now("a", "b", 2)),
    }
    till.add.now("a", 100)  # what it is now is not what it was
    for name, id in ids.items():
        report = recording.again(id)
        assert (report.verdict, report.differences, report.reasons) == ("same", [], []), name


def test_time_and_chance_from_elsewhere_are_a_difference(recording: Recording) -> None:
    report = recording.again(recording.made("till", "wild", recording.till.wild.now))
    assert report.verdict == "different"
    assert [difference.where for difference in report.differences] == ["reply"]


def test_what_leans_on_memory_is_replayed_after_what_came_before(recording: Recording) -> None:
    recording.till.next.now()
    again = Again(recording.attached, recording.made("till", "next", recording.till.next.now), None)
    alone = again.report(again.run())
    assert alone.verdict == "not replayable"
    assert "self.given" in alone.reasons[0]
    assert again.remember()
    report = again.report(again.run())
    assert (report.verdict, report.differences) == ("same", [])
    assert report.before


def test_what_a_process_took_over_is_given_to_its_replay(recording: Recording) -> None:
    """The first call after a swap leans on nothing but what the process before handed over."""
    recording.till.next.now()
    recording.attached.kernel.swap.now(Swap(server="till", level="seccomp"))
    report = recording.again(recording.made("till", "next", recording.till.next.now))
    assert (report.verdict, report.differences, report.before) == ("same", [], 0)


class Lesser:
    """The same node to a program whose capabilities read what is now, and no past."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached

    def keyspace(self, name: str, rights: list[str] | None = None) -> State:
        return self._attached.keyspace(name, rights if name == KERNEL else ["read"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attached, name)


def test_who_may_not_read_the_past_replays_nothing(recording: Recording) -> None:
    id = recording.made("till", "total", lambda: recording.till.total.now("j"))
    with pytest.raises(NotAllowed, match="history"):
        Again(Lesser(recording.attached), id, None)  # type: ignore[arg-type]


def test_a_call_that_others_ran_beside_is_said_to_be_so(recording: Recording) -> None:
    till = recording.till

    def beside(call: Any, currency: str) -> None:
        began = call.start("c", currency)
        while not recording.rates.waited_for.now(currency):  # it has read, and waits
            pass
        till.add.now("c", 5)
        recording.rates.fix.now(currency, 1.0)
        first, second = began.result()
        assert second == first + 5

    # The store's answers were recorded, so it is the same; and it is said that they were not of one moment.
    report = recording.again(recording.made("till", "twice", lambda: beside(till.twice, "later one")))
    assert report.verdict == "same"
    assert any("written by another" in remark for remark in report.remarks)
    report = recording.again(recording.made("till", "peek", lambda: beside(till.peek, "later two")))
    assert report.verdict == "not replayable"
    assert any("were in hand while it was" in reason for reason in report.reasons)


def test_the_versions_of_a_key_are_those_of_then(recording: Recording) -> None:
    """More than is recorded of a reply, so they are read again; and others have come since."""
    till = recording.till
    for _ in range(100):
        till.add.now("history", 1)
    ids = [
        recording.made("till", "versions", lambda most=most: till.versions.now("history", most))  # type: ignore[misc]
        for most in (200, 80)
    ]
    for _ in range(50):
        till.add.now("history", 1)
    for id in ids:
        report = recording.again(id)
        assert (report.verdict, report.reasons, report.remarks) == ("same", [], [])


def test_the_call_that_ended_its_server_is_there_and_a_changed_server_answers_it(
    recording: Recording, tmp_path: Path
) -> None:
    recording.till.add.now("d", 7)
    with pytest.raises(PeerDied):
        recording.till.split.now("d", 0)
    recording.made(
        "till", "total", lambda: recording.till.total.now("d")
    )  # what the last process left is put away by now
    records = Records(recording.attached)
    (crashed,) = [call.id for process, call in records.last("till", 1, is_split)]
    report = recording.again(crashed)
    assert (report.verdict, report.remarks) == ("same", ["its process exited with status 3, as it did then"])
    mended = changed(tmp_path, "os._exit(3)", "return 0")
    report = recording.again(crashed, mended)
    assert report.verdict == "different"
    assert [(each.where, each.now) for each in report.differences] == [("reply", 0)]


def is_split(process: Process, call: Recorded) -> bool:
    return process.method(call) == "Till.split"


def test_a_changed_server_is_compared_by_field_and_row(recording: Recording, tmp_path: Path) -> None:
    id = recording.made("till", "stamp", lambda: recording.till.stamp.now("e"))
    package = changed(tmp_path, "self.rows.put(key, made.die)", 'self.rows.put(key + "!", made.die // 2)')
    change(package, "made = Stamp(key=key", "made = Stamp(key=key + '?'")
    found = {each.where: (each.then, each.now) for each in recording.again(id, package).differences}
    assert set(found) == {"reply.key", "rows e", "rows e!"}
    assert found["reply.key"] == ("e", "e?")
    assert found["rows e"][1] == "-" and found["rows e!"] == ("-", found["rows e"][0] // 2)


def test_what_a_changed_server_asks_of_others_is_told(recording: Recording, tmp_path: Path) -> None:
    recording.till.add.now("f", 3)
    id = recording.made("till", "exchange", lambda: recording.till.exchange.now("f", "eur"))
    package = changed(tmp_path, "await self.rates.rate(currency)", 'await self.rates.rate("usd")')
    report = recording.again(id, package)
    asked = [(each.then, each.now) for each in report.differences if each.where == "rates Rates.rate"]
    assert asked == [(["eur"], "-"), ("-", ["usd"])]
    assert "rows f in eur" in {each.where for each in report.differences}


def test_a_replay_changes_nothing(recording: Recording, tmp_path: Path) -> None:
    """Of all that changed meanwhile there is nothing but that this program was given capabilities."""
    till, attached = recording.till, recording.attached
    id = recording.made("till", "add", lambda: till.add.now("g", 4))
    names = [name for name in attached.kernel.keyspaces.now() if not name.startswith(PREFIX)]
    states = {name: attached.keyspace(name, ["read", "history"]) for name in names}
    before = states[KERNEL].head.now()
    package = changed(tmp_path, "(before or 0) + by)", "(before or 0) - by)")
    assert recording.again(id, package).verdict == "different"
    after = states[KERNEL].head.now()
    for name, state in states.items():
        tables = {
            name_of(table_of(each.key))
            for each in differences(state, b"", b"", before, after)
            if name == KERNEL
        }
        assert tables <= {"channel", "session"}
        assert name == KERNEL or not list(differences(state, b"", b"", before, after)), name
    made = Records(attached).last("till", 1000, lambda process, call: True)
    assert next(made)[1].id == id
    assert till.total.now("g") == 4


def test_what_a_replay_runs_can_reach_nothing(recording: Recording, tmp_path: Path) -> None:
    """The changed server is anybody's code: it looks for the node, the network, and for whatever it was not given."""
    id = recording.made("till", "total", lambda: recording.till.total.now("h"))
    folder = recording.node.folder
    package = changed(
        tmp_path,
        "return self.rows.local.get(key, 0)",
        f"""
        import socket
        reached = 0
        for attempt in (
            lambda: socket.socket(socket.AF_UNIX).connect({str(folder / "attach.sock")!r}),
            lambda: socket.socket().connect(("127.0.0.1", 1)),
            lambda: open({str(folder / "journal")!r}, "rb"),
            lambda: open({str(folder / "data" / "state" / "data.mdb")!r}, "rb"),
        ):
            try:
                attempt()
                reached += 1
            except OSError:
                pass
        return 1000 + reached""",
    )
    assert [each.now for each in recording.again(id, package).differences] == [1000]


def test_a_call_without_its_arguments_is_listed_and_not_replayed(recording: Recording) -> None:
    report = recording.again(recording.made("rates", "fix", lambda: recording.rates.fix.now("pound", 2.5)))
    assert report.verdict == "not replayable"
    assert "without its arguments" in report.reasons[0]


def test_a_call_that_was_not_recorded_is_not_found(recording: Recording) -> None:
    id = recording.made("till", "total", lambda: recording.till.total.now("i"))
    with pytest.raises(NotFound, match="atoll calls"):
        recording.again(id + "999")
