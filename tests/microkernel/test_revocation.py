"""The kernel's `revoke`, in a storm of calls: once it has returned, no call under what it took begins any more.

The server stands long between the check of a call and its handler, which is where a revocation that waits for nobody would
be too soon. It says of each call when that left there, by a clock that all processes share, read before the kernel can
see that it left: no such time may lie after `revoke` returned. So it is the order that is compared, however fast or slow.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import PeerDied, Revoked
from tests.kit.forked import forked

from .nodes import PACKAGES, RealNode, booted, interface

Threshold = interface("threshold", "Threshold")
MORE = f"""
[server.threshold]
package = "{PACKAGES}/threshold"
needs = {{}}
"""
BADGE = 7
BATCH = 8
SOME, MANY = 45, 10_000


@contextmanager
def node_with_threshold(folder: Path) -> Iterator[RealNode]:
    with booted(folder, more=MORE) as node:
        yield node


def lent(me: Attached, whole: int) -> tuple[int, Threshold]:
    """A capability of its own: its number, and what calls under it."""
    number = me.kernel.mint.now(whole, BADGE, ["read"])
    return number, me._deliveries.proxy(Threshold, me._port(number))


def called(threshold: Threshold, turn: int) -> tuple[list[int], bool]:
    """Some calls of a plain handler, of an async one, or of a stream's: when those began that did; whether one was
    refused."""
    began, refused = [], False
    match turn % 3:
        case 0:
            answers = [threshold.plain.start().result for _ in range(BATCH)]
        case 1:
            answers = [threshold.task.start().result for _ in range(BATCH)]
        case _:
            answers = [partial(next, threshold.streamed.now())]
    for answer in answers:
        try:
            began.append(answer())
        except Revoked:
            refused = True
    return began, refused


def storm(node: RealNode, orders: Connection) -> None:
    """Call as fast as is answered until it is refused, then tell when the last call began; for each order anew."""
    with node.attach() as me:
        whole = me.kernel.open.now("threshold", "Threshold").number
        for turn in iter(orders.recv, None):
            number, threshold = lent(me, whole)
            last, refused = max(called(threshold, turn)[0]), False
            orders.send(number)
            while not refused:
                began, refused = called(threshold, turn)
                last = max(last, *began, 0)
            orders.send(last)


@pytest.mark.parametrize("times", [SOME, pytest.param(MANY, marks=pytest.mark.soak)])
def test_no_call_begins_after_revoke_has_returned(tmp_path: Path, times: int) -> None:
    ours, theirs = Pipe()
    crossed = 0
    with node_with_threshold(tmp_path) as node, forked(lambda: storm(node, theirs)), node.attach() as me:
        for turn in range(times):
            ours.send(turn)
            number = ours.recv()
            asked = time.monotonic_ns()
            me.kernel.revoke.now(number)
            returned = time.monotonic_ns()
            last = ours.recv()
            assert last <= returned, f"revocation {turn}: a call began {last - returned} ns after it returned"
            crossed += last > asked
        ours.send(None)
    assert crossed, "no call began while its capability was being revoked: nothing was shown"


def test_a_loop_that_does_not_leave_its_window_is_ended_by_a_revocation(tmp_path: Path) -> None:
    with node_with_threshold(tmp_path) as node, node.attach() as me:
        opened = me.kernel.open.now("threshold", "Threshold")
        number, threshold = lent(me, opened.number)
        before = pid_of(me)
        me._deliveries.proxy(Threshold, me._port(opened.token)).stand.now()
        answer = threshold.plain.start()
        heard(me, "stands in its window")
        assert me.kernel.revoke.now(number) == 1
        with pytest.raises((PeerDied, Revoked)):
            answer.result()
        heard(me, "its loop did not move for 100 ms between a check and its handler")
        assert pid_of(me) != before


def pid_of(me: Attached) -> int:
    return next(row.pid for row in me.kernel.ps.now() if row.server == "threshold")


def heard(me: Attached, wanted: str) -> None:
    """Until a line about the server has these words."""
    assert any(wanted in line.text for line in me.kernel.logs.now(0, "threshold"))
