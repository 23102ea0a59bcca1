"""Compaction in a real node, beside writers, readers, kills and swaps of the store."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.system.kernel import Swap
from atoll.ipc.system.state import Compacted, Retention, State, Write

from .nodes import PACKAGES, RealNode, booted, interface

IMAGE = """
[image]
name = "test"

[node]
level = "process"
account = "all"

[account.all]
channels = 256

[keyspace.ledger]
retention = "{retention}"

[server.state]
needs = {{ config = {{ config = {{ grace = 0.0, remember = 1000.0, compact_every = 0.02 }} }} }}
readers = {{ most = 1, above = 1 }}

[server.ledger]
package = "{packages}/ledger"
needs = {{ rows = {{ keyspace = "ledger", rights = ["read", "write", "history"] }} }}
"""


@contextmanager
def node_that_forgets(folder: Path) -> Iterator[RealNode]:
    with booted(folder, text=IMAGE.format(retention="0s", packages=PACKAGES)) as node:
        yield node


def removed(state: State) -> int:
    return state.horizon.now().versions


def write_until_removed(me: Attached, state: State, count: int) -> None:
    """Writes, by a server and past it, until that many versions more were removed."""
    ledger = me.open("ledger", interface("ledger", "Ledger"))
    wanted = removed(state) + count
    begun = 0
    while removed(state) < wanted:
        begun += 20
        for number in range(begun, begun + 20):
            key = b"key %d" % (number % 5)
            state.commit.now([Write(key, b"%d" % number * 50), Write(b"passing %d" % number, b"")])
            state.commit.now([Write(b"passing %d" % number, None)])
            ledger.put.now("served", number)
        assert ledger.get.now("served") == number
        item = state.get.now(b"key %d" % (number % 5))
        assert item is not None and item.value == b"%d" % number * 50


def test_the_past_is_given_up_beside_all_that_goes_on(tmp_path: Path) -> None:
    with node_that_forgets(tmp_path) as node, node.attach() as me:
        state = me.keyspace("ledger")
        first = state.commit.now([Write(b"pinned", b"then")]).revision
        state.pin.now("kept", first, "to be read at the end")
        state.commit.now([Write(b"pinned", b"now")])
        write_until_removed(me, state, 300)
        (writer,) = [row for row in me.kernel.ps.now() if row.server == "state"]
        os.kill(writer.pid, signal.SIGKILL)
        write_until_removed(me, state, 300)
        me.kernel.swap.now(Swap(server="state"))
        write_until_removed(me, state, 300)
        horizon = state.horizon.now()
        assert horizon.compacted
        item = state.get.now(b"pinned", first)
        assert item is not None and item.value == b"then"
        for _ in range(3):  # one at least is asked of a reader
            with pytest.raises(Compacted) as gone:
                state.range.now(b"", as_of=first + 1)
            assert gone.value.horizon >= horizon.revision
        with pytest.raises(Compacted):
            next(iter(state.watch.now(first)))
    with (
        booted(tmp_path, text=IMAGE.format(retention="900d", packages=PACKAGES)) as node,
        node.attach() as me,
    ):
        state = me.keyspace("ledger")
        assert state.horizon.now().retention == Retention(age=900 * 86400.0)
        assert state.horizon.now().revision >= horizon.revision
        assert [pin.revision for pin in state.pins.now()] == [first]
