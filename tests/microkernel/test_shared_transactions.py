"""Transactions that span servers, in real nodes: both write or neither, whoever dies, also across a swap of the store."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import Aborted, NodeDown, PeerDied
from atoll.ipc.system.kernel import Swap
from atoll.ipc.system.state import State, Write

from .nodes import PACKAGES, RealNode, booted, interface

IMAGE = f"""
[image]
name = "test"

[node]
level = "process"
account = "all"

[account.all]
channels = 256

[keyspace.purse]
[keyspace.ledger]

[server.state]
needs = {{}}
restart = {{ limit = 1000, most = 0.1 }}

[server.ledger]
restart = {{ limit = 1000, most = 0.1 }}
package = "{PACKAGES}/ledger"
needs = {{ rows = {{ keyspace = "ledger", rights = ["read", "write", "history"] }} }}

[server.purse]
package = "{PACKAGES}/purse"
restart = {{ limit = 1000, most = 0.1 }}

[server.purse.needs]
rows = {{ keyspace = "purse", rights = ["read", "write", "history"] }}
ledger = {{ server = "ledger", rights = ["read", "write"] }}
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("shared"), text=IMAGE) as made:
        yield made


CLIENT = f"""
import sys
sys.path.insert(0, {str(PACKAGES)!r})
from atoll.ipc.attach import connect
from purse.interface import Purse

with connect(sys.argv[1]) as me:
    me.open("purse", Purse).move.now("k", 1, "put", sys.argv[2])
"""
STEPS = ("begun", "told", "asked", "written", "answered", "committed")


class Parties:
    """The two servers, and what their keyspaces hold. `afresh`: as started, and nothing to begin with."""

    def __init__(self, me: Attached, *, afresh: bool = True) -> None:
        if afresh:
            me.kernel.restart.now("purse")
        self.purse: Any = me.open("purse", interface("purse", "Purse"))
        self.ledger: Any = me.open("ledger", interface("ledger", "Ledger"))
        self.own, self.theirs = me.keyspace("purse"), me.keyspace("ledger")
        for state in (self.own, self.theirs) if afresh else ():
            state.commit.now([Write(item.key, None) for item in state.range.now(b"").items])

    def halted(self, step: str) -> Any:
        """Who waits at a step, once it does."""
        waits = self.ledger if step in ("asked", "written") else self.purse
        waits.held.now()
        return waits

    @staticmethod
    def revisions(state: State, as_of: int | None = None) -> dict[str, int]:
        return {item.key.decode(): item.revision for item in state.range.now(b"", as_of=as_of).items}

    def both(self) -> tuple[dict[str, int], dict[str, int]]:
        """What the two keyspaces hold at one moment: a commit may still be on its way."""
        head = self.own.head.now()
        return self.revisions(self.own, head), self.revisions(self.theirs, head)


def test_both_are_written_at_one_revision(node: RealNode) -> None:
    with node.attach() as me:
        parties = Parties(me)
        revision = parties.purse.move.now("k", 1)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {"k": revision}
        who = parties.theirs.who.now(revision)
        assert who is not None and (who.keyspace, who.others) == ("purse", ("ledger",))


def test_a_callee_that_dies_is_undone_and_the_owner_goes_on(node: RealNode) -> None:
    with node.attach() as me:
        parties = Parties(me)
        revision = parties.purse.move.now("k", 1, "put_and_die")
        assert parties.revisions(parties.own) == {"k": revision, "k failed": revision}
        assert parties.revisions(parties.theirs) == {}
        assert parties.purse.move.now("again", 1) > revision  # the ledger was restarted


def test_a_call_that_is_done_once_is_done_once_though_its_callee_dies(node: RealNode) -> None:
    """It is asked again of the callee's next process, which must find nothing of what the first one wrote."""
    with node.attach() as me:
        parties = Parties(me)
        moving = parties.purse.move.start("k", 1, "add_once", "written")
        parties.ledger.held.now()
        dead = next(row.pid for row in me.kernel.ps.now() if row.server == "ledger")
        os.kill(dead, signal.SIGKILL)
        parties.ledger.held.now()
        parties.ledger.let_go.now()
        revision = moving.result(60)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {"k": revision}
        assert parties.ledger.get.now("k") == 1


def test_a_call_that_is_done_once_is_done_once_though_its_callee_is_swapped(node: RealNode) -> None:
    with node.attach() as me:
        parties = Parties(me)
        moving = parties.purse.move.start("k", 1, "add_once", "written")
        parties.ledger.held.now()
        me.kernel.swap.now(Swap(server="ledger", deadline=0.1))
        parties.ledger.held.now()
        parties.ledger.let_go.now()
        revision = moving.result(60)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {"k": revision}
        assert parties.ledger.get.now("k") == 1


def test_a_transaction_of_a_program_that_left_is_no_more(node: RealNode) -> None:
    with node.attach() as me:
        parties = Parties(me)
        with node.attach() as other:
            other.keyspace("purse").begin.now(3600.0)
            assert parties.own.statistics.now()["transactions"] == 1
        while parties.own.statistics.now()["transactions"]:
            assert parties.purse.move.now("k", 1)


def test_what_a_callee_writes_after_its_deadline_is_refused(node: RealNode) -> None:
    with node.attach() as me:
        parties = Parties(me)
        revision = parties.purse.move.now("k", 1, "put_and_wait")
        assert parties.revisions(parties.own) == {"k": revision, "k failed": revision}
        assert parties.purse.move.now("after", 1) > revision
        assert set(parties.revisions(parties.theirs)) == {"after"}


def test_a_swap_of_the_store_hands_open_transactions_over(node: RealNode) -> None:
    with node.attach() as me:
        parties = Parties(me)
        moving = parties.purse.move.start("k", 1, "put", "answered")
        parties.purse.held.now()
        assert parties.own.statistics.now()["transactions"] == 1
        before = next(row.pid for row in me.kernel.ps.now() if row.server == "state")
        swapped = me.kernel.swap.now(Swap(server="state"))
        assert swapped.handed_over > len("{}")  # it was not empty
        assert next(row.pid for row in me.kernel.ps.now() if row.server == "state") != before
        assert parties.own.statistics.now()["transactions"] == 1
        assert parties.revisions(parties.own) == {}
        parties.purse.let_go.now()
        revision = moving.result(60)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {"k": revision}


def test_a_crash_of_the_store_aborts_and_nothing_is_written(node: RealNode) -> None:
    with node.attach() as me:
        parties = Parties(me)
        moving = parties.purse.move.start("k", 1, "put", "answered")
        parties.purse.held.now()
        os.kill(next(row.pid for row in me.kernel.ps.now() if row.server == "state"), signal.SIGKILL)
        parties.purse.let_go.now()
        with pytest.raises(Aborted):
            moving.result(60)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {}
        assert parties.purse.move.now("k", 2) > 0


def test_a_crash_of_the_owner_leaves_nothing(node: RealNode) -> None:
    with node.attach() as me:
        parties = Parties(me)
        moving = parties.purse.move.start("k", 1, "put", "answered")
        parties.purse.held.now()
        parties.purse.die.cast()
        with pytest.raises(PeerDied):
            moving.result(60)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {}
        revision = parties.purse.move.now("k", 2)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {"k": revision}


def kill(me: Attached, server: str) -> None:
    os.kill(next(row.pid for row in me.kernel.ps.now() if row.server == server), signal.SIGKILL)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", ["purse", "ledger", "state"])
def test_a_server_killed_at_each_step_leaves_all_or_nothing(node: RealNode, victim: str, step: str) -> None:
    """The owner, whom it called, the store. What the client was told is so."""
    with node.attach() as me:
        parties = Parties(me)
        moving = parties.purse.move.start("k", 1, "put", step)
        waits = parties.halted(step)
        kill(me, victim)
        if waits is not (
            parties.purse if victim == "purse" else parties.ledger if victim == "ledger" else None
        ):
            waits.let_go.now()
        try:
            revision = moving.result(60)
        except (Aborted, PeerDied):
            revision = 0
        own, theirs = parties.both()
        if victim == "ledger" and step in ("asked", "written"):
            assert (own, theirs) == ({"k": revision, "k failed": revision}, {})
        elif step == "committed":
            assert own == theirs and set(own) == {"k"}
            assert revision == (0 if victim == "purse" else own["k"])
        elif victim == "ledger":
            assert own == theirs == {"k": revision}
        else:
            assert (own, theirs, revision) == ({}, {}, 0)
        assert parties.purse.move.now("after", 1) > revision


@pytest.mark.parametrize("step", STEPS)
def test_a_client_killed_at_each_step_leaves_all_or_nothing(node: RealNode, step: str) -> None:
    with node.attach() as me:
        parties = Parties(me)
        with subprocess.Popen([sys.executable, "-c", CLIENT, str(node.folder), step]) as client:
            waits = parties.halted(step)
            client.kill()
        waits.let_go.now()
        parties.purse.ended.now()
        own, theirs = parties.both()
        assert own == theirs and set(own) <= {"k"}
        assert own or step != "committed"
        assert parties.purse.move.now("after", 1) > own.get("k", 0)


@pytest.mark.parametrize("step", STEPS)
def test_a_kernel_killed_at_each_step_leaves_all_or_nothing(node: RealNode, step: str) -> None:
    with node.attach() as me:
        parties = Parties(me)
        moving = parties.purse.move.start("k", 1, "put", step)
        parties.halted(step)
        node.kill()
        with pytest.raises((NodeDown, PeerDied)):
            moving.result(60)
    node.boot()
    with node.attach() as me:
        parties = Parties(me, afresh=False)
        own, theirs = parties.both()
        assert own == theirs and set(own) == ({"k"} if step == "committed" else set())
        assert parties.purse.move.now("after", 1) > own.get("k", 0)
