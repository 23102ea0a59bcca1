"""A peer that writes what it likes: whoever reads it says `PeerMisbehaved`, names the check, and lives on."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

import msgspec
import pytest

from atoll.ipc.errors import AtollError, PeerMisbehaved
from atoll.ipc.system.control import Shape
from atoll.native import Kind
from tests.kit.forked import forked
from tests.kit.serving import Memory, Serving, serving

from .attack import LINE, Attacker, Record
from .suite import Server, Target

SMALL = Shape(ring_bits=12, bulk_bits=12)
BULK = 1
encode = msgspec.msgpack.encode
NORMAL = 1

WRONG_HEADERS = {
    "flags": {"flags": 8},
    "lane": {"lane": 0},
    "epoch": {"epoch": 9},
    "length": {"length": 1 << 11},
    "bulk range": {"flags": BULK, "length": 100, "bulk": (1 << 12) - 99},
}
HUGE_HEADERS = {
    "length": {"length": 2**32 - 1},
    "bulk range": {"flags": BULK, "length": 2**32 - 1, "bulk": 2**64 - 2**31},
}
ATTACKS = [*WRONG_HEADERS.items(), *HUGE_HEADERS.items()]


@pytest.fixture
def served() -> Iterator[Serving]:
    """The second client is honest, and must notice nothing."""
    with serving(Server, shape=SMALL, clients=1) as served:
        yield served
        assert served.proxies[0].double.now(21) == 42
        assert served.stop() == 0


def call(served: Serving, memory: Memory, method: str, **fields: int) -> Record:
    port = served.grant(memory, Target)
    number = next(m.spec.number for m in served.methods(Target) if m.name == method)
    return replace(Record(0, method=number, slot=port.slot), **fields)


# against a server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "fields"), [*ATTACKS, ("kind", {"kind": Kind.REPLY}), ("kind", {"kind": 0})]
)
def test_a_server_names_what_a_client_wrote_wrong(
    served: Serving, check: str, fields: dict[str, int]
) -> None:
    memory = served.add_channel()
    Attacker(memory, server=False).write(call(served, memory, "double", **fields))
    found = served.until_misbehaved()
    assert (found.channel, found.check) == (memory.number, check)


@pytest.mark.parametrize("index", [-LINE, 1, 1 << 20, 2**63])
def test_a_server_sees_a_client_that_claims_replies_it_cannot_have_taken(served: Serving, index: int) -> None:
    memory = served.add_channel()
    attacker = Attacker(memory, server=False)
    payload = encode([b"x" * 1000])
    served.observe()  # it has the channel now: what the index held before would not count
    attacker.rewind(NORMAL, memory.base + index)
    record = call(served, memory, "mirror", length=len(payload))
    for request in range(1, 5):
        attacker.write(replace(record, request=request), payload)
        while request < 4 and memory.taken()[NORMAL] != attacker.position[NORMAL]:
            served.observe()
    found = served.until_misbehaved()  # the fourth reply needs room that only a reader could have made
    assert (found.channel, found.check) == (memory.number, "consumed index")


@pytest.mark.parametrize(
    ("method", "kind", "payload", "check"),
    [
        ("total", Kind.CREDIT, encode(1), "record of no stream"),
        ("hold", Kind.ITEM, encode([b"x"]), "record of no stream"),
        ("hold", Kind.END, b"", "record of no stream"),
        ("total", Kind.ITEM, b"\xc1", "stream record"),
        ("total", Kind.ITEM, encode([1, 2]), "stream record"),
        ("total", Kind.ITEM, encode([b"x"] * 300), "upload without credit"),
    ],
)
def test_a_server_names_a_record_that_does_not_fit_its_call(
    served: Serving, method: str, kind: Kind, payload: bytes, check: str
) -> None:
    memory = served.add_channel()
    attacker = Attacker(memory, server=False)
    opened = encode([])
    attacker.write(call(served, memory, method, length=len(opened)), opened)
    attacker.write(Record(0, kind=kind, length=len(payload)), payload)
    found = served.until_misbehaved()
    assert (found.channel, found.check) == (memory.number, check)


def test_a_header_that_comes_and_goes_is_never_read_where_it_is_not(served: Serving) -> None:
    """The commit word flickers while the server looks: a valid call must be taken whole or not at all."""
    memory = served.add_channel()
    attacker = Attacker(memory, server=False)
    payload = encode([1])
    record = call(served, memory, "double", length=len(payload))
    words = memoryview(memory.mapped).cast("Q")

    def flicker() -> None:
        for _ in range(200):
            at = (attacker.ring(NORMAL) + (attacker.position[NORMAL] & 4095)) // 8
            commit = attacker.position[NORMAL] + 1
            attacker.write(record, payload)
            for _turn in range(200):
                words[at] = 0
                words[at] = commit

    with forked(flicker):
        for number in range(2000):
            assert served.proxies[0].double.now(number) == number * 2
    words.release()
    served.close_channel(memory)  # its replies were never taken: a drain would wait for them


# against a client -----------------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[Serving]:
    """A server that takes nothing: the test answers in its place."""
    with serving(Server, shape=SMALL, clients=1) as served:
        served.drain()
        yield served


@pytest.mark.parametrize(
    ("check", "fields"), [*ATTACKS, ("kind", {"kind": Kind.CALL}), ("kind", {"kind": 255})]
)
def test_a_client_names_what_its_server_wrote_wrong(
    silent: Serving, check: str, fields: dict[str, int]
) -> None:
    memory = silent.channels[0]
    Attacker(memory, server=True).write(replace(Record(0, kind=Kind.REPLY), **fields))
    with pytest.raises(PeerMisbehaved, match=check):
        silent.proxies[0].double.now(1)
    assert silent.accused == [(memory.number, check)]
    with pytest.raises(PeerMisbehaved):
        silent.proxies[0].double.now(1)


def test_a_client_sees_a_server_that_claims_requests_it_cannot_have_taken(silent: Serving) -> None:
    memory = silent.channels[0]
    Attacker(memory, server=True).rewind(NORMAL, memory.base + 64 * 1000)

    def fill() -> None:
        for _ in range(100):
            silent.proxies[0].mirror.start(b"x" * 1000)

    with pytest.raises(PeerMisbehaved, match="consumed index"):
        fill()
    assert silent.accused == [(memory.number, "consumed index")]


@pytest.mark.parametrize(
    ("start", "kind", "payload", "check"),
    [
        (lambda p: p.double.start(1).result, Kind.ITEM, encode([b"x"]), "kind of reply"),
        (lambda p: p.double.start(1).result, Kind.END, b"", "kind of reply"),
        (lambda p: p.numbers.now(5).__next__, Kind.ITEM, b"\xc1", "items"),
        (lambda p: p.numbers.now(5).__next__, Kind.CREDIT, b"\xc1", "credit"),
    ],
)
def test_a_client_names_a_record_that_does_not_fit_its_call(
    silent: Serving, start: Callable[[Target], Callable[[], object]], kind: Kind, payload: bytes, check: str
) -> None:
    result = start(silent.proxies[0])
    record = Record(0, kind=kind, length=len(payload))
    Attacker(silent.channels[0], server=True).write(record, payload)
    with pytest.raises(PeerMisbehaved, match=check):
        result()
    assert silent.accused == [(silent.channels[0].number, check)]


@pytest.mark.parametrize("kind", [Kind.REPLY, Kind.FAULT])
@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xff" * 40, encode("no number"), encode({"a": [1]})])
def test_a_reply_that_is_none_is_an_error_of_the_peer(silent: Serving, kind: Kind, payload: bytes) -> None:
    future = silent.proxies[0].double.start(1)
    Attacker(silent.channels[0], server=True).write(Record(0, kind=kind, length=len(payload)), payload)
    with pytest.raises(AtollError):
        future.result()


# everything at random -------------------------------------------------------------------------------------------------


def scribble(memory: Memory, seed: int) -> None:
    """Random bytes anywhere, random words where they matter, doorbells flooded and drained; until killed."""
    chance = random.Random(seed)
    size = len(memory.mapped)
    words = memoryview(memory.mapped).cast("Q")
    while True:
        match chance.randrange(5):
            case 0:
                at, length = chance.randrange(size), chance.randrange(1, 4096)
                memory.mapped[at : at + length] = chance.randbytes(len(memory.mapped[at : at + length]))
            case 1:
                words[chance.randrange(64)] = chance.getrandbits(64)
            case 2:
                words[chance.randrange(512, 4096)] = memory.base + chance.randrange(1 << 16) + 1
            case 3:
                for end in (memory.client_bell, memory.server_bell):
                    end.setblocking(False)
                    try:
                        end.send(b"!" * 500) if chance.random() < 0.5 else end.recv(500)
                    except BlockingIOError:
                        continue
            case 4:
                memory.wake_client()
                memory.wake_server()


@pytest.mark.parametrize("seed", range(6))
def test_random_bytes_over_a_channel_in_use_harm_nobody_else(served: Serving, seed: int) -> None:
    honest = served.proxies[0]
    for turn in range(3):
        victim = served.proxy(Target)
        memory = served.channels[-1]
        with forked(partial(scribble, memory, seed * 100 + turn)):
            for number in range(40):
                with suppress(AtollError):  # which one depends on what the bytes hit
                    patient = victim.with_(deadline=0.02)
                    if number % 3:
                        patient.double.now(number)
                    else:
                        list(patient.numbers.now(20))
                assert honest.double.now(number) == number * 2
        served.observe()
        served.close_channel(memory)
