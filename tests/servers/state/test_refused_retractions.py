"""A call under a transaction that comes to nothing at a store which has too much in hand to hear of it at once."""

from pathlib import Path

import pytest

from atoll.ipc.bound import bind as proxy_over
from atoll.ipc.bound import transport_of
from atoll.ipc.errors import AtollError, NotFound, Overloaded, QuotaExceeded
from atoll.ipc.faults import FaultyTransport
from atoll.ipc.future import RawFuture, RawReply
from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.method import MethodSpec
from atoll.ipc.serve import Serves, bind
from atoll.ipc.system.state import State
from atoll.ipc.transport import Options

from .direct import Node
from .test_keyspace import rows
from .test_parts_beside_one_another import Till
from .test_server import ALL


class Full(FaultyTransport):
    """Turns the first retraction away, as a server does that has as many calls in hand as it takes."""

    refusal: AtollError | None

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        if method is not State.retract.spec or self.refusal is None:
            return super().start(method, payload, options)
        refused = RawFuture()
        refused.fail(self.refusal)
        self.refusal = None
        return refused


class Spends(Serves[Till]):
    """Writes, and comes to nothing."""

    rows: Keyspace[int]

    @Till.pay.serve
    async def pay(self, key: str, sum: int) -> int:
        await settled(self.rows.put(key, sum))
        raise NotFound("money", key)


@pytest.mark.parametrize("refusal", [Overloaded("State.retract"), QuotaExceeded("all", "pending", 1)])
async def test_what_a_failed_call_wrote_is_not_committed_by_an_owner_that_goes_on(
    tmp_path: Path, refusal: AtollError
) -> None:
    async with rows(tmp_path) as (node, keyspace, kernel):
        theirs = Keyspace[int](node.proxy(State, await kernel.make_keyspace("theirs"), ALL, client=9), int)
        till = Node(bind(Spends, {"rows": theirs})).proxy(Till, 0, {"write"}, client=4)
        full = Full(transport_of(keyspace.state))
        full.refusal = refusal
        keyspace.state = proxy_over(State, full)
        async with keyspace.transaction() as transaction:
            with pytest.raises(AtollError):
                await transaction.share(till).pay("x", 1)
            transaction.put("a", 1)
        assert full.refusal is None
        assert (await keyspace.get("a"), await theirs.get("x")) == (1, None)
