"""A keyring that is opened by a passphrase while its server runs: it is open once it has caught up, or it is not."""

import shutil
import threading
from pathlib import Path

import pytest
import trio

from atoll.ipc import testing
from atoll.ipc.errors import Overloaded
from atoll.ipc.future import Payload
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.system.keys import Keys, KeysLocked
from atoll.ipc.system.state import State
from atoll.ipc.transport import Layer, Options
from atoll.servers.keys.server import PurgeRow, RingRow, Server, Settings

from .test_server import BADGE, folders

WORD = "open sesame"
BY_WORD = Settings(root="passphrase")


class Busy(Layer):
    """A capability on the store, which has too much in hand for its next range."""

    def __init__(self, state: State) -> None:
        super().__init__(transport_of(state))
        self.left = 1

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        if method is State.range.spec and self.left:
            self.left -= 1
            raise Overloaded("the store")
        return await self.inner.call(method, payload, options)


class Slow(Layer):
    """A capability on the store, which has its next range in hand until it may go on."""

    def __init__(self, state: State) -> None:
        super().__init__(transport_of(state))
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        if method is State.range.spec:
            self.reached.set()
            await trio.to_thread.run_sync(self.go_on.wait)
        return await self.inner.call(method, payload, options)


def test_a_purge_while_a_copy_catches_up_is_of_all_keyspaces(tmp_path: Path) -> None:
    """It was of those that the copy knew."""
    given, store = folders(tmp_path), MemoryStore()
    rows = store.keyspace(RingRow | PurgeRow, "keys")
    with testing.running(Server, config=BY_WORD, needs=given | {"rows": rows}) as running:
        running.client(Keys).unlock.now(WORD)
        for name in ("keyring", "root"):
            shutil.copytree(tmp_path / name, tmp_path / "old" / name)
        assert running.client(Keys, badge=BADGE).purge.now("ann").number
    for name in ("keyring", "root"):
        shutil.rmtree(tmp_path / name)
        shutil.copytree(tmp_path / "old" / name, tmp_path / name)
    slow = Slow(rows.state)
    needs = given | {"rows": Keyspace[RingRow | PurgeRow](bind(State, slow), RingRow | PurgeRow)}
    with testing.running(Server, config=BY_WORD, needs=needs) as running:
        person = running.client(Keys)
        unlocked = person.unlock.start(WORD)
        slow.reached.wait()
        done = person.purge.start("bob")
        for _ in range(100):  # as far as it gets: to its keyspaces, or to where it waits
            person.keyring.now()
        slow.go_on.set()
        assert not unlocked.result().locked
        assert done.result().keyspaces == 1


def test_a_keyring_that_has_not_caught_up_is_not_open(tmp_path: Path) -> None:
    """The next one who unlocked it was told that it was open, and whoever was purged since that copy was not."""
    given, store = folders(tmp_path), MemoryStore()
    rows = store.keyspace(RingRow | PurgeRow, "keys")
    with testing.running(Server, config=BY_WORD, needs=given | {"rows": rows}) as running:
        person = running.client(Keys)
        person.unlock.now(WORD)
        for name in ("keyring", "root"):
            shutil.copytree(tmp_path / name, tmp_path / "old" / name)
        assert running.client(Keys, badge=BADGE).purge.now("ann").number
    for name in ("keyring", "root"):
        shutil.rmtree(tmp_path / name)
        shutil.copytree(tmp_path / "old" / name, tmp_path / name)
    busy = Keyspace[RingRow | PurgeRow](bind(State, Busy(rows.state)), RingRow | PurgeRow)
    with testing.running(Server, config=BY_WORD, needs=given | {"rows": busy}) as running:
        person, server = running.client(Keys), running.client(Keys, badge=BADGE)
        with pytest.raises(Overloaded):
            person.unlock.now(WORD)
        assert person.keyring.now().locked
        with pytest.raises(KeysLocked):
            server.purge.now("bob")
        row = person.unlock.now(WORD)
        assert not row.locked and row.purges == 1
        assert server.purge.now("ann").repeated


def test_a_keyring_that_was_put_back_is_said_to_be_open(tmp_path: Path) -> None:
    with testing.running(Server, config=BY_WORD, needs=folders(tmp_path)) as running:
        person = running.client(Keys)
        person.unlock.now(WORD)
        running.kill()
    kept = tmp_path / "keyring" / "keyring"
    kept.rename(tmp_path / "away")
    with testing.running(Server, config=BY_WORD, needs=folders(tmp_path)) as running:
        person = running.client(Keys)
        assert "there is none, and there was one" in person.unlock.now(WORD).locked
        (tmp_path / "away").rename(kept)
        assert not person.unlock.now(WORD).locked
