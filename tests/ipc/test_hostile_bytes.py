"""Bytes that a client sends a server, and errors that a handler raises over them: the server goes on, the caller is told."""

from dataclasses import replace
from typing import NoReturn

import msgspec
import pytest

from atoll.ipc import Deferred, Interface, Serves, call, context
from atoll.ipc.context import FIELDS_MOST, LINE_MOST, Log
from atoll.ipc.errors import BadRequest, DecodeFaults, InternalFault
from atoll.ipc.system import control
from tests.adversary.attack import Attacker, Record
from tests.kit.serving import Serving, serving
from tests.native.suite import Server as Numbers
from tests.native.suite import Target

DEEP = b"\x91" * 1500 + b"\x90"


class Bank(Interface):
    @call("use")
    def pay(self) -> int: ...
    @call("use")
    def settle(self) -> int: ...
    @call("use")
    def number(self, text: str) -> float: ...
    @call("use")
    def name(self, code: int) -> str: ...
    @call("use")
    def fault(self) -> str: ...
    @call("use", idempotent=True)
    def ping(self) -> int: ...


class BankServer(Serves[Bank]):
    def __init__(self) -> None:
        self._owed: list[Deferred[int]] = []

    @Bank.pay.serve
    def pay(self) -> Deferred[int]:
        self._owed.append(Deferred())
        return self._owed[-1]

    @Bank.settle.serve
    def settle(self) -> Deferred[int]:
        owed, self._owed = self._owed, [Deferred()]
        for each in owed:
            each.complete(1)
        return self._owed[0]

    @Bank.number.serve
    def number(self, text: str) -> float:
        return float(text)

    @Bank.name.serve
    def name(self, code: int) -> NoReturn:
        raise BadRequest("name", "a file", chr(code))

    @Bank.fault.serve
    def fault(self) -> NoReturn:
        raise BadRequest("fault", "what a message can hold", object())  # type: ignore[arg-type]

    @Bank.ping.serve
    def ping(self) -> int:
        return 7


def lives(served: Serving) -> None:
    served.observe()
    assert served.proxies[0].ping.now() == 7


def test_bytes_that_nest_without_end_are_the_callers_fault() -> None:
    decoder = msgspec.msgpack.Decoder(tuple[int])
    with pytest.raises(DecodeFaults):
        msgspec.msgpack.decode(
            b"\x92\x01" + DEEP, type=msgspec.defstruct("One", [("a", int)], array_like=True)
        )
    with pytest.raises(DecodeFaults):
        decoder.decode(b"\x92\x01" + DEEP)


@pytest.mark.parametrize("length", [100_000, 300_000])
def test_an_exception_that_quotes_a_long_argument_is_logged_in_part(length: int) -> None:
    with serving(BankServer, shape=control.Shape()) as served:
        with pytest.raises(InternalFault, match="could not convert"):
            served.proxies[0].number.now("x" * length)
        lives(served)


def test_an_error_that_no_message_can_hold_is_told_by_its_name() -> None:
    with serving(BankServer, shape=control.Shape()) as served:
        for ask in (lambda: served.proxies[0].name.now(0xDC80), served.proxies[0].fault.now):
            with pytest.raises(InternalFault, match="BadRequest, which no message can hold"):
                ask()
        lives(served)


def test_a_log_line_fits_its_packet_whatever_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(context, "_sink", lambda level, text, fields: lines.append((text, fields)))
    Log().info("\udc80" * (2 * LINE_MOST), **{f"field{n}": "é" * LINE_MOST for n in range(100)})
    ((text, fields),) = lines
    size = len(control.encode(control.Log(level="info", text=text, fields=fields)))
    assert size < control.PACKET_LIMIT
    assert len(text) == LINE_MOST and sum(map(len, fields.values())) <= FIELDS_MOST


def test_a_deadline_that_no_clock_reaches_is_waited_for() -> None:
    with serving(Numbers, shape=control.Shape()) as served:
        memory = served.add_channel()
        liar, port = Attacker(memory, server=False), served.grant(memory, Target)
        served.observe()
        number = next(each.spec.number for each in served.methods(Target) if each.name == "numbers")
        payload = msgspec.msgpack.encode([100_000])  # more than a window: it waits for credit
        head = Record(0, method=number, slot=port.slot, generation=port.generation, length=len(payload))
        liar.write(replace(head, deadline=2**64 - 1), payload)
        served.observe()
        assert served.proxies[0].double.now(2) == 4


def test_a_channel_that_is_closed_by_what_its_own_call_settles_takes_nobody_along() -> None:
    """Replies of earlier calls go while a handler runs, and find that the client lies about its ring."""
    with serving(BankServer, shape=control.Shape(lanes=3, ring_bits=12, bulk_bits=12)) as served:
        memory = served.add_channel()
        liar, port = Attacker(memory, server=False), served.grant(memory, Bank)
        numbers = {each.name: each.spec.number for each in served.methods(Bank)}
        request = 0

        def ask(name: str) -> None:
            nonlocal request
            request += 1
            head = Record(0, method=numbers[name], slot=port.slot, generation=port.generation, length=1)
            liar.write(replace(head, request=request), b"\x90")

        liar.rewind(1, memory.base)
        for _ in range(4):
            for _ in range(10):
                ask("pay")
            lives(served)
        liar.rewind(1, memory.base + 64 * 999)
        ask("settle")
        lives(served)
        while not served.misbehaved:  # the call is taken in a turn of the server's own
            lives(served)
        assert {found.channel for found in served.misbehaved} == {memory.number}
