"""Who commits at the store of a real node while another imports, by the revisions that each gets."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from atoll.ipc.future import Future
from atoll.ipc.system.state import Committed, State, Write
from atoll.servers.state.group import BULK_MOST

from .nodes import RealNode, halted

IMPORTERS = 9
BATCH = bytes(BULK_MOST * 3 // 5)
"""Two of these are more than a group takes of class `bulk`."""
ROUNDS = 6


@pytest.mark.parametrize("at_once", [True, False], ids=["commit", "finish"])
def test_who_does_not_import_goes_ahead_of_the_batches_that_wait(node: RealNode, *, at_once: bool) -> None:
    """Each importer's next batch is at the store before the rating is, and has a channel of its own, so that none waits for
    another before the store has taken it. How many of them a rating has ahead of it is by their class, and by where in its
    turn the store was held up: so the same is done by turns with importers that say nothing of their class."""
    with ExitStack() as stack:
        clients = [stack.enter_context(node.attach()) for _ in range(IMPORTERS + 2)]
        keyspaces = [each.keyspace("counter") for each in clients]
        # One rater was there before the importers, one came after them: in whichever order the store looks at channels.
        raters, importers = (keyspaces[0], keyspaces[-1]), keyspaces[1:-1]
        ahead: Counter[str] = Counter()
        for round_ in range(ROUNDS):
            for service in ("bulk", "normal"):
                key = f"{round_} {service}".encode()
                asked = [
                    prepared(each.with_(service=service), key + b" batch %d" % number, BATCH, at_once=at_once)
                    for number, each in enumerate(importers)
                ]
                asked += [
                    prepared(each, key + b" rating %d" % number, b"5", at_once=at_once)
                    for number, each in enumerate(raters)
                ]
                with halted(clients[0]):
                    started = [ask() for ask in asked]
                *batches, first, last = (each.result().revision for each in started)
                ahead[service] += sum(batch < rating for batch in batches for rating in (first, last))
        assert 3 * ahead["bulk"] < 2 * ahead["normal"]


def prepared(state: State, key: bytes, value: bytes, *, at_once: bool) -> Callable[[], Future[Committed]]:
    """What commits a row when it is called: itself, or as the end of a transaction that has it already."""
    writes = [Write(key, value)]
    if at_once:
        return lambda: state.commit.start(writes)
    transaction = state.begin.now(60.0)
    state.commit.now(writes, transaction=transaction)
    return lambda: state.finish.start(transaction)
