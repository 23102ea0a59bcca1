"""Calls, streams and buffers beside their floors and peers."""

from pathlib import Path

from .frame import Contestant, Goal, Race, Row, Survey
from .peers import asyncio_stream, atoll, grpc_unix, megabyte, pipe, ring, trio_socket, zmq_ipc
from .placement import Placement, one_core, two_cores

RING, PIPE, TRIO, ASYNCIO = "bare ring, Python", "multiprocessing.Pipe", "trio socketpair", "asyncio stream"
ZMQ, GRPC, PAIR = "pyzmq", "gRPC", "C pair"
ATOLL = "atoll"


def rows(scratch: Path) -> list[Row]:
    """The rows that this machine's cores allow."""
    awake, parked = two_cores(), one_core()
    pair = awake or parked
    return [
        *(_awake(awake) if awake else []),
        _parked(parked),
        *_loops(pair),
        *_streams(pair),
        *_surveys(),
        *_bulk(awake, parked),
    ]


def _peers() -> list[Contestant]:
    return [
        Contestant(ATOLL, atoll.typed),
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


def _loops(placement: Placement) -> list[Row]:
    """Calls that an event loop on one side or the other takes part in."""

    def race(name: str, contestants: list[Contestant], goal: Goal | None) -> Row:
        return Race(
            group="ipc",
            name=name,
            unit="µs",
            contestants=contestants,
            subject=ATOLL,
            goals=[goal] if goal else [],
            placement=placement,
        )

    return [
        race(
            "typed call, async handler",
            [Contestant(ATOLL, atoll.handled_async), Contestant(TRIO, trio_socket.typed)],
            Goal("<=", 1 / 4, TRIO),
        ),
        race(
            "typed call, asyncio client",
            [Contestant(ATOLL, atoll.from_asyncio), Contestant(ASYNCIO, asyncio_stream.typed)],
            Goal("<=", 1 / 2, ASYNCIO),
        ),
        race(
            "typed call, trio client",
            [Contestant(ATOLL, atoll.from_trio), Contestant(TRIO, trio_socket.typed)],
            None,
        ),
        race(
            "typed calls, 100 under way",
            [Contestant(ATOLL, atoll.pipelined, operations=100), Contestant(RING, ring.typed)],
            None,
        ),
    ]


def _streams(placement: Placement) -> list[Row]:
    return [
        Race(
            group="ipc",
            name=f"stream of 64 B typed items, {how}",
            unit="1/s",
            contestants=[Contestant(ATOLL, opened)],
            subject=ATOLL,
            goals=[Goal(">=", least)],
            placement=placement,
        )
        for how, opened, least in (
            ("batched", atoll.streamed, 1_000_000),
            ("one a record", atoll.streamed_singly, 400_000),
        )
    ]


def _surveys() -> list[Row]:
    return [
        Survey("ipc", "8 clients, one server, two cores", lambda: atoll.many_clients(8, 1.0)),
        Survey("ipc", "100 pairs started from parked", lambda: atoll.started_parked(100)),
        Survey("ipc", "typed call beside one busy Python thread", atoll.beside_a_busy_thread),
    ]


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
