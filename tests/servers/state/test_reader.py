"""A reader in a process of its own: sees what is acknowledged, follows the writer without being told."""

import json
import subprocess
import sys
from pathlib import Path

from atoll.ipc.system.state import Retention, Write
from atoll.servers.state.lmdb_engine import LmdbEngine

from .history_kit import Kit
from .kept import Kept

READER = """
import sys, trio
from atoll.ipc.serve import bind
from atoll.ipc.context import Call, Fields, SystemClock, in_hand
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server

async def main():
    server = bind(Server, {"config": Settings(folder=sys.argv[1], role="reader", map_size=1 << 30)}).server
    await server.start()
    call = Call(Fields(method="watch", badge=1, rights=frozenset({"read"})), SystemClock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        with in_hand(call):
            head = server.head()
            print("at", head, flush=True)
            async for change in server.watch(head):
                print(change.items[0].value.decode(), flush=True)
                if change.items[0].value == b"last":
                    break
        nursery.cancel_scope.cancel()
    await server.stop()

trio.run(main)
"""


def test_a_reader_follows_the_writer(tmp_path: Path) -> None:
    kit = Kit(lambda: LmdbEngine(tmp_path / "store", map_size=1 << 30))
    kit.commit({"a": "before"})
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == f"at {kit.history.head()}\n"
    for number in range(20):
        kit.commit({"a": f"value {number}"})
        assert reader.stdout.readline() == f"value {number}\n"
    kit.commit({"a": "last"})
    assert reader.communicate()[0] == "last\n"
    assert reader.returncode == 0
    kit.engine.close()


CROWD = """
import json, sys, trio
from collections import Counter
from trio.testing import wait_all_tasks_blocked
from atoll.ipc.serve import bind
from atoll.ipc.context import Call, Fields, SystemClock, in_hand
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server

async def listen(server, head, prefix):
    async for change in server.watch(head, prefix):
        print("told", prefix, flush=True)

async def main():
    server = bind(Server, {"config": Settings(folder=sys.argv[1], role="reader", map_size=1 << 30)}).server
    await server.start()
    call = Call(Fields(method="watch", badge=1, rights=frozenset({"read"})), SystemClock())
    looks = Counter()
    def counted(name):
        look = getattr(server._history, name)
        def count(*arguments, **options):
            looks[name] += 1
            return look(*arguments, **options)
        setattr(server._history, name, count)
    async with trio.open_nursery() as nursery:
        with in_hand(call):
            head = server.head()
            for number in range(1000):
                nursery.start_soon(listen, server, head, b"other/%04d/" % number)
            await wait_all_tasks_blocked()
            nursery.start_soon(server.run)
            await wait_all_tasks_blocked()
            counted("changes")
            counted("parts")
            print("at", head, flush=True)
            async for change in server.watch(head, b"a"):
                print(change.items[0].value.decode(), flush=True)
                if change.items[0].value == b"last":
                    break
        nursery.cancel_scope.cancel()
    print(json.dumps(looks))
    await server.stop()

trio.run(main)
"""


def test_watchers_at_a_reader_cost_no_more_than_their_own_events(tmp_path: Path) -> None:
    """A thousand wait for other keys: for what one hears, one looks into the feed."""
    kit = Kit(lambda: LmdbEngine(tmp_path / "store", map_size=1 << 30))
    kit.commit({"a": "before"})
    words = [sys.executable, "-c", CROWD, str(tmp_path / "store")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == f"at {kit.history.head()}\n"
        for number in range(20):
            kit.commit({"b": "for nobody"})
            kit.commit({"a": f"value {number}"})
            assert reader.stdout.readline() == f"value {number}\n"
        kit.commit({"a": "last"})
        assert reader.stdout.readline() == "last\n"
        looks = json.loads(reader.stdout.read())
    assert reader.returncode == 0
    # Who hears looks for what is there when it comes, and then for each change that it was told of.
    assert looks["changes"] == 1
    assert looks["parts"] <= 21
    kit.engine.close()


ASKED = """
import sys
from atoll.ipc.system.state import Compacted
from atoll.servers.state import layout
from atoll.servers.state.history import History
from atoll.servers.state.lmdb_engine import LmdbEngine

history = History(LmdbEngine(sys.argv[1], map_size=1 << 30, read_only=True), str)
for line in sys.stdin:
    try:
        print(history.get(layout.prefix(1) + b"a", int(line)).value.decode(), flush=True)
    except Compacted as gone:
        print("from", gone.horizon, flush=True)
"""


def test_a_reader_knows_the_horizon_with_the_commit_that_makes_it(tmp_path: Path) -> None:
    kept = Kept(lambda: LmdbEngine(tmp_path / "store", map_size=1 << 30), work=1)
    rows = kept.keyspace_state("rows", Retention(age=5.0))
    revisions = [rows.commit.start([Write(b"a", b"%d" % number)]).result().revision for number in range(10)]
    kept.hands.now += 100
    rows.commit.start([Write(b"b", b"")]).result()
    words = [sys.executable, "-c", ASKED, str(tmp_path / "store")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        kept.begin()
        horizon = 0
        while kept.compacts:
            kept.step()
            horizon = rows.horizon.start().result().revision
            for number, revision in enumerate(revisions):
                print(revision, file=reader.stdin, flush=True)
                told = f"{number}" if revision >= horizon else f"from {horizon}"
                assert reader.stdout.readline() == f"{told}\n"
        reader.stdin.close()
    assert horizon == revisions[-1]
    kept.server._engine.close()
