"""The gate: who gets in, as what, and what is left when they go."""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.ipc.attach import SOCKET
from atoll.ipc.client.reading import LOOK_EVERY
from atoll.ipc.errors import NotAllowed, PeerDied
from atoll.ipc.system import control
from atoll.servers.shell.watching import all_refused

from .nodes import IMAGE, PACKAGES, RealNode, booted, interface

Counter = interface("counter", "Counter")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("attach")) as running:
        yield running


def test_an_attachment_is_a_row_and_goes_with_its_program(node: RealNode) -> None:
    with node.attach() as attached:
        attached.open("counter", Counter)
        mine = next(row for row in attached.kernel.attachments.now() if row.pid == os.getpid())
        assert (mine.uid, mine.channels) == (os.geteuid(), 2)
        held = [row for row in attached.kernel.caps.now() if row.holder == f"@{mine.number}"]
        assert len(held) == 2
    with node.attach() as attached:
        rows = attached.kernel.attachments.now()
        assert mine.number not in {row.number for row in rows}
        assert all(row.holder != f"@{mine.number}" for row in attached.kernel.caps.now())


def test_who_has_detached_holds_nothing_any_more(node: RealNode) -> None:
    """`close` returns when the kernel has let go, so whoever looks at once finds nothing left."""
    with node.attach() as observer:
        for _ in range(50):
            with node.attach() as passing:
                passing.open("counter", Counter)
                number = passing.welcome.attachment
            assert number not in {row.number for row in observer.kernel.attachments.now()}
            assert f"@{number}" not in {row.client for row in observer.kernel.channels.now("counter")}


def test_who_has_detached_is_told_so_by_each_read(node: RealNode) -> None:
    """Once in so many reads one looks whether the kernel has said something: over a socket that was closed it raised what no
    caller expects."""
    with node.attach() as attached:
        rows = attached.keyspace("counter")
        rows.get.now(b"one")
    for _ in range(2 * LOOK_EVERY):
        with pytest.raises(PeerDied):
            rows.get.now(b"one")


def test_detaching_from_a_dead_kernel_ends_at_once(tmp_path: Path) -> None:
    with booted(tmp_path) as node, node.attach():
        node.kill()


def test_a_fork_that_leaves_the_block_does_not_detach_its_parent(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        child = os.fork()
        if not child:
            attached.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert counter.add.now("parent") == 1
        attached.open("teller", interface("teller", "Teller"))


def test_a_program_that_is_killed_is_tidied_up_after(node: RealNode) -> None:
    script = f"""
import sys, os
sys.path.insert(0, {str(PACKAGES)!r})
from atoll.ipc.attach import connect
from counter.interface import Counter
node = connect({str(node.folder)!r})
counter = node.open("counter", Counter)
print(counter.add.now("killed"), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1"
    with node.attach() as attached:
        while len(attached.kernel.attachments.now()) > 1:
            pass
        assert [row.client for row in attached.kernel.channels.now("counter")] == ["teller"]


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_node_that_is_collected_without_close_is_tidied_up_after(node: RealNode) -> None:
    def use() -> int:
        counter = node.attach().open("counter", Counter)
        counter.add.start("collected")
        return int(counter.add.now("collected"))

    assert use() == 2
    with node.attach() as attached:
        while len(attached.kernel.attachments.now()) > 1:
            gc.collect()
        assert attached.open("counter", Counter).get.now("collected") == 2


DETACHING = """
import sys, threading
from pathlib import Path
from atoll.ipc.attach import Node
from tests.microkernel.nodes import interface
Counter = interface("counter", "Counter")
node = Node(Path(sys.argv[1]), "detaching")
counter, other = node.open("counter", Counter), node.open("counter", Counter)

found = []

def ended(what):
    try:
        what()
    except BaseException as error:
        found.append((type(error).__name__, getattr(error, "outcome_unknown", None)))

threads = [
    threading.Thread(target=ended, args=(each,))
    for each in (
        lambda: counter.slow.now(600.0),
        lambda: other.slow.now(600.0),
        lambda: list(node.kernel.logs.now(1 << 40, "", True)),
    )
]
begun = counter.begun.now()
for thread in threads:
    thread.start()
with Node(Path(sys.argv[1]), "beside") as beside:
    while beside.open("counter", Counter).begun.now() < begun + 2:
        pass
while not all(channel._counters.parks for channel in node._channels.values()):
    pass
node.close()
for thread in threads:
    thread.join()
print(*sorted(found))
"""


def test_who_detaches_while_its_threads_wait_has_them_end(node: RealNode) -> None:
    script = [sys.executable, "-c", DETACHING, str(node.folder)]
    for _ in range(5):
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        calls, stream = ("PeerDied", True), ("PeerDied", False)  # it went on where it stood, and found nobody
        assert done.stdout.strip() == f"{stream} {calls} {calls}"


def test_memory_and_doorbells_go_with_who_detaches(node: RealNode) -> None:
    def held() -> tuple[int, int]:
        mapped = Path("/proc/self/maps").read_text().count("memfd:")
        return len(os.listdir("/proc/self/fd")), mapped

    with node.attach() as attached:
        attached.open("counter", Counter).add.now("kept")
    del attached
    before = held()
    gc.disable()
    try:
        for _ in range(20):
            with node.attach() as attached:
                attached.open("counter", Counter).add.now("kept")
            del attached
        assert held() == before
    finally:
        gc.enable()


def test_who_says_no_hello_is_turned_away_with_a_sentence(node: RealNode) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.connect(str(node.folder / SOCKET))
        end.send(control.encode(control.Pong(number=1)))
        answer = control.to_process.decode(end.recv(65536))
        assert isinstance(answer, control.Unwelcome)
        assert "did not say Hello" in answer.sentence
        assert end.recv(65536) == b""


def test_who_only_looks_whether_a_node_answers_is_refused_nothing(node: RealNode) -> None:
    def turned_away() -> int:
        return sum(row.count for row in attached.kernel.refused.now() if row.by == "attach")

    with node.attach() as attached:
        before = turned_away()
        for _ in range(10):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
                end.connect(str(node.folder / SOCKET))
        with node.attach():  # it was taken after them
            assert turned_away() == before


def test_nonsense_at_the_gate_harms_nobody(node: RealNode) -> None:
    for nonsense in (b"\x00", b"\xff" * 1000, os.urandom(5000)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            end.connect(str(node.folder / SOCKET))
            end.send(nonsense)
            answer = end.recv(65536)
            assert isinstance(control.to_process.decode(answer), control.Unwelcome)
    with node.attach() as attached:
        assert {row.state for row in attached.kernel.ps.now()} == {"serving"}


def test_a_program_whose_name_is_no_text_attaches_as_any_other(node: RealNode) -> None:
    """A process names itself, in any bytes, and the host passes them on to whoever reads of it."""
    script = f"""
from atoll.ipc.attach import connect
with open("/proc/self/comm", "wb") as file:
    file.write(b"\\xff\\xfe")
connect({str(node.folder)!r}).close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with node.attach() as attached:
        assert {row.state for row in attached.kernel.ps.now()} == {"serving"}


def test_a_forged_slot_is_refused_and_recorded(node: RealNode) -> None:
    """Another slot, a stale generation: the server's own check turns them away."""
    from atoll.ipc.errors import Revoked
    from atoll.ipc.proxy import bind, transport_of

    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        port = transport_of(counter).port
        for slot, generation in ((port.slot + 1, 1), (port.slot, port.generation + 1), (0, 1), (99_999, 1)):
            forged = control.Port(
                channel=port.channel, slot=slot, generation=generation, interface="Counter", rights=("read",)
            )
            if (slot, generation) == (port.slot, port.generation):
                continue
            with pytest.raises(Revoked):
                bind(Counter, attached._deliveries.transport(forged)).get.now("x")
        wanted = {
            "counter, Counter.get: the capability was revoked",
            "counter, Counter.get: no such capability",
        }
        while not wanted <= {row.what for row in attached.kernel.refused.now() if row.by == "capability"}:
            pass


def test_less_than_the_right_is_refused_by_name(node: RealNode) -> None:
    with node.attach() as attached:
        opened = attached.kernel.open.now("counter", "Counter", ["read"])
        reader = attached._deliveries.proxy(Counter, attached._port(opened.token))
        assert reader.get.now("never") == 0
        with pytest.raises(NotAllowed, match="'write'"):
            reader.add.now("x")


def test_what_a_program_was_refused_is_under_its_name_when_it_has_left(node: RealNode) -> None:
    """It leaves at once: what its server says of it comes later."""
    programs = set()
    for _ in range(20):
        with node.attach() as attached:
            programs.add(f"@{attached.welcome.attachment}")
            opened = attached.kernel.open.now("counter", "Counter", [])
            reader = attached._deliveries.proxy(Counter, attached._port(opened.token))
            for begun in [reader.get.start("x") for _ in range(20)]:
                with pytest.raises(NotAllowed):
                    begun.result()
    with node.attach() as attached:
        found = []
        while sum(row.count for row in found) < 20 * len(programs):
            found = [
                row for row in all_refused(attached.kernel) if "Counter.get: the capability lacks" in row.what
            ]
        assert {row.server for row in found} == programs


def test_a_flood_of_refusals_is_a_bounded_list_with_every_count(node: RealNode) -> None:
    """Coalesced per who and what; kinds beyond the first few hundred are one kind. Nothing is left uncounted."""
    from atoll.ipc.errors import BadRequest
    from atoll.ipc.interface import Interface, call
    from atoll.ipc.proxy import bind, transport_of
    from atoll.microkernel.events import KINDS_MOST

    names = [f"guess_{number}" for number in range(2 * KINDS_MOST)]

    def guess(self: object) -> int: ...

    methods = {}
    for name in names:
        guess.__name__ = guess.__qualname__ = name
        methods[name] = call("read")(guess)
    forged = type("Counter", (Interface,), methods)
    with node.attach() as attached:
        guesses = bind(forged, transport_of(attached.open("counter", Counter)))
        for _ in range(3):
            for name in names:
                with pytest.raises(BadRequest):
                    getattr(guesses, name).now()
        mine = f"@{attached.welcome.attachment}"
        while sum(row.count for row in attached.kernel.refused.now(mine)) < 3 * len(names):
            pass
        found = attached.kernel.refused.now(mine)
        assert sum(row.count for row in found) == 3 * len(names)
        assert len(found) <= KINDS_MOST + 1


MANY_AS = 4000
CHANGED = """
import runpy, sys
from atoll.microkernel import events
{change}
sys.argv[0] = "atoll.microkernel"
runpy.run_module("atoll.microkernel", run_name="__main__", alter_sys=True)
"""


FEW = "events.ALL_MOST = 20"
MANY = f"""
events.KINDS_MOST, refuse = {MANY_AS}, events.Events.refuse
def as_many(self, who, by, what, count=1):
    for number in range({MANY_AS}):
        refuse(self, who, by, f"{{what}} {{number}}", count)
events.Events.refuse = as_many
"""


class Forgetful(RealNode):
    """A node whose kernel keeps fewer refusals apart, or more."""

    def __init__(self, folder: Path, text: str, change: str) -> None:
        super().__init__(folder, text)
        self._change = change

    def command(self, *more: str) -> list[str]:
        python, _, _, *rest = super().command(*more)
        return [python, "-c", CHANGED.format(change=self._change), *rest]


def test_programs_that_come_and_go_cannot_make_any_number_of_refusals(tmp_path: Path) -> None:
    node = Forgetful(tmp_path, IMAGE.format(level="process", packages=PACKAGES, counter="", more=""), FEW)
    node.boot()
    try:
        for _ in range(30):
            with node.attach() as attached:
                opened = attached.kernel.open.now("counter", "Counter", [])
                with pytest.raises(NotAllowed):
                    attached._deliveries.proxy(Counter, attached._port(opened.token)).get.now("x")
        with node.attach() as attached:
            found = attached.kernel.refused.now()
            while sum(row.count for row in found) < 30:
                found = attached.kernel.refused.now()
        assert len(found) <= 21
        (others,) = [row for row in found if row.server == "others"]
        assert others.count == 10
    finally:
        assert node.stop() == 0


def test_a_list_of_refusals_is_read_however_long(tmp_path: Path) -> None:
    """More of them than one reply of the kernel's holds: each that comes is recorded as many."""
    node = Forgetful(tmp_path, IMAGE.format(level="process", packages=PACKAGES, counter="", more=""), MANY)
    node.boot()
    try:
        with node.attach() as attached:
            reader = attached.kernel.open.now("counter", "Counter", [])
            with pytest.raises(NotAllowed):
                attached._deliveries.proxy(Counter, attached._port(reader.token)).get.now("x")
            found = all_refused(attached.kernel)
            while len(found) < MANY_AS:
                found = all_refused(attached.kernel)
            mine = all_refused(attached.kernel, f"@{attached.welcome.attachment}")
        assert len({row.what for row in found}) == len(found) == len(mine) == MANY_AS
        assert [row.last for row in found] == sorted((row.last for row in found), reverse=True)
    finally:
        assert node.stop() == 0
