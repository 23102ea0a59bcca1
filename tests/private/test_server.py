"""The server of keys by itself: what a start makes up for, and what its policy lets through."""

import shutil
from pathlib import Path
from typing import cast

import pytest
import trio
from msgspec.structs import replace

from atoll.ipc import testing
from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.inprocess import InProcess
from atoll.ipc.keyspace import Row, settled
from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.proxy import transport_of
from atoll.ipc.system.keys import Keys, KeysLocked, NotReleased, PurgesSpent, tag_of
from atoll.ipc.system.measurement import Measurement
from atoll.servers.keys.attestation import Attestation, Policy
from atoll.servers.keys.holders import Holder, Holders
from atoll.servers.keys.keyring import GENERATIONS, Keyring, _fresh
from atoll.servers.keys.root import FileRoot
from atoll.servers.keys.server import PurgeRow, RingRow, Server, Settings
from atoll.servers.keys.tree import Tree

BADGE = 7
WHO = Measurement(
    server="diary", version="3f2a77", level="sandbox", wanted="sandbox", mechanisms=["landlock"], image="9c"
)


async def rows(server: Server) -> list[Row[RingRow | PurgeRow]]:
    return [row async for row in server.rows.range()]


def folders(tmp_path: Path) -> dict[str, object]:
    found = {"keyring": tmp_path / "keyring", "root": tmp_path / "root"}
    for folder in found.values():
        folder.mkdir(exist_ok=True)
    return dict(found)


def test_a_start_writes_the_rows_of_purges_that_have_none(tmp_path: Path) -> None:
    """As if it had been killed between the keyring and the row."""
    given = folders(tmp_path)
    ring = Keyring(tmp_path / "keyring", FileRoot(tmp_path / "root"))
    ring.open(None, 1)
    ring.know(BADGE)
    (made,) = ring.purge([(BADGE, b"a" * 16)], 5)
    with testing.running(Server, needs=given) as running:
        server = running.server
        assert isinstance(server, Server)
        found = [row.value for row in running._host.wait_for(rows, server)]
    assert found == [
        PurgeRow(number=2, keyspace=BADGE, tag=b"a" * 16, time=5, mark=ring.mark(made)),
        RingRow(id=ring.contents.id),
    ]


def wrote_and_purged(given: dict[str, object], *subjects: bytes) -> None:
    """Purges by a person in a keyspace that was opened once."""
    ring = Keyring(Path(str(given["keyring"])), FileRoot(Path(str(given["root"]))))
    ring.open(None, 1)
    ring.know(BADGE)
    for subject in subjects:
        ring.purge([(BADGE, subject)], 5)


def test_a_keyring_from_before_a_purge_is_purged_again(tmp_path: Path) -> None:
    """Someone has put back a copy: the store knows better."""
    given, store = folders(tmp_path), MemoryStore()
    keyspace = store.keyspace(RingRow | PurgeRow, "keys")
    wrote_and_purged(given, b"a" * 16)
    old = tmp_path / "old"
    for name in ("keyring", "root"):
        shutil.copytree(tmp_path / name, old / name)
    wrote_and_purged(given, b"b" * 16, b"c" * 16)
    with testing.running(Server, needs=given | {"rows": keyspace}):
        pass  # it writes the rows of all three
    for name in ("keyring", "root"):
        shutil.rmtree(tmp_path / name)
        shutil.copytree(old / name, tmp_path / name)
    with testing.running(Server, needs=given | {"rows": keyspace}) as running:
        assert running.client(Keys).keyring.now().purges == 3
        server = running.server
        assert isinstance(server, Server)
        again = server._ring
        assert [again.key(BADGE, bytes(1) + each * 16) for each in (b"a", b"b", b"c")] == [b""] * 3
        assert again.key(BADGE, bytes(1) + b"d" * 16)
        assert [made.number for made in again.contents.purges] == [2, 3, 4] and again.contents.number == 4
        assert len(running._host.wait_for(rows, server)) == 4, "one row a purge, and the ring's"
    ring = Keyring(tmp_path / "keyring", FileRoot(tmp_path / "root"))
    ring.open(None, 1)
    assert ring.key(BADGE, bytes(1) + b"b" * 16) == b"", "the file itself was pruned"


def test_rows_of_purges_that_the_ring_never_made_purge_nobody(tmp_path: Path) -> None:
    """Whoever can write the store must not be able to destroy keys."""
    given, store = folders(tmp_path), MemoryStore()
    keyspace = store.keyspace(RingRow | PurgeRow, "keys")
    with testing.running(Server, needs=given | {"rows": keyspace}) as running:
        server = running.server
        assert isinstance(server, Server)
        forged = PurgeRow(number=9, keyspace=BADGE, tag=b"a" * 16, time=5, mark=bytes(16))
        running._host.wait_for(put, server, forged)
    with testing.running(Server, needs=given | {"rows": keyspace}) as running:
        server = running.server
        assert isinstance(server, Server)
        assert server._ring.key(BADGE, bytes(1) + b"a" * 16)
        assert server._ring.contents.number == 9, "its row is not written over"


async def put(server: Server, row: PurgeRow) -> None:
    await settled(server.rows.put(f"purge/{row.number:016x}/{row.keyspace:016x}", row))


def test_a_server_makes_so_many_purges_and_a_person_goes_on(tmp_path: Path) -> None:
    given = folders(tmp_path)
    wrote_and_purged(given)
    with testing.running(Server, config=Settings(purges_by_servers=2), needs=given) as running:
        person, server = running.client(Keys), running.client(Keys, badge=BADGE)
        assert [server.purge.now(who).repeated for who in ("ann", "bob", "ann")] == [False, False, True]
        size = person.keyring.now().size
        with pytest.raises(PurgesSpent, match="have made the 2 purges that they may"):
            server.purge.now("cay")
        assert person.keyring.now().size == size
        assert not person.purge.now("cay").repeated and server.purge.now("cay").repeated


def test_a_keyring_that_cannot_be_opened_is_said_to_each(tmp_path: Path) -> None:
    given = folders(tmp_path)
    (tmp_path / "keyring" / "keyring").write_bytes(b"something else")
    with testing.running(Server, needs=given) as running:
        keys = running.client(Keys)
        assert "no keyring of this version" in keys.keyring.now().locked
        with pytest.raises(KeysLocked, match="no keyring of this version"):
            keys.purge.now("ann")


def test_purges_that_name_nothing(tmp_path: Path) -> None:
    with testing.running(Server, needs=folders(tmp_path)) as running:
        keys = running.client(Keys)
        assert keys.purge.now("ann").keyspaces == 0
        with pytest.raises(NotFound, match="no private keyspace that was ever opened 'diary'"):
            keys.purge.now("ann", "diary")
        with pytest.raises(BadRequest, match="1 to 400 bytes"):
            keys.purge.now("")
        with pytest.raises(BadRequest, match="none: the root key is in a file"):
            keys.rotate.now("a word")
        with pytest.raises(BadRequest, match="given from outside, got one of kind file"):
            keys.unlock.now("a word")


@pytest.mark.parametrize(
    ("policy", "departs"),
    [
        (Policy(), ""),
        (Policy(servers=["diary"], versions=["3f"], mechanisms=["landlock"]), ""),
        (Policy(servers=["feedback"]), "the policy wants one of feedback, and it is diary"),
        (Policy(versions=["77", "78"]), "the policy wants version 77 or 78, and it is version 3f2a77"),
        (Policy(mechanisms=["landlock", "own-uid"]), "own-uid in force, and it is without own-uid"),
    ],
)
def test_a_policy(policy: Policy, departs: str) -> None:
    held(policy, WHO, departs)


def test_a_policy_of_what_a_person_changed() -> None:
    weaker, loaded = replace(WHO, level="process"), replace(WHO, image="")
    held(Policy(), weaker, "the policy wants level 'sandbox', and it is level 'process'")
    held(Policy(), loaded, "the policy wants a server of the image, and it is one that was loaded by hand")
    held(Policy(weakened=True), weaker, "")
    held(Policy(loaded=True), loaded, "")


def held(policy: Policy, who: Measurement, departs: str) -> None:
    if departs:
        with pytest.raises(NotReleased, match=departs):
            policy.hold(who)
    else:
        policy.hold(who)


def test_an_open_keyring_takes_no_other_passphrase_for_its_own(tmp_path: Path) -> None:
    """Whoever keeps only the secret that was taken would give up the one that opens it."""
    with testing.running(Server, config=Settings(root="passphrase"), needs=folders(tmp_path)) as running:
        keys = running.client(Keys)
        assert not keys.unlock.now("open sesame").locked
        with pytest.raises(BadRequest, match="the one that the keyring was made with, got another"):
            keys.unlock.now("close sesame")
        assert not keys.unlock.now("open sesame").locked


def test_a_damaged_root_key_is_said_and_ends_nobody(tmp_path: Path) -> None:
    given = folders(tmp_path)
    (tmp_path / "root" / "root.key").write_bytes(b"")
    with testing.running(Server, needs=given) as running:
        assert running.client(Keys).keyring.now().locked


def test_holders_are_told_apart_by_keyspace() -> None:
    """Two private keyspaces of one server come by one channel."""
    holders = Holders()
    one, other = Holder(1, "diary", 1), Holder(2, "diary", 1)
    holders.add(9, one)
    holders.add(9, other)
    assert holders.of(9, 1) is one and holders.of(9, 2) is other
    one.told = other.told = 5
    holders.answered(9, 2, 5)
    assert holders.behind({1: 5, 2: 5}) == ["diary"]
    holders.answered(9, 1, 5)
    assert holders.behind({1: 5, 2: 5}) == []
    assert holders.behind({1: 5, 2: 3}) == []
    holders.remove(9, one)
    assert holders.of(9, 2) is other


class Trusting(Server):
    """Takes whoever asks for what the image wants."""

    def attestation(self) -> Attestation:
        return cast(Attestation, self)

    name = "its own word"

    async def measured(self, channel: int) -> Measurement:
        return WHO


def test_who_knows_of_purges_that_the_keyring_does_not_hears_of_those_to_come(tmp_path: Path) -> None:
    """An older copy was put back, and the store has no rows of what came since: purges are numbered as these were. Whoever
    held keys meanwhile was told of none of them, and counted as having let go."""
    with testing.running(Trusting, needs=folders(tmp_path)) as running:
        server = running.client(Keys, badge=BADGE)
        with server.hold.now(9) as told:
            first = next(told)
            assert (first.position, first.purged) == (1, b"")
            done = server.purge.start("ann")
            assert next(told).purged == tag_of(first.index, "ann")
            server.let_go.now(2)
            assert done.result().holding == []


class Halting(Trusting):
    """Has not heard yet what the first one is that asks for keys."""

    async def start(self) -> None:
        await super().start()
        self.asked, self.go_on = trio.Event(), trio.Event()

    async def measured(self, channel: int) -> Measurement:
        if not self.asked.is_set():
            self.asked.set()
            await self.go_on.wait()
        return WHO


def test_a_server_of_two_private_keyspaces_is_waited_for_until_it_has_come_with_both(tmp_path: Path) -> None:
    """As after a crash. It had come with one of them, and counted as having let go of what it held of the other."""
    with testing.running(Halting, needs=folders(tmp_path)) as running:
        server, host = running.server, running._host
        assert isinstance(server, Halting)
        one, other = running.client(Keys, badge=BADGE), running.client(Keys, badge=BADGE + 1)
        channel = cast(InProcess, transport_of(one)).number
        cast(InProcess, transport_of(other)).number = channel
        host.wait_for(present, server, channel)
        with one.hold.now():
            host.wait_for(server.asked.wait)
            with other.hold.now() as told:
                assert next(told).badge == BADGE + 1
                done = running.client(Keys, badge=BADGE).purge.start("ann")
                for _ in range(100):  # as far as it gets
                    one.keyring.now()
                waits = not done.done()
                host.wait_for(go_on, server)
                assert done.result().holding == []
    assert waits


async def go_on(server: Halting) -> None:
    server.go_on.set()


async def present(server: Server, channel: int) -> None:
    server.clients_present(frozenset({channel}))


def test_new_seeds_that_are_asked_for_twice_at_once_are_no_more_than_there_may_be(tmp_path: Path) -> None:
    """A value says its generation in one byte: servers that were told of one more ended over it, for good."""
    given = folders(tmp_path)
    ring = Keyring(tmp_path / "keyring", FileRoot(tmp_path / "root"))
    ring.open(None, 1)
    for _ in range(GENERATIONS - 2):
        ring._trees.append(Tree(_fresh()))
    ring.know(BADGE)
    with testing.running(Server, needs=given) as running:
        server = running.server
        assert isinstance(server, Server)
        with pytest.raises(ExceptionGroup) as refused:
            running._host.wait_for(twice, server)
        assert refused.group_contains(BadRequest, match="256 generations at most")
        assert running.client(Keys).keyring.now().generations == GENERATIONS


async def twice(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(server.rotate, "", True)
