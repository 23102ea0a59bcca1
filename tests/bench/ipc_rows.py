"""Calls, streams and buffers beside their floors and peers."""

from pathlib import Path

from .frame import Contestant, Goal, Race, Row, Survey
from .node import crowd, echoes
from .node.booted import Booted
from .peers import asyncio_stream, atoll, blocks, grpc_unix, megabyte, pipe, ring, trio_socket, zmq_ipc
from .placement import Placement, one_core, two_cores

RING, PIPE, TRIO, ASYNCIO = "bare ring, Python", "multiprocessing.Pipe", "trio socketpair", "asyncio stream"
ZMQ, GRPC, PAIR = "pyzmq", "gRPC", "C pair"
LEVEL = "sandbox"
ATOLL = f"atoll, {LEVEL}"
CALL = "64 B call"


def rows(scratch: Path) -> list[Row]:
    """The rows that this machine's cores allow."""
    awake, parked = two_cores(), one_core()
    pair, booted = awake or parked, Booted(scratch)
    return [
        *(_awake(booted, awake) if awake else []),
        _parked(booted, parked),
        *_loops(booted, pair),
        *_streams(booted, pair),
        *_surveys(booted),
        *_grants(booted, pair),
        *_bulk(booted, awake, parked),
    ]


def _peers(booted: Booted) -> list[Contestant]:
    return [
        Contestant(ATOLL, blocks.blocking(echoes.at(booted, LEVEL), "exchange")),
        Contestant(RING, ring.typed),
        Contestant("bare ring, C", ring.plain),
        Contestant("atoll, seccomp", blocks.blocking(echoes.at(booted, "seccomp"), "exchange")),
        Contestant("atoll, process", blocks.blocking(echoes.at(booted, "process"), "exchange")),
        Contestant("atoll, no kernel", atoll.typed),
        Contestant(PIPE, pipe.typed),
        Contestant(TRIO, trio_socket.typed),
        Contestant(ASYNCIO, asyncio_stream.typed),
        Contestant(ZMQ, zmq_ipc.typed),
        Contestant(GRPC, grpc_unix.typed),
    ]


def _awake(booted: Booted, placement: Placement) -> list[Row]:
    return [
        Race(
            group="ipc",
            name="typed call, 64 B, peers awake",
            unit="µs",
            contestants=_peers(booted),
            subject=ATOLL,
            goals=[Goal("<=", 1.8, RING), Goal("<=", 1 / 10, PIPE), Goal("<=", 1 / 100, GRPC)],
            placement=placement,
            bias="The bare ring checks nothing and spins for milliseconds; socket peers sleep each way.",
        ),
    ]


def _parked(booted: Booted, placement: Placement) -> Row:
    return Race(
        group="ipc",
        name="typed call, 64 B, peer parked, one core",
        unit="µs",
        contestants=_peers(booted),
        subject=ATOLL,
        goals=[Goal("<=", 1 / 2, PIPE)],
        placement=placement,
        bias="The bare ring parks at once, without looking twice.",
    )


def _loops(booted: Booted, placement: Placement) -> list[Row]:
    """Calls that an event loop on one side or the other takes part in."""

    echo = echoes.at(booted, LEVEL)

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
            [Contestant(ATOLL, blocks.blocking(echo, "exchange_async")), Contestant(TRIO, trio_socket.typed)],
            Goal("<=", 1 / 4, TRIO),
        ),
        race(
            "typed call, asyncio client",
            [Contestant(ATOLL, blocks.from_asyncio(echo)), Contestant(ASYNCIO, asyncio_stream.typed)],
            Goal("<=", 1 / 2, ASYNCIO),
        ),
        race(
            "typed call, trio client",
            [Contestant(ATOLL, blocks.from_trio(echo)), Contestant(TRIO, trio_socket.typed)],
            None,
        ),
        race(
            f"typed calls, {blocks.UNDER_WAY} under way",
            [
                Contestant(ATOLL, blocks.pipelined(echo), operations=blocks.UNDER_WAY),
                Contestant(RING, ring.typed),
            ],
            None,
        ),
    ]


def _streams(booted: Booted, placement: Placement) -> list[Row]:
    return [
        Race(
            group="ipc",
            name=f"stream of 64 B typed items, {how}",
            unit="1/s",
            contestants=[Contestant(ATOLL, blocks.streamed(echoes.at(booted, LEVEL), method))],
            subject=ATOLL,
            goals=[Goal(">=", least)],
            placement=placement,
        )
        for how, method, least in (
            ("batched", "items", 1_000_000),
            ("one a record", "items_singly", 400_000),
        )
    ]


def _surveys(booted: Booted) -> list[Row]:
    return [
        Survey("ipc", "8 clients, one server, two cores", lambda: crowd.figures(booted, LEVEL, 8, 1.0)),
        Survey("ipc", "100 pairs started from parked", lambda: atoll.started_parked(100)),
        Survey("ipc", "typed call beside one busy Python thread", atoll.beside_a_busy_thread),
    ]


def _grants(booted: Booted, placement: Placement) -> list[Row]:
    return [
        Survey("ipc", "1 MiB granted for the first time", lambda: echoes.first_grants(booted, LEVEL)),
        Race(
            group="ipc",
            name="1 MiB granted before, handed over",
            unit="µs",
            contestants=[
                Contestant(ATOLL, echoes.handed_over(booted, LEVEL)),
                Contestant(CALL, blocks.blocking(echoes.at(booted, LEVEL), "exchange")),
            ],
            subject=ATOLL,
            goals=[Goal("<=", 2, CALL)],
            placement=placement,
        ),
    ]


def _bulk(booted: Booted, awake: Placement | None, parked: Placement) -> list[Row]:
    return [
        Race(
            group="ipc",
            name=f"1 MiB written, handed over and read, {placement.name}",
            unit="µs",
            contestants=[
                Contestant(ATOLL, echoes.written_and_read(booted, LEVEL)),
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
