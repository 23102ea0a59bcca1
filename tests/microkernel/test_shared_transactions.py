"""Transactions that span servers, in real nodes: both write or neither, whoever dies, also across a swap of the store."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import Aborted, PeerDied
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

[server.ledger]
package = "{PACKAGES}/ledger"
needs = {{ rows = {{ keyspace = "ledger", rights = ["read", "write", "history"] }} }}

[server.purse]
package = "{PACKAGES}/purse"

[server.purse.needs]
rows = {{ keyspace = "purse", rights = ["read", "write", "history"] }}
ledger = {{ server = "ledger", rights = ["read", "write"] }}
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("shared"), text=IMAGE) as made:
        yield made


class Parties:
    """The two servers, as started, and what their keyspaces hold: nothing to begin with."""

    def __init__(self, me: Attached) -> None:
        me.kernel.restart.now("purse")
        self.purse: Any = me.open("purse", interface("purse", "Purse"))
        self.own, self.theirs = me.keyspace("purse"), me.keyspace("ledger")
        for state in (self.own, self.theirs):
            state.commit.now([Write(item.key, None) for item in state.range.now(b"").items])

    @staticmethod
    def revisions(state: State) -> dict[str, int]:
        return {item.key.decode(): item.revision for item in state.range.now(b"").items}


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
        moving = parties.purse.move.start("k", 1, "put", True)
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
        moving = parties.purse.move.start("k", 1, "put", True)
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
        moving = parties.purse.move.start("k", 1, "put", True)
        parties.purse.held.now()
        parties.purse.die.cast()
        with pytest.raises(PeerDied):
            moving.result(60)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {}
        revision = parties.purse.move.now("k", 2)
        assert parties.revisions(parties.own) == parties.revisions(parties.theirs) == {"k": revision}
