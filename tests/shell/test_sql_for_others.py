"""What a program sees of the rows that is no operator: the keyspaces that the image gives it, and no others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from atoll.ipc.attach import connect
from atoll.ipc.system.state import Write

from .conftest import HOUSE, Shell, shell
from .test_sql import SIREN, a_package

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

GUEST, AUDITOR, CALLER = 4242, 4243, 4244
IMAGE = f"""
[image]
name = "guests"
[node]
level = "process"
[keyspace.rung]
[keyspace.secret]
[server.state]
level = "seccomp"
readers = {{ most = 1, above = 1 }}
needs = {{}}
[server.siren]
package = "./siren"
needs = {{ rows = {{ keyspace = "rung", rights = ["read", "write"] }} }}
[[attach]]
uid = {GUEST}
may = [{{ keyspace = "rung", rights = ["read", "history"] }}]
[[attach]]
uid = {AUDITOR}
may = [
    {{ keyspace = "kernel", rights = ["read", "history"] }},
    {{ keyspace = "kernel/log", rights = ["read", "history"] }},
    {{ keyspace = "rung", rights = ["read"] }},
]
[[attach]]
uid = {CALLER}
may = [{{ server = "siren", rights = ["ring"] }}]
"""
SPOKEN = "the siren is up"
SPEAKING = (
    SIREN["server.py"]
    + f"""
    async def start(self) -> None:
        import logging
        logging.getLogger("siren").warning("{SPOKEN}")
"""
)
SCRIPT = """
import contextlib, io, os
from atoll.servers.shell.command import main, run
with contextlib.redirect_stdout(io.StringIO()):  # what it imports, it imports while the way to it is open
    run(["sql", "select * from rung"])
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
main()
"""


class Guest:
    """Who runs the command as another user."""

    def __init__(self, house: Shell, uid: int) -> None:
        self._house = house
        self._uid = uid

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT.format(uid=self._uid), *words]
        return subprocess.run(
            command, cwd=HOUSE, env=self._house.environment, capture_output=True, text=True, check=False
        )

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def refused(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode != 0 and not done.stdout, done.stdout
        return done.stderr


@pytest.fixture(scope="module")
def house() -> Iterator[Shell]:
    with shell() as running:
        os.chmod(running.folder, 0o755)
        a_package(running.folder / "siren", SIREN | {"server.py": SPEAKING})
        (running.folder / "guests.toml").write_text(IMAGE)
        running.said("boot", "guests.toml", "--folder", "node", "--detach")
        try:
            with connect(str(running.folder / "node")) as attached:
                attached.keyspace("secret").commit.now([Write(b"word", b"hush")])
                siren = attached.open_untyped("siren")
                siren.now("ring", ["fire", 3])
                siren.now("ring", ["water", 1])
            yield running
        finally:
            running.said("shutdown")


def test_a_guest_sees_the_keyspace_that_it_may_read_and_what_is_published_of_it(house: Shell) -> None:
    guest = Guest(house, GUEST)
    assert guest.json("sql", "select key from rung order by key") == [
        {"key": "fire"}, {"key": "test/1"}, {"key": "water"},
    ]  # fmt: skip
    alarms = guest.json("sql", "select text, grade_number from siren.alarm order by rang")
    assert alarms == [{"text": "fire!", "grade_number": 3}, {"text": "water!", "grade_number": 1}]
    assert guest.json("sql", "select distinct keyspace from store.change") == [{"keyspace": "rung"}]
    before = guest.json("sql", "select min(revision) as first from store.change")[0]["first"]
    assert guest.json("sql", "select count(*) as rows from rung", "--at", str(before)) == [{"rows": 2}]


def test_of_others_a_guest_does_not_learn_the_names(house: Shell) -> None:
    guest = Guest(house, GUEST)
    for table in ("secret", "kernel.call"):
        told = guest.refused("sql", f"select * from {table}")
        assert "does not exist" in told
    assert "operate" in guest.refused("get", "secret", "word")


def test_an_auditor_sees_the_kernels_tables(house: Shell) -> None:
    auditor = Guest(house, AUDITOR)
    rows = auditor.json("sql", "select server from kernel.server order by server")
    assert rows == [{"server": "siren"}, {"server": "state"}]
    found: list[dict[str, Any]] = []
    while not found:  # lines are written down in batches
        found = auditor.json("sql", f"select server, level, text from kernel.log where text like '{SPOKEN}%'")
    assert found == [{"server": "siren", "level": "warning", "text": SPOKEN}]
    assert auditor.json("get", "rung", "fire")["value"]["text"] == "fire!"
    assert "history" in auditor.refused("sql", "select * from rung"), "what was is not for this one"


def test_who_holds_no_keyspace_asks_nothing(house: Shell) -> None:
    assert "keyspace" in Guest(house, CALLER).refused("sql", "select 1 from kernel.process")


def test_a_guest_writes_nothing(house: Shell) -> None:
    assert "write" in Guest(house, GUEST).refused("rollback", "rung", "--to", "1")
    with connect(str(house.folder / "node")) as attached:
        assert not [
            row for row in attached.kernel.caps.now() if row.server == "state" and row.holder[0] == "@"
        ]


def test_it_is_seen_in_the_graph(house: Shell) -> None:
    told = house.said("image", "check", "guests.toml", "--graph")
    assert "uid 4242" in told and "keyspace rung" in told
