"""A store that is not serialisable in one way is found out by its clients' history; and the one that there is, is not.

One thread, so that a seed gives the same history each time: a client's calls come between the others', and commits are held
back until several form a group.
"""

import random
from collections.abc import Callable

import pytest
import trio

from atoll.ipc.future import Future
from atoll.ipc.serve import bind
from atoll.ipc.system.state import Committed, Expect, Range, State
from atoll.servers.state import group, transactions
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server
from tests.servers.state.direct import Node

from .anomalies import History, Transaction
from .work import KEYSPACES, Client, Steps, everything

CLIENTS = 6
ALL = {"read", "write", "history", "admin"}
Plant = Callable[[pytest.MonkeyPatch], None]


class World:
    """A store in memory, and clients on it that are moved on by chance."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        endpoint = bind(Server, {"config": Settings(engine="memory")})
        trio.run(endpoint.server.start)
        self._node = Node(endpoint)
        kernel = self._node.proxy(State, 0, ALL)
        self._badges = {name: kernel.make_keyspace.now(name) for name in KEYSPACES}
        self.told: list[Transaction] = []

    def stores(self, client: int) -> dict[str, State]:
        return {
            name: self._node.proxy(State, badge, ALL, client=client) for name, badge in self._badges.items()
        }

    def run(self, count: int) -> History:
        """So many transactions and a few more, and what is there when none is left in hand."""
        clients = [Client(self.stores(number), number, self.told.append) for number in range(CLIENTS)]
        running: dict[Client, Steps] = {client: client.one() for client in clients}
        waiting: dict[Client, Future[Committed]] = {}
        self._node.held = True
        while running:
            ready = [client for client in running if client not in waiting or waiting[client].done()]
            if not ready or self._chance.random() < 0.1:
                self._node.held = False
                self._node.drained()
                self._node.held = True
                continue
            client = self._chance.choice(ready)
            waiting.pop(client, None)
            try:
                commit = next(running[client])
            except StopIteration:
                running[client] = client.one()
                if len(self.told) >= count:
                    del running[client]
            else:
                if commit is not None:
                    waiting[client] = commit
        return History(self.told, final=everything(self.stores(CLIENTS)))


def test_the_store_as_it_is() -> None:
    history = World(1).run(1500)
    assert history.anomalies() == []
    assert sum(each.outcome == "ok" for each in history.transactions) > 700
    assert len(history.graph) > 1000


def nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group.Group, "_check", lambda *_: None)


def no_range_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = group.Group._check

    def check(self: group.Group, snapshot: object, expect: Expect | Range) -> None:
        if isinstance(expect, Expect):
            real(self, snapshot, expect)  # type: ignore[arg-type]

    monkeypatch.setattr(group.Group, "_check", check)


def only_what_is_written_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshot isolation."""
    real = group.Group.admit

    def admit(self: group.Group, transaction: group.Transaction, done: object) -> None:
        written = {key for key, _ in transaction.writes}
        kept = [each for each in transaction.expects if isinstance(each, Expect) and each.key in written]
        real(self, transaction._replace(expects=list(kept)), done)  # type: ignore[arg-type]

    monkeypatch.setattr(group.Group, "admit", admit)


def a_group_is_blind_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the members of a group write is not seen by those that are admitted after them."""
    real = group.Group._write

    def write(self: group.Group, transaction: group.Transaction, done: object) -> None:
        real(self, transaction, done)  # type: ignore[arg-type]
        self._heads.clear()
        self._written = [(revision, []) for revision, _ in self._written]

    monkeypatch.setattr(group.Group, "_write", write)


def no_read_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transaction has read, key by key, is not asked for again."""
    monkeypatch.setattr(transactions.Transactions, "_note_read", lambda *_: None)


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (nothing_is_checked, {"incompatible order", "lost append", "G-single"}),
        (no_range_is_checked, {"G2", "G-single"}),
        (only_what_is_written_is_checked, {"G2", "G-single"}),
        (a_group_is_blind_to_itself, {"incompatible order", "lost append"}),
        (no_read_is_noted, {"incompatible order", "lost append"}),
    ],
)
def test_what_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch, plant: Plant, kinds: set[str]) -> None:
    plant(monkeypatch)
    found = {each.kind for each in World(1).run(1500).anomalies()}
    assert found & kinds, found
