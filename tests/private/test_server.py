"""The server of keys by itself: what a start makes up for, and what its policy lets through."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from atoll.ipc import testing
from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.keyspace import Row
from atoll.ipc.system.keys import Keys, KeysLocked, NotReleased
from atoll.ipc.system.measurement import Measurement
from atoll.servers.keys.attestation import Policy
from atoll.servers.keys.holders import Holder, Holders
from atoll.servers.keys.keyring import Keyring
from atoll.servers.keys.root import FileRoot
from atoll.servers.keys.server import PurgeRow, RingRow, Server, Settings

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
    ring.purge([(BADGE, b"a" * 16)], 5)
    with testing.running(Server, needs=given) as running:
        server = running.server
        assert isinstance(server, Server)
        found = [row.value for row in running._host.wait_for(rows, server)]
    assert found == [
        PurgeRow(number=2, keyspace=BADGE, tag=b"a" * 16, time=5),
        RingRow(id=ring.contents.id),
    ]


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
