"""System calls on capabilities, buffers, packages, slices and logs, as a person's program makes them."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.errors import AtollError, BadRequest, NotAllowed, NotFound, QuotaExceeded, Revoked
from atoll.ipc.system.kernel import Load, ServerBinding, Slice, Swap, WrongState

from .nodes import PACKAGES, RealNode, booted, interface

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """For the tests that leave it serving."""
    with booted(tmp_path_factory.mktemp("syscalls")) as running:
        yield running


def test_after_revoke_nothing_is_served(node: RealNode) -> None:
    with node.attach() as attached:
        opened = attached.kernel.open.now("counter", "Counter")
        counter = attached._deliveries.proxy(Counter, attached._port(opened.token))
        assert counter.add.now("revoked") == 1
        assert attached.kernel.revoke.now(opened.number) == 1
        for _ in range(100):
            with pytest.raises(Revoked):
                counter.get.now("revoked")
        assert attached.open("counter", Counter).get.now("revoked") == 1


def test_revoke_takes_what_was_derived(node: RealNode) -> None:
    with node.attach() as attached:
        opened = attached.kernel.open.now("counter", "Counter")
        child = attached.kernel.derive.now(opened.number, ["read"])
        reader = attached._deliveries.proxy(Counter, attached._port(child))
        assert reader.get.now("none") == 0
        with pytest.raises(NotAllowed):
            reader.add.now("none")
        with pytest.raises(NotAllowed):
            attached.kernel.derive.now(child, ["read", "write"])
        assert attached.kernel.revoke.now(opened.number) == 2
        with pytest.raises(Revoked):
            reader.get.now("none")


def test_no_call_that_begins_after_a_revoke_is_served(node: RealNode) -> None:
    """While threads call as fast as they can, plain handlers and tasks: what is sent once `revoke` has returned fails."""
    with node.attach() as attached, node.attach() as other:
        for _ in range(10):
            opened = attached.kernel.open.now("counter", "Counter")
            counter = attached._deliveries.proxy(Counter, attached._port(opened.token))
            returned = threading.Event()
            late: list[str] = []

            def ask(method: Any, *arguments: object, returned: Any = returned, late: Any = late) -> None:
                while True:
                    after = returned.is_set()
                    try:
                        method.now(*arguments)
                    except Revoked:
                        return
                    if after:
                        late.append("served")

            asking = [
                threading.Thread(target=ask, args=(counter.get, "none")),
                threading.Thread(target=ask, args=(counter.slow, 0.0)),
            ]
            for thread in asking:
                thread.start()
            assert counter.get.now("none") == 0
            assert other.kernel.revoke.now(opened.number) == 1
            returned.set()
            for thread in asking:
                thread.join()
            assert not late


def test_cancel_gives_up_calls_in_hand(node: RealNode) -> None:
    from atoll.ipc.errors import Aborted

    with node.attach() as attached:
        opened = attached.kernel.open.now("counter", "Counter")
        counter = attached._deliveries.proxy(Counter, attached._port(opened.token))
        before = counter.begun.now()
        stays, goes = counter.slow.start(0.3), counter.slow.start(600.0)
        while counter.begun.now() != before + 2:
            pass
        assert attached.kernel.revoke.now(opened.number, True) == 1
        with pytest.raises(Aborted):
            goes.result()
        with pytest.raises(Aborted):
            stays.result()


def test_nothing_that_can_be_revoked_ruins_the_node(tmp_path: Path) -> None:
    """Every capability there is, one by one: some are refused, and the node goes on and boots as it was."""
    with booted(tmp_path) as node:
        with node.attach() as attached:
            kernel, mine = attached.kernel, f"@{attached.welcome.attachment}"
            for row in kernel.caps.now():
                if row.holder == mine:
                    continue
                try:
                    kernel.revoke.now(row.number)
                except (BadRequest, NotFound):  # the kernel's own, a root, or gone with another
                    continue
            with pytest.raises(BadRequest, match="the kernel's own"):
                kernel.revoke.now(next(row.number for row in kernel.caps.now() if row.holder == "kernel"))
            for server in ("state", "counter", "teller"):
                assert kernel.restart.now(server).state == "serving"
            assert attached.open("teller", Teller).tell.now("x", 2) == 2
            told = {row.text for row in kernel.logs.now(follow=False)}
            assert any("a new capability for counter" in text for text in told)
            bound = next(
                row for row in kernel.caps.now() if (row.holder, row.server) == ("teller", "counter")
            )
            kernel.revoke.now(bound.number)
            attached.open("counter", Counter)
        node.stop()
        node.boot()
        assert any("new capability for teller.counter" in line for line in node.said)
        with node.attach() as attached:
            assert attached.open("teller", Teller).total.now("x") == 2


def test_a_server_that_lost_a_capability_does_not_start_by_itself(node: RealNode) -> None:
    with node.attach() as attached:
        kernel = attached.kernel
        bound = next(row for row in kernel.caps.now() if (row.holder, row.server) == ("counter", "state"))
        kernel.revoke.now(bound.number)
        with pytest.raises(AtollError):
            attached.open("counter", Counter).die.now()
        while (row := next(row for row in kernel.ps.now() if row.server == "counter")).state != "failed":
            pass
        assert "`atoll restart counter` gives it a new one" in row.reason
        assert kernel.restart.now("counter").state == "serving"


def test_a_capability_expires(node: RealNode) -> None:
    with node.attach() as attached:
        opened = attached.kernel.open.now("counter", "Counter")
        child = attached.kernel.derive.now(opened.number, ["read"], 0.2)
        reader = attached._deliveries.proxy(Counter, attached._port(child))
        with pytest.raises(Revoked):
            _until_it_fails(reader)


def test_a_lasting_grant_ends_no_later_than_what_it_was_granted_from(node: RealNode) -> None:
    """It is made from what lasts, since a person's own capability goes when they detach; with the term of theirs."""
    with node.attach() as attached:
        opened = attached.kernel.open.now("counter", "Counter")
        short = attached.kernel.derive.now(opened.number, None, 3600.0)
        minted = attached.kernel.mint.now(opened.number, 42, None, 3600.0)
        for held in (short, minted):
            made = attached.kernel.grant.now(held, "teller", ["read"])
            rows = {row.number: row for row in attached.kernel.caps.now("counter")}
            assert rows[made].lasting
            assert rows[made].expires == rows[held].expires > 0
            assert attached.kernel.revoke.now(made) == 1


def _until_it_fails(reader: Any) -> None:
    while True:
        reader.get.now("x")


def test_a_mint_has_its_badge_for_good(node: RealNode) -> None:
    with node.attach() as attached:
        root = next(row for row in attached.kernel.caps.now("counter") if row.parent == 0)
        made = attached.kernel.mint.now(root.number, 42, ["read"])
        row = next(row for row in attached.kernel.caps.now() if row.number == made)
        assert (row.badge, row.rights) == (42, ["read"])
        with pytest.raises(BadRequest, match="unbadged"):
            attached.kernel.mint.now(made, 43)


def test_a_lasting_grant_is_there_after_a_boot(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            root = next(row for row in attached.kernel.caps.now("counter") if row.parent == 0)
            made = attached.kernel.grant.now(root.number, "teller", ["read"])
        node.stop()
        node.boot()
        with node.attach() as attached:
            row = next(row for row in attached.kernel.caps.now("teller") if row.number == made)
            assert (row.holder, row.rights, row.lasting) == ("teller", ["read"], True)
            assert attached.kernel.revoke.now(made) == 1
        node.stop()
        node.boot()
        with node.attach() as attached:
            assert all(row.number != made for row in attached.kernel.caps.now())


def test_a_keyspace_is_opened_by_name(node: RealNode) -> None:
    with node.attach() as attached:
        rows = attached.keyspace("counter", ["read", "history"])
        before = len(rows.range.now(b"").items)
        attached.open("counter", Counter).add.now("by name", 5)
        assert attached.kernel.keyspaces.now()[0] == "kernel"
        assert len(rows.range.now(b"").items) == before + 1
        with pytest.raises(NotFound, match="did you mean 'counter'"):
            attached.keyspace("conter")
        with pytest.raises(NotAllowed):
            attached.keyspace("kernel", ["write"])
        assert attached.keyspace("kernel").range.now(b"").items


def test_a_server_is_loaded_stopped_and_remembered(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            what = Load(
                server="second",
                package=str(PACKAGES / "teller"),
                needs={"counter": ServerBinding(server="counter")},
            )
            row = attached.kernel.load.now(what)
            assert (row.state, row.interfaces) == ("serving", ["Teller"])
            assert attached.open("second", Teller).tell.now("x", 2) == 2
            with pytest.raises(BadRequest, match="free"):
                attached.kernel.load.now(what)
            with pytest.raises(BadRequest, match="counter"):
                attached.kernel.load.now(Load(server="third", package=str(PACKAGES / "teller")))
            assert "third" not in {row.server for row in attached.kernel.ps.now()}
            assert attached.kernel.stop.now("second").state == "stopped"
            with pytest.raises(WrongState):
                attached.open("second", Teller)
        node.stop()
        node.boot()
        with node.attach() as attached:
            state = {row.server: row.state for row in attached.kernel.ps.now()}
            assert state["second"] == "stopped"
            assert attached.kernel.restart.now("second").state == "serving"
            assert attached.open("second", Teller).total.now("x") == 2
        node.stop()
        node.boot()
        with node.attach() as attached:
            assert attached.open("second", Teller).total.now("x") == 2


@pytest.mark.parametrize("deadline", [-5.0, float("nan"), float("inf"), 1e12])
def test_a_deadline_that_is_none_changes_nothing(node: RealNode, deadline: float) -> None:
    """A server that was stopped by half would serve nobody, and nobody would be told."""
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        before = next(row for row in attached.kernel.ps.now() if row.server == "counter")
        for asked in (attached.kernel.stop, attached.kernel.restart):
            with pytest.raises(BadRequest, match="deadline: expected"):
                asked.now("counter", deadline)
        with pytest.raises(BadRequest, match="deadline: expected"):
            attached.kernel.swap.now(Swap(server="counter", deadline=deadline))
        with pytest.raises(BadRequest, match="deadline: expected"):
            attached.kernel.shutdown.now(deadline)
        after = next(row for row in attached.kernel.ps.now() if row.server == "counter")
        assert (after.state, after.pid) == ("serving", before.pid)
        counter.get.now("x")


def test_buffers_are_charged_and_given_back(node: RealNode) -> None:
    with node.attach() as attached:
        buffer = attached.buffer(1 << 20)
        buffer.view[:5] = b"hello"
        sealed = attached.kernel.buffer_seal.now(buffer.handle)
        found = attached._deliveries.buffer(sealed.token)
        assert found is not None
        assert (found.mode, bytes(found.view[:5])) == ("immutable", b"hello")
        buffer.view[:5] = b"other"
        assert bytes(found.view[:5]) == b"hello"
        with pytest.raises(BadRequest, match="immutable"):
            attached.kernel.buffer_revoke.now(sealed.number)
        with pytest.raises(QuotaExceeded):
            attached.buffer(1 << 40)
        attached.kernel.buffer_release.now(sealed.number)
        attached.kernel.buffer_release.now(buffer.handle)
        with pytest.raises(NotFound):
            attached.kernel.buffer_release.now(buffer.handle)


def test_what_is_looked_at_is_there(node: RealNode, tmp_path: Path) -> None:
    with node.attach() as attached:
        kernel = attached.kernel
        attached.open("counter", Counter).add.now("x")
        assert [offer.name for offer in kernel.interfaces.now("counter")] == ["Counter"]
        assert kernel.protection.now("counter").level == "process"
        assert {(edge.holder, edge.server) for edge in kernel.graph.now()} >= {
            ("teller", "counter"),
            ("counter", "state"),
        }
        first, *others = kernel.versions.now("counter")
        assert (first.server, first.running, others) == ("counter", True, [])
        changed = tmp_path / "changed" / "counter"
        shutil.copytree(PACKAGES / "counter", changed)
        (changed / "extra.py").write_text("")
        kernel.swap.now(Swap(server="counter", package=str(changed)))
        newer, older = kernel.versions.now("counter")
        assert (newer.running, older.version) == (True, first.version)
        assert newer.loaded > older.loaded > 0
        assert {row.client for row in kernel.channels.now("counter")} >= {"teller"}
        asked = Slice(cpu_weight=200, memory=256 << 20)
        assert kernel.set_slice.now("counter", asked).cpu_weight == 200
        assert kernel.slice.now("counter").memory == 256 << 20


def test_log_lines_come_with_their_fields_and_are_rows(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            attached.open("counter", Counter).say.now("here")
            seen = []
            for line in attached.kernel.logs.now(0, "counter", True):
                seen.append(line)
                if {"here", "printed here"} <= {line.text for line in seen}:
                    break
            assert any(line.text == "here" and line.fields["said"] == "yes" for line in seen)
        node.stop()
        node.boot()
        with node.attach() as attached:
            rows = attached.keyspace("kernel/log").range.now(b"g", b"h").items
            assert any(b"printed here" in (item.value or b"") for item in rows)


def test_what_a_filter_refuses_is_listed(tmp_path: Path) -> None:
    from atoll.microkernel.protection import probe

    if probe().notify:
        pytest.skip(f"refusals cannot be watched here: {probe().notify}")
    with booted(tmp_path, level="seccomp") as node, node.attach() as attached:
        assert attached.open("counter", Counter).forbidden.now() == "PermissionError"
        while not (found := [row for row in attached.kernel.refused.now("counter") if row.by == "seccomp"]):
            pass
        assert "kill" in found[0].what
