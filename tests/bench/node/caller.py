"""A client process that calls at a steady rate and says in the end what its calls went through."""

import os
import select
import sys
import time

import msgspec

from atoll.ipc.attach import connect
from atoll.ipc.errors import AtollError

from .. import children
from ..echo.interface import Echo


class Called(msgspec.Struct):
    """`astray`: calls that the server's count does not have, or has twice. Waits are in seconds."""

    calls: int
    seconds: float
    errors: int
    astray: int
    longest: float
    p999: float


def main(arguments: list[str]) -> None:
    folder, server, rate = arguments[0], arguments[1], int(arguments[2])
    with connect(folder) as node:
        count = node.open(server, Echo).count.now
        first = last = count()
        children.ready()
        waits, errors, answered = [], 0, 0
        began = due = time.perf_counter()
        while not select.select([sys.stdin], [], [], 0)[0]:
            due += 1 / rate
            while (early := due - time.perf_counter()) > 0:
                time.sleep(early)
            try:
                last = count()
                answered += 1
            except AtollError as error:
                errors += 1
                print(error, file=sys.stderr)
            waits.append(time.perf_counter() - due)
        seconds = time.perf_counter() - began
    waits.sort()
    called = Called(
        calls=answered,
        seconds=seconds,
        errors=errors,
        astray=abs(last - first - answered),
        longest=waits[-1],
        p999=waits[len(waits) * 999 // 1000],
    )
    os.write(1, msgspec.json.encode(called) + b"\n")
