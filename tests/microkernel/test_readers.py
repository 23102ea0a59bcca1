"""Reader processes of the store, in real nodes: started as load asks, never older than what their clients have seen, and
never missed by a client when they end."""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from atoll.ipc.attach import Node as Attached
from atoll.ipc.client.reading import Reads
from atoll.ipc.errors import NotAllowed, Revoked
from atoll.ipc.proxy import DEFAULTS, bind, transport_of
from atoll.ipc.system import records
from atoll.ipc.system.kernel import ProcessRow, Swap
from atoll.ipc.system.records import KEYSPACE, LOG
from atoll.ipc.system.state import State, Write
from atoll.microkernel.readers import BUSY_ROUNDS, IDLE_ROUNDS, Demand, Reader, Readers
from atoll.microkernel.slices import choose
from atoll.microkernel.supervisor import Supervisor
from atoll.servers.shell.tables import Moment
from atoll.servers.shell.then import Then

from .nodes import PACKAGES, RealNode, booted, groups_of, interface, wait_for_end

IMAGE = """
[image]
name = "test"

[node]
level = "{level}"
account = "all"

[account.all]
channels = 256

[keyspace.ledger]

[server.state]
needs = {{}}
watchdog = "1s"
readers = {{ most = {most}, above = 1{slice} }}

[server.ledger]
package = "{packages}/ledger"
needs = {{ rows = {{ keyspace = "ledger", rights = ["read", "write", "history"] }} }}
"""


looks_inside = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: a server is not dumpable, so its own user cannot look into it"
)


@contextmanager
def node_with_readers(
    folder: Path, *, level: str = "process", most: int = 1, slice: str = "", more: str = ""
) -> Iterator[RealNode]:
    text = IMAGE.format(level=level, most=most, packages=PACKAGES, slice=slice)
    with booted(folder, text=text + more) as node:
        yield node


def readers(me: Attached) -> list[ProcessRow]:
    return [row for row in me.kernel.ps.now() if row.server.startswith("state.reader-")]


def read_until(me: Attached, state: State, over: Callable[[], bool]) -> None:
    """Read, which is what readers are started for, until something is so."""
    while not over():
        for _ in range(100):
            state.get.now(b"none")


def with_reader(me: Attached, state: State, *, but: frozenset[int] = frozenset()) -> ProcessRow:
    """Read until there is a reader, none of `but`, and this capability's reads go to it."""

    def there() -> bool:
        found = [row for row in readers(me) if row.pid not in but]
        return bool(found) and reads(state).at() is not None

    read_until(me, state, there)
    return next(row for row in readers(me) if row.pid not in but)


def reads(state: State) -> Any:
    """Where the reads of a capability go."""
    return transport_of(state)._reads  # type: ignore[attr-defined]


def at_reader(state: State) -> State:
    """A proxy that knows the reader and no way back."""
    return bind(State, reads(state).at())


class Load:
    """Threads that write and read what they wrote, until the block ends; what went wrong in any of them is raised."""

    def __init__(self, node: RealNode, threads: int = 3) -> None:
        self._node = node
        self._over = threading.Event()
        self.wrong: list[BaseException] = []
        self.rounds = [0] * threads
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def _run(self, number: int) -> None:
        try:
            with self._node.attach() as me:
                state, ledger = me.keyspace("ledger"), me.open("ledger", interface("ledger", "Ledger"))
                key = f"load {number}".encode()
                while not self._over.is_set():
                    round_ = self.rounds[number]
                    revision = state.commit.now([Write(key, b"%d" % round_)]).revision
                    item = state.get.now(key)
                    assert item is not None and (item.value, item.revision) == (b"%d" % round_, revision)
                    started = [state.get.start(key) for _ in range(4)]
                    assert [each.result().revision for each in started] == [revision] * 4  # type: ignore[union-attr]
                    assert state.history.now(key, 1)[0].revision == revision
                    page = state.range.now(key, key + b"\0")
                    assert page.revision >= revision and page.items[0].revision == revision
                    assert state.who.now(revision) is not None
                    ledger.put.now(f"ledger {number}", round_)
                    assert ledger.get.now(f"ledger {number}") == round_
                    self.rounds[number] += 1
        except BaseException as error:
            self.wrong.append(error)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for error in self.wrong:
            raise error

    def go_on(self, more: int = 5) -> None:
        """Until every thread has done so many more rounds, or one has failed."""
        wanted = [done + more for done in self.rounds]
        while not self.wrong and any(done < goal for done, goal in zip(self.rounds, wanted, strict=True)):
            self._over.wait(0.01)


@pytest.mark.parametrize("level", ["process", "seccomp", "sandbox"])
def test_a_reader_is_started_as_load_asks_and_shows_each_client_what_it_wrote(
    tmp_path: Path, level: str
) -> None:
    with node_with_readers(tmp_path, level=level) as node, node.attach() as me:
        assert readers(me) == []
        state = me.keyspace("ledger")
        with_reader(me, state)
        with Load(node) as load:
            load.go_on()
        row = readers(me)[0]
        assert row.level == level
        assert row.calls > 0
        writer = next(row for row in me.kernel.ps.now() if row.server == "state")
        before = writer.calls
        for _ in range(200):
            state.get.now(b"none")
        after = next(row for row in me.kernel.ps.now() if row.server == "state").calls
        assert after - before < 100  # the kernel's own, no reads


def test_without_readers_in_the_image_there_are_none(tmp_path: Path) -> None:
    with node_with_readers(tmp_path, most=0) as node, node.attach() as me:
        state = me.keyspace("ledger")
        with Load(node) as load:
            load.go_on()
        assert readers(me) == []
        assert reads(state).at() is None


def test_a_killed_reader_is_never_missed(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        state, seen = me.keyspace("ledger"), set()
        with Load(node) as load:
            for _ in range(3):
                row = with_reader(me, state, but=frozenset(seen))
                seen.add(row.pid)
                load.go_on(2)
                os.kill(row.pid, signal.SIGKILL)
                load.go_on(2)


def test_a_reader_ends_with_its_kernel(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node:
        me = node.attach()
        row = with_reader(me, me.keyspace("ledger"))
        node.kill()
        wait_for_end(row.pid)
        me.close()
        node.boot()
        with node.attach() as again, Load(node) as load:
            with_reader(again, again.keyspace("ledger"))
            load.go_on(2)


def test_a_frozen_reader_blocks_no_commit_and_is_ended(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        state = me.keyspace("ledger")
        row = with_reader(me, state)
        os.kill(row.pid, signal.SIGSTOP)
        try:
            for number in range(50):
                assert state.commit.now([Write(b"k", b"%d" % number)]).revision
            item = state.get.now(b"k")  # waits at the reader until the watchdog has ended it
            assert item is not None and item.value == b"49"
        finally:
            with suppress(ProcessLookupError):
                os.kill(row.pid, signal.SIGKILL)
        assert any("it answered nothing" in line.text for line in me.kernel.logs.now(0, "", False))


def test_what_is_revoked_is_revoked_at_the_reader_too(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me, node.attach() as other:
        state, theirs = me.keyspace("ledger"), other.keyspace("ledger")
        state.commit.now([Write(b"k", b"v")])
        with_reader(me, state)
        read_until(other, theirs, lambda: reads(theirs).at() is not None)
        straight = at_reader(theirs)
        assert straight.get.now(b"k") is not None
        held = [row for row in me.kernel.caps.now("state") if row.holder == f"@{other.welcome.attachment}"]
        keyspace = next(row for row in held if "write" in row.rights)
        twin = next(row for row in held if row.parent == keyspace.number)
        assert set(twin.rights) == {"read", "history"}
        assert me.kernel.revoke.now(keyspace.number) == 2
        for proxy in (straight, theirs):
            with pytest.raises(Revoked):
                proxy.get.now(b"k")
        assert at_reader(state).get.now(b"k") is not None


def values_since(proxy: State, revision: int, changes: int) -> list[bytes | None]:
    """What a watch of rows of one key each shows first."""
    watch = proxy.watch.now(revision)
    values = [next(watch).items[0].value for _ in range(changes)]
    watch.cancel()
    return values


def test_no_process_of_the_store_shows_the_past_without_its_right(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        state, theirs = me.keyspace("ledger"), me.keyspace("ledger", ["read"])
        start = state.head.now()
        for value in (b"old", b"new"):
            state.commit.now([Write(b"k", value)])
        assert reads(theirs).at() is None
        assert values_since(theirs, start, 2) == [b"new", b"new"]
        with_reader(me, state)
        read_until(me, theirs, lambda: reads(theirs).at() is not None)
        assert values_since(at_reader(theirs), start, 2) == [b"new", b"new"]
        assert values_since(at_reader(state), start, 2) == [b"old", b"new"]
        writer = me.keyspace("ledger", ["write"])
        with pytest.raises(NotAllowed):
            writer.scan.now(writer.begin.now(10.0), b"")


def test_revoked_while_many_read(tmp_path: Path) -> None:
    """The moment `revoke` has returned, no read that starts then is served, at either process."""
    with node_with_readers(tmp_path) as node, node.attach() as me, node.attach() as other:
        state, theirs = me.keyspace("ledger"), other.keyspace("ledger")
        state.commit.now([Write(b"k", b"v")])
        with_reader(me, state)
        read_until(other, theirs, lambda: reads(theirs).at() is not None)
        straight, returned, late = at_reader(theirs), threading.Event(), []

        def read() -> None:
            while True:
                was_over = returned.is_set()
                try:
                    straight.get.now(b"k")
                except Revoked:
                    return
                if was_over:
                    late.append(1)
                    return

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        held = [row for row in me.kernel.caps.now("state") if row.holder == f"@{other.welcome.attachment}"]
        me.kernel.revoke.now(next(row.number for row in held if "write" in row.rights))
        returned.set()
        for thread in threads:
            thread.join()
        assert not late


@looks_inside
def test_a_reader_takes_no_writes(tmp_path: Path) -> None:
    with node_with_readers(tmp_path, level="sandbox") as node, node.attach() as me:
        state = me.keyspace("ledger")
        row = with_reader(me, state)
        with pytest.raises(NotAllowed):
            at_reader(state).commit.now([Write(b"k", b"v")])
        mounts = {
            fields[4]: fields[5].split(",")[0]
            for fields in (
                line.split() for line in Path(f"/proc/{row.pid}/mountinfo").read_text().splitlines()
            )
        }
        store = f"{node.folder}/data/state"
        assert (mounts[f"{store}/data.mdb"], mounts[f"{store}/lock.mdb"]) == ("ro", "rw")
        assert sorted(os.listdir(f"/proc/{row.pid}/root{store}")) == ["data.mdb", "lock.mdb"]


def test_a_backup_is_read_at_the_reader(tmp_path: Path) -> None:
    """Its capability is none on a keyspace, and its rows come from the reader all the same; that one writes nothing with
    it. Killed in the middle, it is not missed."""
    with node_with_readers(tmp_path) as node, node.attach() as me:
        ledger = me.keyspace("ledger")
        for number in range(300):
            ledger.commit.now([Write(b"key %d" % number, b"x" * 2000)])
        reader = with_reader(me, ledger)
        state = me.open("state", State, ["backup"])
        read_until(me, ledger, lambda: bool(state.outline.now().head) and reads(state).at() is not None)
        there = at_reader(state)
        with pytest.raises(NotAllowed):
            there.commit.now([Write(b"\0\0\0\1k", b"v")])
        outline = state.outline.now()
        assert list(there.export.now(outline.head))[-1].position == 0
        stream = iter(state.export.now(outline.head))
        pieces = [next(stream)]
        os.kill(reader.pid, signal.SIGKILL)
        pieces += stream
        assert pieces[-1].position == 0
        told = [piece.position for piece in pieces if not piece.more]
        assert told == sorted(told, reverse=True)


def test_the_rows_of_a_query_come_from_the_reader(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        ledger = me.keyspace("ledger")
        for number in range(300):
            ledger.commit.now([Write(b"key %d" % number, b"x" * 2000)])
        with_reader(me, ledger)
        there = at_reader(ledger)
        held = {row.number for row in me.kernel.caps.now("state")}
        table = Moment(me, None).table("ledger")
        before = there.statistics.now()["reads"]
        while not any(row.parent not in held | {0} for row in me.kernel.caps.now("state")):
            pass  # the kernel has yet to name the reader for what was opened now
        assert sum(map(len, table.batches())) == 300
        assert there.statistics.now()["reads"] > before


def test_a_swap_of_the_store_replaces_its_readers(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        state = me.keyspace("ledger")
        before = with_reader(me, state)
        writer = next(row.pid for row in me.kernel.ps.now() if row.server == "state")
        with Load(node) as load:
            load.go_on(2)
            me.kernel.swap.now(Swap(server="state"))
            load.go_on(2)
            after = with_reader(me, state, but=frozenset({before.pid}))
            load.go_on(2)
        assert next(row.pid for row in me.kernel.ps.now() if row.server == "state") != writer
        assert before.pid not in node.processes()
        assert after.server != before.server


def test_reads_go_on_while_the_writer_is_down(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        state = me.keyspace("ledger")
        state.commit.now([Write(b"k", b"v")])
        row = with_reader(me, state)
        with Load(node) as load:
            load.go_on(2)
            writer = next(each.pid for each in me.kernel.ps.now() if each.server == "state")
            os.kill(writer, signal.SIGKILL)
            item = state.get.now(b"k")
            assert item is not None and item.value == b"v"
            load.go_on(2)
        assert readers(me)[0].pid == row.pid


def test_two_readers_share_the_holders(tmp_path: Path) -> None:
    with node_with_readers(tmp_path, most=2) as node, node.attach() as me, node.attach() as other:
        state, theirs = me.keyspace("ledger"), other.keyspace("ledger")
        read_until(me, state, lambda: len(readers(me)) == 2 and min(row.channels for row in readers(me)) > 0)
        with Load(node) as load:
            load.go_on(2)
            os.kill(readers(me)[0].pid, signal.SIGKILL)
            load.go_on(2)
        assert theirs.get.now(b"load 0") is not None


SLICE = """
[slice.reading]
cpu_weight = 20
"""


def group_of(pid: int) -> str:
    """Of a process, in the hierarchy that holds processors, below the node's."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    named = [line.split(":", 2) for line in lines]
    path = next(path for _, held, path in named if "cpu" in held.split(",") or not held)
    return "/".join(path.split("/")[-2:])


def test_each_reader_is_in_a_group_of_its_own_in_their_slice(tmp_path: Path) -> None:
    chosen = choose("readers-trial")
    if chosen.kind == "none":
        pytest.skip(chosen.lacks[0])
    with (
        node_with_readers(tmp_path, most=2, slice=', slice = "reading"', more=SLICE) as node,
        node.attach() as me,
    ):
        state = me.keyspace("ledger")
        read_until(me, state, lambda: len(readers(me)) == 2)
        writer = next(row for row in me.kernel.ps.now() if row.server == "state")
        assert group_of(writer.pid) == "_servers/state"
        before = {group_of(row.pid): row for row in readers(me)}
        assert set(before) == {"reading/state.reader-1", "reading/state.reader-2"}
        gone = before["reading/state.reader-1"]
        os.kill(gone.pid, signal.SIGKILL)

        def replaced() -> bool:
            pids = {row.pid for row in readers(me)}
            return len(pids) == 2 and gone.pid not in pids

        read_until(me, state, replaced)
        after = {group_of(row.pid): row for row in readers(me)}
        assert set(after) == set(before)  # the next one takes up the place
        assert after["reading/state.reader-1"].server not in {row.server for row in before.values()}
        state.commit.now([Write(b"k", b"v")])
        assert state.get.now(b"k") is not None
        folders = groups_of(node)
    assert not any(folder.exists() for folder in folders)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def visit(node: RealNode) -> None:
    """A program comes, reads at the reader, and goes."""
    with node.attach() as guest:
        state = guest.keyspace("ledger")
        read_until(guest, state, lambda: reads(state).at() is not None)


@looks_inside
@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_readers_that_come_and_go_leave_no_descriptor_behind(tmp_path: Path, times: int) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        assert node.kernel is not None
        state = me.keyspace("ledger")
        ledger = me.open("ledger", interface("ledger", "Ledger"))

        def round_trip(but: frozenset[int]) -> tuple[ProcessRow, dict[str, int]]:
            """A new reader, read at by server and program; how many descriptors each process has then."""
            row = with_reader(me, state, but=but)
            ledger.put.now("k", 1)
            gc.collect()  # a channel's end goes with the last that knows it: here an error's traceback
            pids = {
                each.server: each.pid for each in me.kernel.ps.now() if not each.server.startswith("state.")
            }
            counts = {name: descriptors(pid) for name, pid in pids.items()}
            counts |= {"kernel": descriptors(node.kernel.pid), "reader": descriptors(row.pid)}  # type: ignore[union-attr]
            return row, counts | {"me": descriptors(os.getpid())}

        row, at_first = round_trip(frozenset())
        seen, counts = {row.pid}, at_first
        for _ in range(times):
            visit(node)
            os.kill(row.pid, signal.SIGKILL)
            row, counts = round_trip(frozenset(seen))
            seen.add(row.pid)
        assert counts == at_first


def test_readers_in_trio(tmp_path: Path) -> None:
    """Awaited calls, many at once, while the reader dies."""

    async def main(me: Attached, state: State, pid: int) -> None:
        async def read(number: int) -> None:
            for _ in range(50):
                revision = (await state.commit([Write(b"%d" % number, b"v")])).revision
                item = await state.get(b"%d" % number)
                assert item is not None and item.revision == revision

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(read, number)
            await state.head()
            os.kill(pid, signal.SIGKILL)

    with node_with_readers(tmp_path) as node, node.attach() as me:
        state = me.keyspace("ledger")
        row = with_reader(me, state)
        trio.run(main, me, state, row.pid)


def test_a_read_says_what_its_client_has_seen(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        state = me.keyspace("ledger")
        with_reader(me, state)
        revision = state.commit.now([Write(b"k", b"v")]).revision
        assert reads(state).seen == revision
        reads(state).seen = (
            revision + 1000
        )  # as after a restore: the reader says `Ahead`, and so does the writer
        bound = reads(state).at_least(State.get.spec, b"\x93\xc4\x01k\xc0\x00")
        assert bound.endswith(b"\xcd" + (revision + 1000).to_bytes(2, "big"))
        item = state.get.now(b"k")
        assert item is not None and item.revision == revision
        assert reads(state).at() is not None
        assert DEFAULTS.deadline is None


def test_what_is_known_of_a_capability_is_forgotten_after_it(tmp_path: Path) -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, Reads) for each in gc.get_objects())

    with node_with_readers(tmp_path) as node, node.attach() as me:
        before = kept()
        for _ in range(50):
            port = transport_of(me.keyspace("ledger")).port  # type: ignore[attr-defined]
            me.kernel.revoke.now(me.kernel.number.now(port.channel, port.slot, port.generation))
        assert kept() - before <= 2


def test_demand_starts_one_at_a_time_and_lets_go_slowly() -> None:
    demand = Demand(2, 1000)
    assert [demand.look(900) for _ in range(10)] == [0] * 10
    rounds = [demand.look(5000) for _ in range(3 * BUSY_ROUNDS)]
    assert rounds[BUSY_ROUNDS - 2 : BUSY_ROUNDS] == [0, 1]
    assert rounds[-1] == 2
    assert [demand.look(600) for _ in range(2 * IDLE_ROUNDS)] == [2] * (2 * IDLE_ROUNDS)
    quiet = [demand.look(100) for _ in range(3 * IDLE_ROUNDS)]
    assert quiet[IDLE_ROUNDS - 2 : IDLE_ROUNDS] == [2, 1]
    assert quiet[-1] == 0


def test_one_burst_starts_nothing() -> None:
    demand = Demand(1, 1000)
    assert [demand.look(reads) for reads in (9000, 0) * 20] == [0] * 40


async def test_what_a_reader_left_behind_and_does_not_end_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever ends a reader, to swap the store say, waits for that."""
    said: list[str] = []
    events: Any = SimpleNamespace(
        event=lambda kind, who, sentence: said.append(f"{kind}: {who}"), capabilities=lambda *_: None
    )
    node: Any = SimpleNamespace(
        group=lambda server, place: SimpleNamespace(end=trio.sleep_forever),
        tree=SimpleNamespace(let_go=list),
        channels=SimpleNamespace(of_server=lambda name: []),
        reading={"state.reader-1": None},
    )
    authority: Any = SimpleNamespace(clear=lambda ended: None)
    supervisor = Supervisor(node, events, events, authority, authority)
    supervisor.ended_reader = lambda server, serving, exit: serving.ended.set()  # type: ignore[method-assign]
    readers = Readers(node, events, authority, authority, supervisor, authority)
    serving: Any = SimpleNamespace(
        reader="state.reader-1",
        process=SimpleNamespace(wait=trio.lowlevel.checkpoint),
        silent=trio.Event(),
        ended=trio.Event(),
        expected_end="the store is swapped",
    )
    readers._all["state.reader-1"] = Reader(serving, "state.reader-1")
    server: Any = SimpleNamespace(spec=SimpleNamespace(readers=SimpleNamespace(slice="readers")))
    with trio.fail_after(600):
        await readers.attend(server, serving)
    assert serving.ended.is_set()
    assert said == ["left behind: state.reader-1"]


def test_the_store_as_of_a_moment_is_its_writer(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        reader = with_reader(me, me.keyspace("ledger"))
        writer = next(row for row in me.kernel.ps.now() if row.server == "state")
        kernel, log = me.keyspace(KEYSPACE, ["read", "history"]), me.keyspace(LOG, ["read"])
        while True:
            then = Then(kernel, log, kernel.head.now())
            rows = {row.pid: row.server for row in then.rows(records.ProcessRow, then.boot.epoch)}
            if reader.pid in rows:  # nobody waits for its row
                break
        assert rows[reader.pid] == reader.server
        assert [was.pid for was in then.servers() if was.server == "state"] == [writer.pid]
