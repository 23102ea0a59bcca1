"""Death at each call that an import makes: each batch is in once, and it is counted as if nothing had been."""

from itertools import count
from typing import Any

import pytest

from atoll.ipc.context import in_hand
from atoll.ipc.durable import Start
from atoll.ipc.errors import PeerDied
from atoll.ipc.faults import FaultyTransport
from atoll.ipc.future import RawReply
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import Options
from atoll.servers.importer.interface import Importer
from atoll.servers.importer.server import OWNER, PART

from ..fatal import Countdown, Fatal
from .conftest import Node
from .files import batch, held, put, said

BATCHES = PART + 2


class Forgotten(FaultyTransport):
    """A way on which no step's call is known again: as where a node was down for longer than its store remembers commits."""

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        with in_hand(None):
            return super().start(method, payload, options)


def doomed(node: Node, at: int, way: type[FaultyTransport], *, after: bool) -> tuple[Any, Countdown]:
    countdown = Countdown(-1, after=after)
    served = node.importer(lambda transport: Fatal(way(transport), countdown))
    countdown.left, countdown.kill = at, served.host.kill
    return served, countdown


@pytest.mark.parametrize(("after", "way"), [(False, FaultyTransport), (True, Forgotten)])
def test_an_import_that_dies_at_any_call_has_one_effect_of_each_batch(
    node: Node, after: bool, way: type[FaultyTransport]
) -> None:
    died = 0
    expected: dict[str, list[object]] = {}
    for at in count(1):
        new = [batch(f"b-{at}-{number}", 2) for number in range(BATCHES)]
        there, back = new[1], new[PART]
        for each in (there, back):
            node.feedback.submit.now(each)
        node.feedback.rollback.now(back.id, "a test")
        file, id = put(node.storage, [*new, b"no batch"]), f"import-{at}"
        dying, countdown = doomed(node, at, way, after=after)
        first: Importer = dying.client(badge=5)
        try:
            first.bring_in.begin.now(Start(id=id), file)
            first.bring_in.result.now(id)
        except PeerDied:
            assert countdown.left <= 0
            died = at
        dying.stop()
        served = node.importer(way)
        again: Importer = served.client(badge=5)
        again.bring_in.begin.now(Start(id=id), file)
        done = again.bring_in.result.now(id)
        assert (done.taken, done.records) == (BATCHES - 2, 2 * (BATCHES - 2)), f"call {at}"
        assert (done.before, done.taken_back, done.refused) == (1, 1, 1), f"call {at}"
        assert done.revision == max(
            node.feedback.batch.now(each.id).revision for each in new[2:PART] + new[PART + 1 :]
        )
        expected |= said(each for each in new if each is not back)
        assert held(node.feedback) == expected, f"call {at}"
        assert node.storage_served.client(badge=4).references.now(OWNER) == []
        served.stop()  # a server runs once: two would take the workflows from one another
        if countdown.left > 0:
            break
    assert died >= BATCHES + 6, "the file, each batch, and the commits in between"
