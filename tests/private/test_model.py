"""Subjects who write, are purged and written over, roots that change, moments that are gone back to: against a dict."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from atoll.ipc import testing
from atoll.ipc.errors import Purged
from tests.private.packages.diary.interface import Diary, Entry, Told
from tests.private.packages.diary.server import Server

KEYS = st.sampled_from(["a", "b", "c", "d"])
SUBJECTS = st.sampled_from(["ann", "bob", "cay", "dan"])
TEXTS = st.text(max_size=20)


class Diaries(RuleBasedStateMachine):
    """`now` is what the diary is to say; `past` every version of each key, newest first."""

    @initialize()
    def begin(self) -> None:
        self.context = testing.running(Server)
        self.running = self.context.__enter__()
        self.diary = self.running.client(Diary)
        self.now: dict[str, Entry] = {}
        self.past: dict[str, list[Entry]] = {}
        self.purged: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)

    def wrote(self, key: str, entry: Entry) -> None:
        self.now[key] = entry
        self.past.setdefault(key, []).insert(0, entry)

    @rule(key=KEYS, subject=SUBJECTS, text=TEXTS)
    def write(self, key: str, subject: str, text: str) -> None:
        if subject in self.purged:
            with pytest.raises(Purged):
                self.diary.write.now(key, subject, text)
        else:
            self.diary.write.now(key, subject, text)
            self.wrote(key, Entry(subject, text))

    @rule(key=KEYS, text=TEXTS)
    def append(self, key: str, text: str) -> None:
        old = self.now.get(key)
        if old is None:
            return
        if old.subject in self.purged:
            with pytest.raises(Purged):
                self.diary.append.now(key, text)
        else:
            assert self.diary.append.now(key, text) == Entry(old.subject, old.text + text)
            self.wrote(key, Entry(old.subject, old.text + text))

    @rule(key=KEYS, back=st.integers(1, 3))
    def go_back(self, key: str, back: int) -> None:
        """As a roll-back does: the bytes that were there are put there again."""
        versions = self.past.get(key, [])
        if len(versions) > back:
            self.diary.put_back.now(key, back)
            self.wrote(key, versions[back])

    @rule(subject=SUBJECTS)
    def purge(self, subject: str) -> None:
        done = self.running.purge(subject)
        assert done.holding == []
        if done.keyspaces:
            assert done.repeated == (subject in self.purged)
            self.purged.add(subject)

    @rule(seeds=st.booleans())
    def rotate(self, seeds: bool) -> None:
        keys = self.running._keys
        assert keys is not None
        self.running._host.wait_for(keys.keys().rotate, "", seeds)

    @invariant()
    def reads_as_it_should(self) -> None:
        if not hasattr(self, "diary"):
            return
        told = {each.key: each for each in self.diary.all.now()}
        assert told == {key: self.told(key, entry) for key, entry in self.now.items()}
        for key, versions in self.past.items():
            assert self.diary.past.now(key) == [self.told(key, entry) for entry in versions]

    def told(self, key: str, entry: Entry) -> Told:
        gone = entry.subject in self.purged
        return Told(key, None if gone else entry.text, gone)


class TestDiaries(Diaries.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


@pytest.mark.soak
class TestManyDiaries(Diaries.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=1000, stateful_step_count=50, deadline=None)
