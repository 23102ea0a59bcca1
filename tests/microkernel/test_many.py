"""Much of everything at once: channels, capabilities, processes. What there is not enough of is refused by name, and
nobody else notices."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import PeerDied, Revoked
from atoll.ipc.system.kernel import CapabilityRow, StartFailed, Swap
from atoll.ipc.system.records import CrashRow
from atoll.microkernel.slices import hierarchy
from tests.kit.forked import forked
from tests.kit.groups import control_groups

from .nodes import PACKAGES, STUBBORN, RealNode, booted, groups_of, interface
from .test_kept_rows import items, kernel, until

Counter = interface("counter", "Counter")
Stubborn = interface("stubborn", "Stubborn")

ROOMY = """
[account.operators]
channels = {channels}
capabilities = {capabilities}
descriptors = {descriptors}
buffers = "1MiB"
"""


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def caps(attached: Attached) -> list[CapabilityRow]:
    """All there are: one reply has no room for many."""
    rows: list[CapabilityRow] = attached.kernel.caps.now()
    while more := attached.kernel.caps.now("", rows[-1].number):
        assert more[0].number > rows[-1].number
        rows += more
    return rows


@contextmanager
def bystander(node: RealNode) -> Iterator[None]:
    """Somebody who calls all the while: each call is answered, and with its own count."""
    over = threading.Event()
    told: list[int] = []
    wrong: list[BaseException] = []

    def call() -> None:
        try:
            with node.attach() as attached:
                counter = attached.open("counter", Counter)
                while not over.is_set():
                    told.append(counter.add.now("bystander"))
        except BaseException as error:
            wrong.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    try:
        while not told and not wrong:
            time.sleep(0)
        yield
    finally:
        over.set()
        calling.join()
    assert wrong == []
    assert told == list(range(1, len(told) + 1))


def programs_attached(me: Attached) -> int:
    """However many: they are listed in pages."""
    count = last = 0
    while page := me.kernel.attachments.now(last):
        count, last = count + len(page), page[-1].number
    return count


PROCESSES = 5


@pytest.mark.parametrize("channels", [60, pytest.param(500, marks=pytest.mark.soak)])
def test_many_channels_are_served_and_given_back(tmp_path: Path, channels: int) -> None:
    """Programs from some processes, each with a channel to the kernel and one to the counter."""
    programs = channels // 2 // PROCESSES
    more = ROOMY.format(channels=channels + 10, capabilities=20 * channels, descriptors=20 * channels)
    with booted(tmp_path, more=more) as node, bystander(node):
        assert node.kernel is not None
        kernel = node.kernel.pid
        files, memory, began = open_files(kernel), resident(kernel), time.monotonic()
        done, say_done = os.pipe()
        over, say_over = os.pipe()

        def call(process: int) -> None:
            os.close(say_over)
            with ExitStack() as held:
                attached = [held.enter_context(node.attach()) for _ in range(programs)]
                counters = [each.open("counter", Counter) for each in attached]
                for number, counter in enumerate(counters):
                    assert counter.add.now(f"{process}.{number}") == 1
                os.write(say_done, b"!")
                os.read(over, 1)

        with ExitStack() as children:
            for process in range(PROCESSES):
                children.enter_context(forked(lambda process=process: call(process)))  # type: ignore[misc]
            os.close(say_done)
            for _ in range(PROCESSES):
                assert os.read(done, 1) == b"!", "a process ended before its programs were served"
            with node.attach() as attached:
                assert programs_attached(attached) == programs * PROCESSES + 2
            more_files, more_memory = open_files(kernel) - files, resident(kernel) - memory
            print(
                f"{channels} channels in {time.monotonic() - began:.1f} s: in the kernel {more_files / channels:.1f} "
                f"descriptors and {more_memory / channels:,.0f} resident bytes each"
            )
            os.close(say_over)
        with node.attach() as attached:
            while programs_attached(attached) > 2:
                pass
        while open_files(kernel) > files:
            time.sleep(0)
    os.close(done)
    os.close(over)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.soak)])
def test_many_capabilities_of_one_client_are_each_used_and_revoked(tmp_path: Path, count: int) -> None:
    more = ROOMY.format(channels=20, capabilities=count + 20, descriptors=2000)
    with booted(tmp_path, more=more) as node, bystander(node), node.attach() as attached:
        assert node.kernel is not None
        kernel = node.kernel.pid
        attached.open("counter", Counter)
        before, memory, began = len(caps(attached)), resident(kernel), time.monotonic()
        counters = [attached.open("counter", Counter) for _ in range(count)]
        opened = time.monotonic()
        used = [counter.get.start("x") for counter in counters]
        assert [each.result() for each in used] == [0] * count
        called = time.monotonic()
        holder = f"@{attached.welcome.attachment}"
        held = [row.number for row in caps(attached) if (row.holder, row.interface) == (holder, "Counter")]
        assert len(held) == count + 1
        more_memory = resident(kernel) - memory
        for number in held:
            assert attached.kernel.revoke.now(number) == 1
        revoked = time.monotonic()
        for counter in counters[:: max(1, count // 100)]:
            with pytest.raises(Revoked):
                counter.get.now("x")
        assert len(caps(attached)) == before - 1
        assert attached.open("counter", Counter).get.now("x") == 0
        print(
            f"{count} capabilities: opened in {opened - began:.2f} s, each used in {called - opened:.2f} s, each revoked "
            f"in {revoked - called:.2f} s; {more_memory / count:,.0f} resident bytes each in the kernel"
        )


def bounded(node: RealNode) -> list[Path]:
    """Where the number of processes of the slice `few` is bounded."""
    found = [folder / "few" for folder in groups_of(node)]
    return [folder for folder in found if (folder / "pids.max").exists()]


def test_a_fork_bomb_stays_in_its_slice_and_is_ended_with_its_server(tmp_path: Path) -> None:
    """At level `process`, whose filter keeps nobody from forking: what bounds it is the slice."""
    if not control_groups():
        pytest.skip("no control groups here: nothing bounds how many processes a server makes")
    with booted(tmp_path, more=STUBBORN) as node:
        bomb(node)


def bomb(node: RealNode) -> None:
    with bystander(node), node.attach() as attached:
        (group,) = bounded(node)
        attached.open("stubborn", Stubborn).bomb.now()
        while len(members := hierarchy.members(group)) < 64:
            assert len(members) <= 64
        counter = attached.open("counter", Counter)
        for number in range(100):
            assert counter.add.now("meanwhile") == number + 1
            assert len(hierarchy.members(group)) <= 64
        assert attached.kernel.stop.now("stubborn").state == "stopped"
        assert hierarchy.members(group) == set()
        attached.kernel.restart.now("stubborn")
        assert attached.kernel.stop.now("stubborn").state == "stopped"


def test_a_crash_for_want_of_memory_says_so(tmp_path: Path) -> None:
    """SIGKILL has many senders: of this one the group knows. And others are unharmed."""
    if not control_groups():
        pytest.skip("no control groups here: nothing bounds what memory a server takes")
    few = STUBBORN.replace("pids = 64", 'pids = 64\nmemory = "128MiB"')
    with booted(tmp_path, more=few) as node, bystander(node), node.attach() as attached:
        state = kernel(attached)
        stubborn = attached.open("stubborn", Stubborn)
        with pytest.raises(PeerDied):
            stubborn.hoard.now()
        until(state, lambda: bool(items(state, CrashRow)))
        ((_, crash),) = items(state, CrashRow)
        assert crash.how == "was killed by SIGKILL (its slice had no memory left for it)"
        os.kill(next(row.pid for row in attached.kernel.ps.now() if row.server == "counter"), signal.SIGKILL)
        until(state, lambda: len(items(state, CrashRow)) == 2)
        (other,) = (row for _, row in items(state, CrashRow) if row.server == "counter")
        assert "its slice had" not in other.how


HOARDS = """
    async def start(self) -> None:
        kept = []
        while True:
            kept.append(b"full" * (1 << 18))
"""


def test_a_start_for_which_there_is_no_memory_says_so(tmp_path: Path) -> None:
    if not control_groups():
        pytest.skip("no control groups here: nothing bounds what memory a server takes")
    package = tmp_path / "stubborn"
    shutil.copytree(PACKAGES / "stubborn", package, ignore=shutil.ignore_patterns("__pycache__"))
    few = STUBBORN.replace("pids = 64", 'pids = 64\nmemory = "128MiB"')
    with booted(tmp_path, more=few) as node, node.attach() as attached:
        with (package / "server.py").open("a") as out:
            out.write(HOARDS)
        with pytest.raises(StartFailed, match=r"its process was killed by SIGKILL \(its slice had no memory"):
            attached.kernel.swap.now(Swap(server="stubborn", package=str(package)))
