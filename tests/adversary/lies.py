"""One lie for each check: what a peer writes, to whom, and what that one is to say of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import msgspec

from atoll.ipc.streams import WINDOW
from atoll.ipc.system.control import Shape
from atoll.native import Kind
from tests.kit.serving import Memory, Serving
from tests.native.suite import Target

from .attack import BULK, LINE, Attacker, Record

SMALL = Shape(ring_bits=12, bulk_bits=12)
NORMAL = 1
INLINE = 1 << 10
"""Bytes that a ring of `SMALL` carries beside a record's header."""
encode = msgspec.msgpack.encode


class Lie(NamedTuple):
    name: str
    check: str
    """What the victim says of it."""
    tell: Callable[[Serving, Memory], Callable[[], object]]
    """Tells it over a channel's memory. To a client: gives what that one does next, and is to find out by."""
    hidden: str = ""
    """What another check said first, in words that went no further."""


def call(served: Serving, memory: Memory, method: str, **fields: int) -> Record:
    """A good call, but for `fields`."""
    port = served.grant(memory, Target)
    number = next(m.spec.number for m in served.methods(Target) if m.name == method)
    return replace(Record(0, method=number, slot=port.slot), **fields)


HEADERS: dict[str, list[dict[str, int]]] = {
    "flags": [{"flags": 8}, {"flags": 1 << 15}],
    "lane": [{"lane": 0}, {"lane": 255}],
    "epoch": [{"epoch": 9}, {"epoch": 0}],
    "length": [{"length": 1 << 11}, {"length": 2**32 - 1}],
    "bulk range": [
        {"flags": BULK, "length": 100, "bulk": (1 << 12) - 99},
        {"flags": BULK, "length": 2**32 - 1, "bulk": 2**64 - 2**31},
        {"flags": BULK, "length": (1 << 12) + 1},
    ],
}
INDICES = {"rewound": -LINE, "inside a record": 1, "ahead": 1 << 20, "half way round": 2**63}


def _record(kind: Kind, payload: bytes) -> Record:
    """A good one, but for what is in it."""
    return Record(0, kind=kind, length=len(payload), flags=BULK if len(payload) > INLINE else 0)


def _nothing() -> None:
    """A server finds out by itself."""


# to a server ----------------------------------------------------------------------------------------------------------


def _header(fields: dict[str, int]) -> Callable[[Serving, Memory], Callable[[], object]]:
    def tell(served: Serving, memory: Memory) -> Callable[[], object]:
        Attacker(memory, server=False).write(call(served, memory, "double", **fields))
        return _nothing

    return tell


def _index(index: int) -> Callable[[Serving, Memory], Callable[[], object]]:
    """Claims replies that it cannot have taken; the fourth needs room that only a reader could have made."""

    def tell(served: Serving, memory: Memory) -> Callable[[], object]:
        attacker = Attacker(memory, server=False)
        payload = encode([b"x" * 1000])
        served.observe()  # it has the channel now: what the index held before would not count
        attacker.rewind(NORMAL, memory.base + index)
        record = call(served, memory, "mirror", length=len(payload))
        for request in range(1, 5):
            attacker.write(replace(record, request=request), payload)
            while request < 4 and memory.taken()[NORMAL] != attacker.position[NORMAL]:
                served.observe()
        return _nothing

    return tell


def _index_and_bulk(served: Serving, memory: Memory) -> Callable[[], object]:
    attacker = Attacker(memory, server=False)
    served.observe()
    attacker.rewind(NORMAL, memory.base - LINE)
    payload = encode([2000])
    attacker.write(call(served, memory, "swell", length=len(payload)), payload)
    return _nothing


def _in_call(
    method: str, kind: Kind, payload: bytes, *, begun: bool = True
) -> Callable[[Serving, Memory], Callable[[], object]]:
    """A record that does not fit the call that it names; `begun`: told when the call's handler runs, and not in the
    same breath as the call."""

    def tell(served: Serving, memory: Memory) -> Callable[[], object]:
        attacker = Attacker(memory, server=False)
        opened = encode([1000]) if method == "numbers" else encode([])
        attacker.write(call(served, memory, method, length=len(opened)), opened, wake=begun)
        if begun:
            served.observe()
        attacker.write(_record(kind, payload), payload)
        return _nothing

    return tell


TO_A_SERVER = [
    *(Lie(f"{check} {fields}", check, _header(fields)) for check, each in HEADERS.items() for fields in each),
    *(Lie(f"kind {kind}", "kind", _header({"kind": kind})) for kind in (Kind.REPLY, 0, 255)),
    *(Lie(f"index {how}", "consumed index", _index(index)) for how, index in INDICES.items()),
    Lie("index and bulk", "consumed index, when a bulk record needed room", _index_and_bulk),
    Lie("credit to an upload", "record of no stream", _in_call("total", Kind.CREDIT, encode(1))),
    Lie("item to a call", "record of no stream", _in_call("hold", Kind.ITEM, encode([b"x"]))),
    Lie("end to a call", "record of no stream", _in_call("hold", Kind.END, b"")),
    Lie("items that are none", "stream record", _in_call("total", Kind.ITEM, b"\xc1")),
    Lie("items of another type", "stream record", _in_call("total", Kind.ITEM, encode([1, 2]))),
    Lie("items beyond credit", "upload without credit", _in_call("total", Kind.ITEM, encode([b"x"] * (WINDOW + 1))),
        "items for {} with credit for {}"),
    Lie("a record without items", "upload without credit", _in_call("total", Kind.ITEM, encode([])),
        "a record of no items"),
    Lie("credit that is none", "stream record", _in_call("numbers", Kind.CREDIT, b"\xc1")),
    Lie("credit that is none, at once", "stream record", _in_call("numbers", Kind.CREDIT, b"\xc1", begun=False)),
    Lie("credit beyond a window", "more credit than a window", _in_call("numbers", Kind.CREDIT, encode(1 << 40)),
        "credit up to {} when {} was spent"),
]  # fmt: skip


# to a client ----------------------------------------------------------------------------------------------------------


def _reply(fields: dict[str, int]) -> Callable[[Serving, Memory], Callable[[], object]]:
    def tell(served: Serving, memory: Memory) -> Callable[[], object]:
        Attacker(memory, server=True).write(replace(Record(0, kind=Kind.REPLY), **fields))
        return lambda: served.proxies[0].double.now(1)

    return tell


def _requests_taken(length: int) -> Callable[[Serving, Memory], Callable[[], object]]:
    def tell(served: Serving, memory: Memory) -> Callable[[], object]:
        Attacker(memory, server=True).rewind(NORMAL, memory.base + 64 * 1000)

        def fill() -> None:
            for _ in range(100):
                served.proxies[0].mirror.start(b"x" * length)

        return fill

    return tell


def _in_answer(
    start: Callable[[Target], Callable[[], object]], kind: Kind, payload: bytes
) -> Callable[[Serving, Memory], Callable[[], object]]:
    """A record that does not fit the call that waits for it."""

    def tell(served: Serving, memory: Memory) -> Callable[[], object]:
        result = start(served.proxies[0])
        Attacker(memory, server=True).write(_record(kind, payload), payload)
        return result

    return tell


def _called(target: Target) -> Callable[[], object]:
    return target.double.start(1).result


def _streaming(target: Target) -> Callable[[], object]:
    return target.numbers.now(5).__next__


def _uploading(target: Target) -> Callable[[], object]:
    upload = target.__dict__["_transport"].open(Target.total.spec, encode([]), target.__dict__["_options"])
    return upload.receive_now


TO_A_CLIENT = [
    *(Lie(f"{check} {fields}", check, _reply(fields)) for check, each in HEADERS.items() for fields in each),
    *(Lie(f"kind {kind}", "kind", _reply({"kind": kind})) for kind in (Kind.CALL, 0, 255)),
    Lie("index", "consumed index", _requests_taken(1000)),
    Lie("index and bulk", "consumed index, when a bulk record needed room", _requests_taken(2000)),
    Lie("items to a call", "kind of reply", _in_answer(_called, Kind.ITEM, encode([b"x"]))),
    Lie("end to a call", "kind of reply", _in_answer(_called, Kind.END, b"")),
    Lie("items that are none", "items", _in_answer(_streaming, Kind.ITEM, b"\xc1")),
    Lie("items beyond credit", "items without credit", _in_answer(_streaming, Kind.ITEM, encode([b"x"] * (WINDOW + 1))),
        "items for {} with credit for {}"),
    Lie("a record without items", "items without credit", _in_answer(_streaming, Kind.ITEM, encode([])),
        "a record of no items"),
    Lie("a reply to a stream", "kind of reply", _in_answer(_streaming, Kind.REPLY, encode(1))),
    Lie("credit that is none", "credit", _in_answer(_streaming, Kind.CREDIT, b"\xc1")),
    Lie("credit beyond a window", "more credit than a window",
        _in_answer(_uploading, Kind.CREDIT, encode(1 << 40)), "credit up to {} when {} was spent"),
]  # fmt: skip


def _uploaded(served: Serving, memory: Memory) -> Callable[[], object]:
    """The end is there before the upload begins: its number is the channel's first."""
    Attacker(memory, server=True).write(Record(0, kind=Kind.END, request=1))
    return lambda: served.proxies[0].total.now([])


TO_A_CALLER = [
    Lie("a reply of another type", "the reply of {}: {}", _in_answer(_called, Kind.REPLY, encode("no number"))),
    Lie("a fault that is none", "an error reply: {}", _in_answer(_called, Kind.FAULT, b"\xc1")),
    Lie("an upload's end without a reply", "the upload ended without a reply",
        _uploaded),
]  # fmt: skip
"""What only the caller makes something of: the channel goes on, since a handler that returns what it does not promise is no
better. `check` as the sources have it."""
