"""On a node: a transaction of more than a channel's message holds is told, to a program that watches and to a server that
follows."""

from pathlib import Path

from atoll.ipc.system.state import Write

from .nodes import booted, interface

Counter = interface("counter", "Counter")
ROWS = 3000


def test_who_follows_gets_past_a_large_transaction(tmp_path: Path) -> None:
    with booted(tmp_path) as node, node.attach() as me:
        counter = me.open("counter", Counter)
        counter.add.now("x")
        rows = me.keyspace("counter")
        before = rows.head.now()
        keys = [b"%04d" % number + b"y" * 450 for number in range(ROWS)]
        transaction = rows.begin.now(60.0)
        for start in range(0, ROWS, 1000):
            rows.commit.now(
                [Write(key, b"\x01") for key in keys[start : start + 1000]], transaction=transaction
            )
        large = rows.finish.now(transaction).revision
        told: list[bytes] = []
        for change in rows.watch.now(before):
            if change.revision == large:
                told += [item.key for item in change.items]
                if not change.more:
                    break
        assert told == keys
        while counter.get.now(keys[-1].decode()) != 1:
            pass
        assert counter.add.now("x") == 2
        (row,) = [row for row in me.kernel.ps.now() if row.server == "counter"]
        assert row.restarts == 0
