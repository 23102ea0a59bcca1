"""All that clients and a person do at a time, on keyspaces that give up their past: file, memory and descriptors do not
grow, in any process of the node."""

import random
import shutil
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import AtollError, Conflict
from atoll.ipc.system.kernel import Swap
from atoll.ipc.system.state import Compacted, State, Write
from atoll.servers.state.check import check_folder
from tests.private import nodes as private
from tests.private.packages.diary.interface import Entry
from tests.shell.conftest import PROGRAM

from .nodes import PACKAGES, RealNode, booted, interface
from .test_swaps_in_a_row import Used, helpers

IMAGE = f"""
[image]
name = "test"

[node]
level = "process"
account = "all"

[account.all]
channels = 256

[keyspace.rows]
retention = "1s"
[keyspace.counter]
versions = 2
[keyspace.chores]
retention = "1s"
[keyspace.diary]
private = true
retention = "5s"
[keyspace.keys]

[keep]
events = "1s"
swaps = "1s"
processes = "1s"
channels = "1s"
attachments = "1s"
sessions = "1s"
history = "5s"

[server.state]
readers = {{ most = 1, above = 20 }}
needs = {{ config = {{ config = {{ grace = 0.0, remember = 1.0, compact_every = 0.1, limit = 300_000_000 }} }} }}

[server.counter]
package = "{PACKAGES}/counter"
needs = {{ rows = {{ keyspace = "counter", rights = ["read", "write"] }} }}

[server.keys]
level = "sandbox"

[server.keys.needs]
keyring = {{ folder = "keyring" }}
root = {{ folder = "root" }}
rows = {{ keyspace = "keys", rights = ["read", "write"] }}

[server.diary]
package = "{private.PACKAGES}/diary"
level = "sandbox"
needs = {{ words = {{ keyspace = "diary", rights = ["read", "write", "history"] }} }}

[server.chores]
package = "{PACKAGES}/chores"
needs = {{ rows = {{ keyspace = "chores", rights = ["read", "write"] }} }}
"""
KEYS = 300
TURNS = 10
"""Until a person does the same thing again."""
READER = "state.reader"
"""By whichever number: the last one is looked at."""
Act = Callable[[random.Random], None]


class Load:
    """Threads that each do one thing again and again, by attachments of their own, until the block ends."""

    def __init__(self, node: RealNode) -> None:
        self._over = threading.Event()
        self._open = ExitStack()
        self.done: dict[str, int] = {}
        self.wrong: list[BaseException] = []
        acts = {
            "commits": commits,
            "transactions": transactions,
            "calls": calls,
            "reads": reads,
            "words": words,
        }
        attached = {name: self._open.enter_context(node.attach()) for name in (*acts, "watch")}
        self._watch = (
            attached["watch"].keyspace("rows").watch.now(attached["watch"].keyspace("rows").head.now())
        )
        self._threads = [
            threading.Thread(target=self._run, args=(name, act(attached[name]))) for name, act in acts.items()
        ]
        self._threads.append(threading.Thread(target=self._follow))

    def _run(self, name: str, act: Act) -> None:
        chance = random.Random(name)
        try:
            while not self._over.is_set():
                act(chance)
                self.done[name] = self.done.get(name, 0) + 1
        except BaseException as error:
            self.wrong.append(error)

    def _follow(self) -> None:
        seen = 0
        try:
            for change in self._watch:
                assert change.revision > seen
                seen = change.revision
                self.done["changes watched"] = self.done.get("changes watched", 0) + 1
                if self._over.is_set():
                    return
        except BaseException as error:
            self.wrong.append(error)

    def goes_on(self, until: float) -> None:
        """For a time, or until something is wrong."""
        while not self.wrong and time.monotonic() < until:
            self._over.wait(0.05)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads[:-1]:
            thread.join()
        self._watch.cancel()
        self._threads[-1].join()
        self._open.close()
        for error in self.wrong:
            if not isinstance(error, AtollError) or "cancelled" not in str(error):
                raise error


def key(chance: random.Random) -> bytes:
    return b"key %d" % chance.randrange(KEYS)


def commits(me: Attached) -> Act:
    rows = me.keyspace("rows")

    def act(chance: random.Random) -> None:
        names = {key(chance) for _ in range(chance.randrange(1, 6))}
        rows.commit.now(
            [
                Write(
                    name, chance.randbytes(chance.choice((20, 500, 5000))) if chance.random() < 0.9 else None
                )
                for name in names
            ],
            id=chance.randbytes(16),
        )

    return act


def transactions(me: Attached) -> Act:
    rows = me.keyspace("rows")

    def act(chance: random.Random) -> None:
        with suppress(Conflict):
            transaction = rows.begin.now(60.0)
            rows.scan.now(transaction, b"key 1", b"key 2", 10)
            rows.read.now(transaction, key(chance))
            rows.commit.now([Write(key(chance), chance.randbytes(200))], transaction=transaction)
            rows.finish.now(transaction)

    return act


def calls(me: Attached) -> Act:
    counter = me.open("counter", interface("counter", "Counter"))
    chores = me.open("chores", interface("chores", "Chores"))

    def act(chance: random.Random) -> None:
        name = f"counted {chance.randrange(20)}"
        counted = counter.add.now(name)
        assert counter.get.now(name) >= counted
        room = chance.randrange(20)
        tidied = chores.tidy.now(room)
        assert chores.tidied.now(room) >= tidied

    return act


def reads(me: Attached) -> Act:
    rows = me.keyspace("rows")

    def act(chance: random.Random) -> None:
        rows.get.now(key(chance))
        page = rows.range.now(b"", limit=20)
        with suppress(Compacted):
            rows.range.now(b"key 2", limit=20, as_of=max(0, page.revision - 20))
        rows.history.now(key(chance), 5)

    return act


def words(me: Attached) -> Act:
    """Sealed by whoever owns them."""
    diary = private.diary(me)

    def act(chance: random.Random) -> None:
        name = f"words {chance.randrange(50)}"
        entry = Entry(f"subject {chance.randrange(20)}", "said " * chance.randrange(100))
        diary.write.now(name, entry.subject, entry.text)
        assert diary.read.now(name) == entry

    return act


class Person:
    """Who runs the node: one thing after the other, so that in between there is nothing of it in hand."""

    def __init__(self, node: RealNode, me: Attached) -> None:
        self._node = node
        self._kernel = me.kernel
        self._backup = node.folder.with_name("backup")

    def act(self, turn: int) -> None:
        match turn % TURNS:
            case 2:
                self._said("sql", "select (select count(*) from kernel.swap), (select count(*) from diary)")
            case 7:
                self._said("backup", str(self._backup))
                shutil.rmtree(self._backup)
            case _:
                self._kernel.swap.now(Swap(server=("counter", "diary")[turn % 2]))

    def _said(self, *command: str) -> None:
        line = [str(PROGRAM), *command, "--node", str(self._node.folder)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class Growth:
    """What the store takes, and what processes use, look after look."""

    def __init__(self, node: RealNode, me: Attached) -> None:
        assert node.kernel is not None
        self._state: Any = me.open("state", State)
        self._kernel = me.kernel
        self._others = helpers(node) | {"kernel": node.kernel.pid}
        self.used = defaultdict[str, Used](Used)
        self.pages: list[int] = []
        self.file: list[int] = []

    def processes(self) -> dict[str, int]:
        rows = self._kernel.ps.now()
        return self._others | {
            READER if row.server.startswith(READER) else row.server: row.pid for row in rows
        }

    def look(self) -> None:
        for name, pid in self.processes().items():
            with suppress(FileNotFoundError, ProcessLookupError):  # swapped, or ended, since it was asked for
                self.used[name].look(pid)
        statistics_ = self._state.statistics.now()
        self.pages.append(statistics_["used"])
        self.file.append(statistics_["file"])

    def settles(self) -> None:
        """Wait until no more is in use than in the second third, with nobody writing: what a machine that writes unevenly
        has kept for its second is given up by then, and what has leaked is not."""
        third = len(self.pages) // 3
        before = statistics.median(self.pages[third : 2 * third])
        while self._state.statistics.now()["used"] > before:
            pass

    def flat(self, *, steady: bool) -> str:
        """`steady`: so long a run that what is in use at a time says something."""
        third = len(self.file) // 3
        said = []
        for name, figures, slack in (("in use", self.pages, 1 << 20), ("of the file", self.file, 4 << 20)):
            before, after = (
                statistics.median(part) for part in (figures[third : 2 * third], figures[-third:])
            )
            said.append(f"bytes {name} {before:,.0f} and {after:,.0f}")
            assert after <= 1.1 * before + slack or (name == "in use" and not steady), said[-1]
        for name, each in self.used.items():
            assert len(each.memory) > len(self.file) // 2, f"{name} was looked at {len(each.memory)} times"
            third = len(each.memory) // 3
            each.files, each.memory = each.files[third:], each.memory[third:]
            said.append(f"{name}: {each.flat(third)}")
        return "; ".join(said)


@pytest.mark.parametrize(("seconds", "looks"), [(8, 15), pytest.param(1800, 900, marks=pytest.mark.soak)])
def test_a_store_that_gives_up_its_past_does_not_grow(tmp_path: Path, seconds: int, looks: int) -> None:
    with booted(tmp_path, text=IMAGE) as node, node.attach() as me:
        with Load(node) as load:
            growth, person = Growth(node, me), Person(node, me)
            for turn in range(TURNS):  # the first of each makes room for all that follow
                person.act(turn)
            while not load.wrong and READER not in growth.processes():
                pass
            began = time.monotonic()
            for number in range(looks):
                person.act(number)
                load.goes_on(began + seconds * (number + 1) / looks)
                growth.look()
        assert {"zygote", "watcher", "kernel", READER, "keys", "diary"} <= set(growth.used)
        removed = {name: me.keyspace(name).horizon.now() for name in ("rows", "counter", "chores")}
        print(f"{seconds} s: {load.done}")
        growth.settles()
        print(growth.flat(steady=seconds > 60))
        print({name: (each.versions, each.size) for name, each in removed.items()})
        assert all(each.versions > 0 for each in removed.values())
        folder = node.folder / "data" / "state"
    assert not check_folder(folder).breaches
