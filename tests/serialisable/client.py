"""A client process of the node: so many transactions, each written down when it is over; and what it wrote, read back."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from atoll.ipc.attach import Node, connect
from atoll.ipc.errors import AtollError, NodeDown

from .anomalies import Append, Outcome, Read, Transaction
from .work import KEYSPACES, Client

TOLD: Final = 25
"""Transactions between two signs of life."""


class _Line(msgspec.Struct, array_like=True):
    began: int
    ended: int
    outcome: Outcome
    did: list[tuple[str, int | list[int]]]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


def line(transaction: Transaction) -> bytes:
    did = [
        (each.key, each.value if isinstance(each, Append) else list(each.values)) for each in transaction.did
    ]
    return _encode(_Line(transaction.began, transaction.ended, transaction.outcome, did)) + b"\n"


def transactions_in(log: Path) -> Iterator[Transaction]:
    with log.open("rb") as lines:
        for each in lines:
            found = _decode(each)
            did = [
                Append(key, what) if isinstance(what, int) else Read(key, tuple(what))
                for key, what in found.did
            ]
            yield Transaction(found.began, found.ended, found.outcome, tuple(did))


def main(folder: str, log: str, number: str, count: str) -> None:
    """When the node goes down it waits for a line on its standard input, and attaches again."""
    with open(log, "wb") as file, contextlib.ExitStack() as attached:
        client = Client({}, int(number), lambda transaction: write(file.write(line(transaction))))

        def write(_: int) -> None:
            nonlocal written
            written += 1
            if written % TOLD == 0:
                os.write(1, b"%s\n" % number.encode())

        def attach() -> Node:
            node = attached.enter_context(connect(folder))
            client.stores = {name: node.keyspace(name) for name in KEYSPACES}
            return node

        written = 0
        node = attach()
        while written < int(count):
            try:
                for commit in client.one():
                    if commit is not None:
                        with contextlib.suppress(AtollError):
                            commit.result()
            except NodeDown:
                node.close()
                if not sys.stdin.readline():
                    return
                node = attach()


if __name__ == "__main__":
    main(*sys.argv[1:])
