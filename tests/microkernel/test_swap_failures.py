"""A swap goes wrong at each of its steps, while every kind of client calls: the old version goes on, or the new one does,
and no client is told of it."""

import os
import random
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from atoll.ipc.errors import AtollError, DeadlineExceeded, DrainTimedOut, NotFound
from atoll.ipc.interface import Interface, call
from atoll.ipc.system.kernel import Load, ProcessRow, StartFailed, Swap, Swapped
from atoll.ipc.system.records import (
    KEYSPACE,
    AnyRow,
    EventRow,
    IntentRow,
    KeyspaceRow,
    ServerRow,
    after,
    decode,
)
from atoll.ipc.system.state import StoreFull
from atoll.microkernel.journal import open_
from atoll.servers import state as store_package

from .callers import REPEATABLE, called, called_steadily
from .nodes import PACKAGES, RealNode, booted, interface
from .test_boots_again import INTERFACE, ONE, capabilities, grant, image, paired
from .test_boots_again import SERVER as PAIRED
from .test_grants_in_swaps import heirs
from .test_swap import version

Counter = interface("counter", "Counter")

HAND_OVER = "    def hand_over(self) -> bytes:\n"
RUN = "    async def run(self) -> None:\n        {0}\n\n" + HAND_OVER
TAKEN = "self._taken = len(state)"
TAKEN_RETURNED = "        return self._taken\n"


def row_of(node: RealNode, server: str = "counter") -> ProcessRow:
    with node.attach() as attached:
        return next(row for row in attached.kernel.ps.now() if row.server == server)


def row_of_restarted(node: RealNode) -> ProcessRow:
    """It serves before the kernel has heard that it does."""
    while (row := row_of(node)).state == "starting":
        pass
    return row


def swap(node: RealNode, deadline: float | None = None, **what: object) -> Swapped:
    with node.attach() as attached:
        kernel = attached.kernel if deadline is None else attached.kernel.with_(deadline=deadline)
        done: Swapped = kernel.swap.now(Swap(server="counter", **what))  # type: ignore[arg-type]
        return done


FAILURES = {
    "import": ("import os\n", "import os\nimport no_such_module\n"),
    "its beginning": ("        self._taken = 0\n", "        raise ValueError('no')\n"),
    "start": (
        HAND_OVER,
        "    async def start(self) -> None:\n        raise ValueError('no')\n\n" + HAND_OVER,
    ),
    "take over": (TAKEN, "raise ValueError('no')"),
    "exit in take over": (TAKEN, "os._exit(9)"),
    "exit after ready": (HAND_OVER, RUN.format("os._exit(9)")),
    "hang after ready": (HAND_OVER, RUN.format("time.sleep(1000)")),
}


WITHOUT_WAITING = [step for step in FAILURES if step != "hang after ready"]
SOAK = random.Random(0).choices(WITHOUT_WAITING, k=200)


@pytest.mark.parametrize(
    "steps",
    [
        *(list(FAILURES)[at : at + 3] for at in (0, 3, 6)),
        pytest.param(SOAK, marks=pytest.mark.soak),
    ],
    ids=["first steps", "taking over", "first turn", "many"],
)
def test_a_version_that_fails_before_its_first_call_leaves_the_old_one_in_place(
    node: RealNode, tmp_path: Path, steps: list[str]
) -> None:
    """Under a thousand calls a second, streams that go on, and calls that nobody may repeat."""
    before = row_of(node)
    with called_steadily(node), called(node, (*REPEATABLE, "long")) as callers:
        for step in steps:
            old, new = FAILURES[step]
            with pytest.raises(StartFailed):
                swap(node, package=version(tmp_path, old, new))
            callers.go_on()
            row = row_of(node)
            assert (row.pid, row.state, row.restarts, row.version) == (
                before.pid, "serving", 0, before.version,
            ), step  # fmt: skip


def test_a_hand_over_that_fails_leaves_its_server_in_place(tmp_path: Path) -> None:
    """It ended the server, and what that had in memory was gone."""
    with booted(tmp_path) as node:
        swap(node, package=version(tmp_path, "return self._state", "raise ValueError('not now')"))
        before = row_of(node)
        with called_steadily(node), called(node, REPEATABLE) as callers:
            for _ in range(2):
                with pytest.raises(StartFailed, match="not now"):
                    swap(node)
                callers.go_on()
                row = row_of(node)
                assert (row.pid, row.state, row.restarts) == (before.pid, "serving", before.restarts)


def test_a_version_that_dies_while_the_old_one_drains_leaves_that_in_place(node: RealNode) -> None:
    before = row_of(node)
    with called_steadily(node), called(node) as callers, node.attach() as attached:
        slow = attached.open("counter", Counter).slow.start(1.5)
        processes = set(node.processes())
        refused: list[AtollError] = []

        def one() -> None:
            try:
                swap(node)
            except AtollError as error:
                refused.append(error)

        swapping = threading.Thread(target=one)
        swapping.start()
        while row_of(node).state != "draining":
            assert swapping.is_alive()
        (new,) = set(node.processes()) - processes
        os.kill(new, signal.SIGKILL)
        swapping.join()
        assert [type(error) for error in refused] == [StartFailed]
        assert slow.result() == "done"
        callers.go_on()
        assert (row_of(node).pid, row_of(node).state) == (before.pid, "serving")


@pytest.mark.parametrize("at", ["take_over", "start"])
def test_a_caller_that_waits_no_longer_leaves_the_old_version_in_place(
    node: RealNode, tmp_path: Path, at: str
) -> None:
    old, new = (TAKEN, "time.sleep(1000)") if at == "take_over" else (
        HAND_OVER, "    async def start(self) -> None:\n        await trio.sleep(1000)\n\n" + HAND_OVER
    )  # fmt: skip
    before = row_of(node)
    with called(node):
        with pytest.raises(DeadlineExceeded):
            swap(node, deadline=4.0, package=version(tmp_path, old, new))
        while (row := row_of(node)).state != "serving":
            pass
        assert row.pid == before.pid


def test_a_version_that_fails_over_its_first_call_is_a_crash_of_its_own(
    node: RealNode, tmp_path: Path
) -> None:
    """It ends in the first call if it has taken over; the process in its place has not, and answers."""
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.keep.now(5)
        changed = version(
            tmp_path, TAKEN_RETURNED, f"        if self._taken:\n            os._exit(9)\n{TAKEN_RETURNED}"
        )
        done = swap(node, package=changed)
        assert counter.taken.now() == 0
        row = row_of_restarted(node)
        assert (row.version, row.restarts, row.state) == (done.new, 1, "serving")


def test_a_version_that_dies_over_its_first_call_under_load_loses_and_doubles_nothing(
    node: RealNode, tmp_path: Path
) -> None:
    add = "        return self.rows.update("
    changed = version(tmp_path, add, f"        if self._taken:\n            os._exit(9)\n{add}")
    with node.attach() as attached:
        attached.open("counter", Counter).keep.now(5)
    with called_steadily(node), called(node) as callers:
        done = swap(node, package=changed)
        callers.go_on()
        row = row_of_restarted(node)
        assert (row.version, row.restarts, row.state) == (done.new, 1, "serving")


def test_the_old_version_may_die_at_its_hand_over(node: RealNode, tmp_path: Path) -> None:
    swap(node, package=version(tmp_path, "        return self._state\n", "        os._exit(9)\n"))
    with called(node):
        with pytest.raises(StartFailed):
            swap(node)
        while row_of(node).state != "serving":
            pass


def test_the_old_version_may_die_after_its_hand_over(node: RealNode, tmp_path: Path) -> None:
    """The new one has all it needs; it even ends the old one itself."""
    pid = "        return str(os.getpid()).encode()\n"
    swap(node, package=version(tmp_path, "        return self._state\n", pid))
    with called(node):
        killer = "os.kill(int(state), 9); time.sleep(0.1)"
        done = swap(node, package=version(tmp_path, TAKEN, killer))
        while (row := row_of(node)).state != "serving":
            pass
        assert row.version == done.new


def test_calls_that_do_not_end_refuse_the_swap_and_new_clients_are_served_after_it(node: RealNode) -> None:
    with called(node), node.attach() as attached:
        slow = attached.open("counter", Counter).slow.start(600.0)
        with pytest.raises(DrainTimedOut), node.attach() as other:
            other.kernel.swap.now(Swap(server="counter", deadline=0.1))
        assert not slow.done()
        with node.attach() as other:
            assert other.open("counter", Counter).get.now("nobody") == 0


def test_a_capability_that_is_passed_to_a_server_in_a_swap_waits_for_it(node: RealNode) -> None:
    with node.attach() as attached:
        channel = attached._port(attached.kernel.open.now("counter", "Counter").token).channel
        opened = attached.kernel.open.now("teller", "Teller")
        slow = attached.open("counter", Counter).slow.start(1.0)
        swapping = threading.Thread(target=lambda: swap(node))
        swapping.start()
        before = row_of(node).pid
        while row_of(node).state == "serving":
            assert swapping.is_alive()
        passed = attached.kernel.transfer.now(opened.number, channel)
        assert row_of(node).pid != before
        assert slow.result() == "done"
        swapping.join()
        assert passed in {row.number for row in attached.kernel.caps.now("counter")}


def test_two_swaps_at_once_come_one_after_the_other(node: RealNode) -> None:
    done: list[Swapped] = []
    with called(node):
        levels = ("seccomp", "process", "seccomp", "process")
        swaps = [
            threading.Thread(target=lambda level=level: done.append(swap(node, level=level)))
            for level in levels
        ]
        for thread in swaps:
            thread.start()
        for thread in swaps:
            thread.join()
    assert sorted(each.level for each in done) == sorted(levels)


def test_a_server_that_is_killed_while_it_is_swapped_is_there_afterwards(tmp_path: Path) -> None:
    """At whatever step it happens: the swap is done or refused, and the clients are served."""
    with booted(tmp_path, counter="restart = { first = 0, most = 0, limit = 1000, within = 1 }") as node:
        kill_while_swapped(node)


def kill_while_swapped(node: RealNode) -> None:
    outcomes: list[object] = []

    def one() -> None:
        try:
            outcomes.append(swap(node))
        except AtollError as error:
            outcomes.append(error)

    with called(node) as callers:
        for turn in range(6):
            thread = threading.Thread(target=one)
            thread.start()
            for _ in range(turn):
                row_of(node)
            pid = row_of(node).pid
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            thread.join()
            assert len(outcomes) == turn + 1
            callers.go_on()


def test_an_interface_of_a_version_that_was_refused_is_none(tmp_path: Path) -> None:
    """Neither for those who grant, nor for the next version, which need not have it."""
    package = paired(tmp_path)
    (package / "server.py").write_text(ONE)
    with booted(tmp_path, text=image(package, "")) as node, node.attach() as attached:
        failing = "    async def start(self) -> None:\n        raise ValueError('no')\n\n    @First"
        (package / "server.py").write_text(PAIRED.replace("    @First", failing, 1))
        with pytest.raises(StartFailed):
            attached.kernel.swap.now(Swap(server="paired", package=str(package)))
        with pytest.raises(NotFound, match="interface of paired"):
            grant(attached, "paired")
        (package / "server.py").write_text(ONE + "# repaired\n")
        attached.kernel.swap.now(Swap(server="paired", package=str(package)))
        (package / "server.py").write_text(PAIRED)
        attached.kernel.swap.now(Swap(server="paired", package=str(package)))
        assert grant(attached, "paired")


def test_a_swap_that_is_taken_back_after_its_row_is_none_at_the_next_boot_either(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            attached.kernel.load.now(
                Load(server="second", package=str(PACKAGES / "counter"), level="process")
            )
        before = row_of(node, "second")
        package = version(tmp_path, HAND_OVER, RUN.format("os._exit(9)"))
        with node.attach() as attached, pytest.raises(StartFailed):
            attached.kernel.swap.now(Swap(server="second", package=package))
        node.kill()
        node.boot()
        row = row_of(node, "second")
        assert (row.state, row.version) == ("serving", before.version)


class User(Interface):
    @call("read")
    def use(self) -> int: ...


USER = """
import trio

from atoll.ipc.serve import Serves

from .interface import First, User


class Server(Serves[User]):
    peer: First

    async def start(self) -> None:
        pass

    @User.use.serve
    async def use(self) -> int:
        return await self.peer.first()
"""
USES = """

class User(Interface):
    @call("read")
    def use(self) -> int: ...
"""


def test_a_need_that_was_taken_back_in_a_swap_keeps_the_old_version_as_it_was(tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.mkdir()
    for name, text in {"__init__": "", "interface": INTERFACE + USES, "server": USER}.items():
        (user / f"{name}.py").write_text(text)
    need = '\n[server.user.needs]\npeer = { server = "paired", rights = ["read"] }\n'
    text = image(paired(tmp_path), "") + f'\n[server.user]\npackage = "{user}"\n' + need
    with booted(tmp_path, text=text) as node, node.attach() as attached:
        sleeping = USER.replace("        pass", "        await trio.sleep_forever()")
        (user / "server.py").write_text(sleeping.replace("First", "Second").replace("first()", "second()"))
        before = row_of(node, "user").pid
        swapping = attached.kernel.swap.start(Swap(server="user", package=str(user)))

        while not (new := heirs(attached.keyspace("kernel", ["read"]), "user") - {before}):
            assert not swapping.done()
        needed = next(
            row for row in attached.kernel.caps.now("user") if row.interface == "Second" and row.lasting
        )
        attached.kernel.revoke.now(needed.number)
        for pid in new:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(StartFailed):
            swapping.result()
        os.kill(row_of(node, "user").pid, signal.SIGKILL)
        while (row := row_of(node, "user")).state != "failed" and not row.restarts:
            pass
        assert attached.open("user", User).use.now() == 1


COMMIT = '        badge = self._writing("commit", current().badge)\n'
FULL_FOR_RECORDS_OF_CAPABILITIES = """        if note == "record" and any(each.key[4:5] == b"c" for each in writes):
            from atoll.ipc.system.state import StoreFull
            raise StoreFull("the store", 2, 1)
"""
FULL_FOR_STARTS = """        if note == "record" and any(each.key[4:5] == b"n" for each in writes):
            self.refused = getattr(self, "refused", 0) + 1
            if self.refused <= 8:
                from atoll.ipc.system.state import StoreFull
                raise StoreFull("the store", 2, 1)
"""
FULL_FOR_REVOCATIONS = """        if note.startswith("revoke "):
            from atoll.ipc.system.state import StoreFull
            raise StoreFull("the store", 2, 1)
"""
REFUSES_ONCE = """        if note == "{note}" and not hasattr(self, "refused"):
            from atoll.ipc.system.state import StoreFull
            self.refused = True
            raise StoreFull("the store", 2, 1)
"""


def full_once(folder: Path, note: str) -> str:
    """A version of the store that has no room for the first commit with a note."""
    return refusing(folder, REFUSES_ONCE.format(note=note))


def refusing(folder: Path, refusal: str) -> str:
    """A version of the store that begins a commit so."""
    assert store_package.__file__ is not None
    full = folder / "full" / "state"
    shutil.copytree(Path(store_package.__file__).parent, full, ignore=shutil.ignore_patterns("__pycache__"))
    text = (full / "server.py").read_text()
    assert COMMIT in text
    (full / "server.py").write_text(text.replace(COMMIT, refusal + COMMIT, 1))
    return str(full)


def test_a_restart_that_the_store_had_no_room_for_is_remembered_the_next_time(tmp_path: Path) -> None:
    full = full_once(tmp_path, "restart counter")
    with booted(tmp_path) as node:
        with node.attach() as attached:
            attached.kernel.swap.now(Swap(server="state", package=full))
            attached.kernel.stop.now("counter")
            with pytest.raises(StoreFull, match="nothing was written"):
                attached.kernel.restart.now("counter")
            assert attached.kernel.restart.now("counter").state == "serving"
        assert node.stop() == 0
        node.boot()
        assert row_of(node).state == "serving"


def test_a_version_that_is_taken_back_while_the_store_is_full_does_not_run_after_the_next_boot(
    tmp_path: Path,
) -> None:
    """The row that names it was committed, and the one that takes it back is refused at first."""
    full = full_once(tmp_path, "swap refused")
    with booted(tmp_path) as node:
        before = row_of(node).version
        with node.attach() as attached:
            attached.kernel.swap.now(Swap(server="state", package=full))
            rows = attached.keyspace(KEYSPACE, ["read", "history"])
            hangs = version(tmp_path, *FAILURES["hang after ready"])
            with pytest.raises(StartFailed):
                swap(node, package=hangs)
            key = ServerRow.key_of("counter")
            names = [decode(ServerRow, item.value or b"").version for item in rows.history.now(key)]
            assert set(names) > {before}, "the refused version was no row"
            while decode(ServerRow, rows.get.now(key).value or b"").version != before:  # type: ignore[union-attr]
                pass


def test_a_load_that_fails_while_the_store_is_full_is_none_after_the_next_boot(tmp_path: Path) -> None:
    """The rows of what was loaded were committed, and what undoes them is refused at first. Whoever loaded it hears why it
    did not start."""
    full = full_once(tmp_path, "undo load mine")
    with booted(tmp_path) as node:
        with node.attach() as attached:
            attached.kernel.swap.now(Swap(server="state", package=full))
            with pytest.raises(StartFailed):
                attached.kernel.load.now(Load(server="mine", package=version(tmp_path, *FAILURES["start"])))
        assert node.stop() == 0
        node.boot()
        with node.attach() as attached:
            assert "mine" not in [row.server for row in attached.kernel.ps.now()]


def test_what_a_swap_replaced_does_not_come_back_where_the_store_was_full(tmp_path: Path) -> None:
    """The capability of a need of the old version, which the new one has none of."""
    user = tmp_path / "user"
    user.mkdir()
    for name, text in {"__init__": "", "interface": INTERFACE + USES, "server": USER}.items():
        (user / f"{name}.py").write_text(text)
    need = '\n[server.user.needs]\npeer = { server = "paired", rights = ["read"] }\n'
    text = image(paired(tmp_path), "") + f'\n[server.user]\npackage = "{user}"\n' + need
    full = refusing(tmp_path, FULL_FOR_RECORDS_OF_CAPABILITIES)

    def held(node: RealNode) -> list[str]:
        with node.attach() as attached:
            rows = attached.kernel.caps.now("user")
            return [row.interface for row in rows if row.holder == "user" and row.lasting and row.parent]

    with booted(tmp_path, text=text) as node:
        assert held(node) == ["First"]
        with node.attach() as attached:
            attached.kernel.swap.now(Swap(server="state", package=full))
            (user / "server.py").write_text(USER.replace("First", "Second").replace("first()", "second()"))
            attached.kernel.swap.now(Swap(server="user", package=str(user)))
        assert held(node) == ["Second"]
        assert node.stop() == 0
        node.boot()
        assert held(node) == ["Second"]


def test_a_grant_of_a_right_that_a_new_version_added_lasts_where_the_store_was_full(tmp_path: Path) -> None:
    """The next boot gives nobody more than the root has by its row."""
    package = paired(tmp_path)
    full = refusing(tmp_path, FULL_FOR_RECORDS_OF_CAPABILITIES)
    added = '\n    @call("more")\n    def more(self) -> int: ...\n'
    served = "\n    @Second.more.serve\n    def more(self) -> int:\n        return 3\n"
    with booted(tmp_path, text=image(package, "")) as node:
        with node.attach() as attached:
            attached.kernel.swap.now(Swap(server="state", package=full))
            (package / "interface.py").write_text(INTERFACE + added)
            (package / "server.py").write_text(PAIRED + served)
            attached.kernel.swap.now(Swap(server="paired", package=str(package)))
            root = next(row for row in attached.kernel.caps.now("paired") if row.interface == "Second")
            attached.kernel.grant.now(root.number, "counter", ["more"])
        assert node.stop() == 0
        node.boot()
        with node.attach() as attached:
            assert [row.rights for row in capabilities(attached, "counter", "paired")] == [["more"]]


def test_what_came_of_a_start_is_no_row_that_is_given_up(tmp_path: Path) -> None:
    """Without it the next boot says that nothing came of it."""
    full = refusing(tmp_path, FULL_FOR_STARTS)
    with booted(tmp_path) as node, node.attach() as attached:
        attached.kernel.swap.now(Swap(server="state", package=full))
        attached.kernel.restart.now("counter")
        rows = attached.keyspace(KEYSPACE, ["read"])

        def found(table: type[AnyRow]) -> list[AnyRow]:
            start = table.key_of()
            return [decode(table, item.value or b"") for item in rows.range.now(start, after(start)).items]

        while any(not row.outcome for row in found(IntentRow)):
            assert "rows given up" not in {row.kind for row in found(EventRow)}


def test_a_keyspace_of_a_load_that_the_store_had_no_room_for_is_a_row_of_the_next_load(
    tmp_path: Path,
) -> None:
    full = full_once(tmp_path, "load mine")
    with booted(tmp_path) as node, node.attach() as attached:
        attached.kernel.swap.now(Swap(server="state", package=full))
        asked = Load(server="mine", package=str(PACKAGES / "counter"))
        with pytest.raises(StoreFull):
            attached.kernel.load.now(asked)
        assert attached.kernel.load.now(asked).state == "serving"
        rows = attached.keyspace(KEYSPACE, ["read"])
        found = rows.get.now(KeyspaceRow.key_of("mine.rows"))
        assert found is not None
        assert decode(KeyspaceRow, found.value or b"").keyspace == "mine.rows"


def test_what_was_revoked_while_the_store_was_full_does_not_come_back(tmp_path: Path) -> None:
    """Whoever revoked it is told that its row is not there yet; it is worth nothing from then on all the same."""
    full = refusing(tmp_path, FULL_FOR_REVOCATIONS)
    with booted(tmp_path, text=image(paired(tmp_path), "")) as node:
        with node.attach() as attached:
            number = grant(attached, "paired")
            attached.kernel.swap.now(Swap(server="state", package=full))
            for _ in range(3):
                with pytest.raises(StoreFull):
                    attached.kernel.revoke.now(number)
            assert not capabilities(attached, "counter", "paired")
        assert node.stop() == 0
        kept = open_(node.folder / "journal")
        notes = [changes.note for changes in kept.waiting.values()]
        assert notes.count(f"revoke {number}") == 1, "whoever tries again adds nothing to it"
        kept.close()
        node.boot()
        with node.attach() as attached:
            assert not capabilities(attached, "counter", "paired")
