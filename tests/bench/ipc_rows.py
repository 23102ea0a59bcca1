"""Calls, streams and buffers beside their floors and peers."""

from pathlib import Path

from .frame import Contestant, Goal, Race, Row
from .peers import asyncio_stream, grpc_unix, megabyte, pipe, ring, trio_socket, zmq_ipc
from .placement import Placement, one_core, two_cores

RING, PIPE, TRIO, ASYNCIO = "bare ring, Python", "multiprocessing.Pipe", "trio socketpair", "asyncio stream"
ZMQ, GRPC, PAIR = "pyzmq", "gRPC", "C pair"
ATOLL = "atoll"


def rows(scratch: Path) -> list[Row]:
    """The rows that this machine's cores allow."""
    awake, parked = two_cores(), one_core()
    return [*(_awake(awake) if awake else []), _parked(parked), *_bulk(awake, parked)]


def _peers() -> list[Contestant]:
    return [
        Contestant(RING, ring.typed),
        Contestant("bare ring, C", ring.plain),
        Contestant(PIPE, pipe.typed),
        Contestant(TRIO, trio_socket.typed),
        Contestant(ASYNCIO, asyncio_stream.typed),
        Contestant(ZMQ, zmq_ipc.typed),
        Contestant(GRPC, grpc_unix.typed),
    ]


def _awake(placement: Placement) -> list[Row]:
    return [
        Race(
            group="ipc",
            name="typed call, 64 B, peers awake",
            unit="µs",
            contestants=_peers(),
            subject=ATOLL,
            goals=[Goal("<=", 1.8, RING), Goal("<=", 1 / 10, PIPE), Goal("<=", 1 / 100, GRPC)],
            placement=placement,
            bias="The bare ring checks nothing and spins for milliseconds; socket peers sleep each way.",
        ),
    ]


def _parked(placement: Placement) -> Row:
    return Race(
        group="ipc",
        name="typed call, 64 B, peer parked, one core",
        unit="µs",
        contestants=_peers(),
        subject=ATOLL,
        goals=[Goal("<=", 1 / 2, PIPE)],
        placement=placement,
        bias="The bare ring parks at once, without looking twice.",
    )


def _bulk(awake: Placement | None, parked: Placement) -> list[Row]:
    return [
        Race(
            group="ipc",
            name=f"1 MiB written, handed over and read, {placement.name}",
            unit="µs",
            contestants=[
                Contestant(PAIR, megabyte.pair),
                Contestant("two copies in one process", megabyte.copies),
            ],
            subject=ATOLL,
            goals=[Goal("<=", 1.2, PAIR)],
            placement=placement,
            bias="Write and read are one memcpy each, from and to private memory that stays in the cache.",
        )
        for placement in (awake, parked)
        if placement
    ]
