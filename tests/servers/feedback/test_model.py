"""The server against a model of a few lines: whatever is done, every past moment reads as it was."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.servers.feedback.interface import Batch, BatchExists, Feedback, Invalid, Rater, Selection
from atoll.servers.feedback.records import Correction, Preference, Record, is_purged, kind_of, words_of
from atoll.servers.feedback.rows import Row
from atoll.servers.feedback.server import Server
from atoll.servers.feedback.words import Words
from atoll.servers.storage.interface import BlobRef, Storage
from atoll.servers.storage.server import Server as StorageServer
from atoll.servers.storage.server import Settings as StorageSettings

from ..conftest import Servers
from .said import rating

RATERS = ["ann", "bob"]
TASKS = ["film", "film.x"]
TEXTS = [b"a text in storage", b"another one"]
names = st.sampled_from(["b1", "b2", "b3"])
trusts = st.sampled_from([0.0, 0.05, 0.3, 0.35, 0.5, 1.0])


@st.composite
def records(draw: st.DrawFn) -> Record:
    rater, task, trust = draw(st.sampled_from(RATERS)), draw(st.sampled_from(TASKS)), draw(trusts)
    text = draw(st.one_of(st.sampled_from("xyz"), st.sampled_from([BlobRef.of(each) for each in TEXTS])))
    match draw(st.sampled_from("prc")):
        case "p":
            return Preference(rater, "expert", trust, task, chosen=text, rejected="w")
        case "c":
            return Correction(rater, "expert", trust, task, text=text, corrected="w")
    return rating(text, draw(st.sampled_from([0.0, 0.5, 1.0])), trust, task, rater)


class Moment(NamedTuple):
    """All that is known at a revision."""

    stored: dict[str, list[Record]]
    trust: dict[str, float]

    def select(self, task: str, kind: str, min_trust: float, batch: str = "") -> list[tuple[str, int, float]]:
        found = [
            (name, index, min(record.trust, self.trust.get(record.rater, 1.0)))
            for name, held in self.stored.items()
            for index, record in enumerate(held)
            if task in ("", record.task) and kind in ("", kind_of(record)) and batch in ("", name)
        ]
        return sorted(each for each in found if each[2] >= min_trust)


class Model(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.servers = Servers(lambda: Path(self.folder.name))
        config = StorageSettings(collect_every=0.0)
        served = self.servers(StorageServer, folder=Path(self.folder.name), config=config)
        self.storage: Storage = served.client()
        self.storage.put_many.now(TEXTS)
        self.moments: dict[int, Moment] = {}
        self.stored: dict[str, list[Record]] = {}
        self.gone: set[str] = set()
        self.trust: dict[str, float] = {}
        self.badges: dict[str, int] = {}
        self.tasks: set[str] = set()
        self.purged: set[str] = set()
        self.start()

    def start(self) -> None:
        rows = self.servers.keyspace("feedback", Row)
        words = self.servers.private("words", Words)
        self.served: Any = self.servers(Server, storage=self.storage, rows=rows, words=words)
        self.clients: dict[int, Feedback] = {badge: self.served.client(badge=badge) for badge in (1, 2)}

    def teardown(self) -> None:
        self.servers.close()
        self.folder.cleanup()

    def remember(self, revision: int) -> None:
        assert revision > max(self.moments, default=0), "a new transaction is a new revision"
        self.moments[revision] = Moment(dict(self.stored), dict(self.trust))

    @rule(name=names, held=st.lists(records(), min_size=1, max_size=5), badge=st.sampled_from([1, 2]))
    def submit(self, name: str, held: list[Record], badge: int) -> None:
        mine = {rater for rater, owner in self.badges.items() if owner == badge}
        others = set(self.badges) - mine
        client, batch = self.clients[badge], Batch(name, held)
        if any(each.rater in others or (mine and each.rater not in mine) for each in held):
            with pytest.raises(Invalid, match=r"\.rater`"):
                client.submit.now(batch)
            return
        if name in self.gone or self.stored.get(name, held) != held:
            with pytest.raises(BatchExists):
                client.submit.now(batch)
            return
        if name not in self.stored and any(each.rater in self.purged and words_of(each) for each in held):
            with pytest.raises(Invalid, match="who was not purged"):
                client.submit.now(batch)
            return
        receipt = client.submit.now(batch)
        assert receipt.repeated == (name in self.stored)
        if not receipt.repeated:
            self.stored[name] = held
            self.tasks |= {each.task for each in held}
            self.remember(receipt.revision)

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        self.submit(
            *data.draw(st.sampled_from(sorted(self.stored.items()))), data.draw(st.sampled_from([1, 2]))
        )

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.stored)))
        done = self.clients[1].rollback.now(name, "model")
        assert (done.repeated, done.records) == (False, len(self.stored.pop(name)))
        self.gone.add(name)
        self.remember(done.revision)

    @rule(rater=st.sampled_from(RATERS), trust=trusts, badge=st.sampled_from([0, 0, 1, 2]))
    def appoint(self, rater: str, trust: float, badge: int) -> None:
        revision = self.clients[2].appoint.now(Rater(rater, trust, badge))
        self.trust[rater] = trust
        self.badges.pop(rater, None)
        if badge:
            self.badges[rater] = badge
        self.remember(revision)

    @rule(rater=st.sampled_from([*RATERS, "nobody"]))
    def purge(self, rater: str) -> None:
        self.servers.keys().purge.now(rater)
        self.purged.add(rater)

    @rule()
    def restart(self) -> None:
        self.served.kill()
        self.start()

    @precondition(lambda self: self.moments)
    @rule(data=st.data(), trust=trusts)
    def look_back(self, data: st.DataObject, trust: float) -> None:
        revision = data.draw(st.sampled_from(sorted(self.moments)))
        for task in sorted(self.tasks):
            stored = self.clients[1].training_set.now(task, revision, trust)
            found = sorted((each.batch, each.index, each.trust) for each in stored)
            assert found == self.moments[revision].select(task, "", trust)

    @rule(
        task=st.sampled_from(["", *TASKS]), kind=st.sampled_from(["", "rating", "correction"]), trust=trusts
    )
    def look(self, task: str, kind: Any, trust: float) -> None:
        now = Moment(self.stored, self.trust)
        stored = list(self.clients[2].records.now(Selection("", task, kind, trust)))
        assert sorted((each.batch, each.index, each.trust) for each in stored) == now.select(
            task, kind, trust
        )
        for name in self.stored:
            of_batch = list(self.clients[2].records.now(Selection(name, task, kind, trust)))
            for each in of_batch:
                said = self.stored[name][each.index]
                gone = each.record.rater in self.purged and bool(words_of(said))
                assert is_purged(each.record) == gone and (gone or each.record == said)
            assert [(each.batch, each.index, each.trust) for each in of_batch] == now.select(
                task, kind, trust, name
            )
        listed = {
            info.id
            for info in self.clients[2].batches.now(Selection("", task, kind, 0.0))
            if info.status == "stored"
        }
        assert listed & set(self.stored) == {
            name for name in self.stored if now.select(task, kind, 0.0, name)
        }

    @invariant()
    def all_is_consistent(self) -> None:
        if hasattr(self, "clients"):
            told = self.clients[1].check.now()
            assert told.problems == told.stray == []
            held = [record for batch in self.stored.values() for record in batch]
            assert told.records == len(held)
            assert told.purged == sum(each.rater in self.purged and bool(words_of(each)) for each in held)
            assert told.batches == len(self.stored) + len(self.gone)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
