"""What `--at` shows of a node: before and after things happened in one boot, and of a boot that is over."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.attach import connect
from atoll.ipc.errors import NotAllowed
from atoll.ipc.system.records import KEYSPACE, EventRow, RefusalRow, Row, SessionRow, after, decode
from atoll.ipc.system.state import State, Write
from atoll.servers.shell import exits, when
from atoll.servers.shell.command import run

from .conftest import HOUSE, Shell, shell

IMAGE = HOUSE / "images" / "minimal.toml"
MORE = 2000
"""Nanoseconds after a revision: before the next one, and not lost where a float has seconds since the epoch."""


@contextmanager
def booted(me: Shell) -> Iterator[str]:
    me.said("boot", str(IMAGE), "--folder", "node", "--detach")
    try:
        yield str(me.folder / "node")
    finally:
        me.said("shutdown")


class Command:
    """The command, in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._node = str(folder / "node")
        self._capsys = capsys

    def __call__(self, *words: str) -> Any:
        assert run([*words, "--node", self._node, "--json"]) == exits.OK
        return json.loads(self._capsys.readouterr().out)


def until(kernel: State, table: type[Row], done: Callable[[list[Any]], bool]) -> None:
    """Wait for rows of the kernel's that are written some time after what they tell of."""

    def rows() -> list[Any]:
        items = kernel.range.now(table.key_of(), after(table.key_of())).items
        return [decode(table, item.value or b"") for item in items]

    head = kernel.head.now()
    if not done(rows()):
        next(change for change in kernel.watch.now(head) if done(rows()))


def be_refused(rows: State, kernel: State, so_often: int) -> None:
    """A commit without the right to write is refused for that time; that is a row then."""
    with pytest.raises(NotAllowed):
        rows.commit.now([Write(b"k", b"v")])
    until(kernel, RefusalRow, lambda found: any(row.count == so_often for row in found))


def began(rows: list[SessionRow]) -> set[int]:
    return {each.id for row in rows for each in row.began}


class Moment:
    """What the commands say of the node, and the moment at which they do. They have a session each, which are none of it."""

    def __init__(self, ask: Command, node: Attached, kernel: State, event: str) -> None:
        """`event`: the kind of what happened last."""
        self._holder = f"@{node.welcome.attachment}"
        self._caps = self._held(ask("caps"))
        self._refused = ask("refused")
        self._storage = self._of_storage(ask("ps"))
        self._protection = ask("protection", "show", "storage")
        self._image = ask("image", "show")
        sessions = {row["number"] for row in self._caps if not row["lasting"]}
        assert len(sessions) > 1
        until(kernel, SessionRow, lambda rows: began(rows) >= sessions)
        until(kernel, EventRow, lambda rows: any(row.kind == event for row in rows))
        last = max(kernel.range.now(b"").items, key=lambda item: item.revision)
        self.revision = last.revision
        self.time = (last.time + MORE) / 1e9
        self.counts = [row["count"] for row in self._refused]
        self.state = self._storage["state"]

    def _held(self, caps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in caps if row["lasting"] or row["holder"] == self._holder]

    def _of_storage(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        (row,) = (row for row in rows if row["server"] == "storage")
        return {name: row[name] for name in ("state", "pid", "level", "version", "started", "reason")}

    def is_shown(self, ask: Command, at: str) -> None:
        assert self._held(ask("caps", "--at", at)) == self._caps
        assert ask("refused", "--at", at) == self._refused
        assert self._of_storage(ask("ps", "--at", at)) == self._storage
        past = ask("protection", "show", "storage", "--at", at)
        assert (past["level"], past["wanted"]) == (self._protection["level"], self._protection["wanted"])
        in_force = [each["name"] for each in self._protection["mechanisms"] if each["in_force"]]
        assert past["mechanisms"] == in_force
        assert ask("image", "show", "--at", at) == self._image


def ten_minutes_after(seconds: float) -> SimpleNamespace:
    """The clock of whoever asks then."""
    return SimpleNamespace(time=lambda: seconds + 600)


def test_moments_of_this_boot_and_of_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with shell() as me:
        ask = Command(me.folder, capsys)
        with booted(me) as folder:
            with connect(folder) as node:
                kernel = node.keyspace(KEYSPACE, ["read", "history"])
                rows = node.keyspace("references", ["read"])
                be_refused(rows, kernel, 1)
                node.kernel.freeze.now("storage", "to see it stand")
                first = Moment(ask, node, kernel, "freeze")
                be_refused(rows, kernel, 2)
                node.kernel.thaw.now("storage")
                second = Moment(ask, node, kernel, "thaw")
            assert (first.counts, first.state) == ([1], "frozen")
            assert (second.counts, second.state) == ([2], "serving")
            for moment in (first, second):
                moment.is_shown(ask, str(moment.revision))
        with booted(me):
            assert ask("refused") == []
            for moment in (first, second):
                moment.is_shown(ask, str(moment.revision))
                with monkeypatch.context() as later:
                    later.setattr(when, "time", ten_minutes_after(moment.time))
                    moment.is_shown(ask, "10m ago")
