"""A server dies: more requests in hand than a ring holds, and threads in the middle of sending."""

import itertools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import trio
import trio.testing

from atoll.ipc import Deferred, Interface, Serves, call
from atoll.ipc.client.outbox import Outbox
from atoll.ipc.client.pending import Pending
from atoll.ipc.system.control import Shape
from tests.kit.serving import serving

MANY = 3000


class Steps(Interface):
    @call("do", once=True)
    def once(self, number: int) -> int: ...
    @call("do", idempotent=True)
    def seen(self) -> list[int]: ...


class Dies(Serves[Steps]):
    """Takes everything and answers nothing."""

    def __init__(self) -> None:
        self.order: list[int] = []

    @Steps.once.serve
    def once(self, number: int) -> Deferred[int]:
        self.order.append(number)
        return Deferred()

    @Steps.seen.serve
    def seen(self) -> list[int]:
        return self.order


class Answers(Dies):
    @Steps.once.serve
    def once(self, number: int) -> Deferred[int]:
        super().once(number)
        return Deferred.resolved(number)


@pytest.mark.parametrize("deaths", [1, 3])
def test_all_of_them_are_sent_again_in_order_however_many(deaths: int) -> None:
    with serving(Dies, Answers, in_hand=2 * MANY) as served:
        steps = served.proxies[0]
        asked = [steps.once.start(number) for number in range(MANY)]
        for _ in range(deaths - 1):
            served.crash()
            served.restart(0)
            served.client(served.channels[0]).look()
        served.crash()
        served.restart(1)
        assert [future.result() for future in asked] == list(range(MANY))
        assert steps.seen.now() == list(range(MANY))


class Pay(Interface):
    @call("do")
    def pay(self, number: int) -> int:
        """Neither idempotent nor once."""


class PayServer(Serves[Pay]):
    book: ClassVar[Path]
    """What was paid, a line each: it outlives every server."""

    @Pay.pay.serve
    def pay(self, number: int) -> int:
        with self.book.open("a") as book:
            book.write(f"{number}\n")
        return number


@pytest.fixture
def book(tmp_path: Path) -> Path:
    PayServer.book = tmp_path / "book"
    PayServer.book.touch()
    return PayServer.book


def paid(book: Path) -> list[int]:
    return [int(line) for line in book.read_text().splitlines()]


ROUNDS = 60
THREADS = 4


@pytest.mark.parametrize("way", ["pipelined", "quick", "with options"])
def test_what_threads_send_while_servers_die_is_judged_by_where_it_was_written(book: Path, way: str) -> None:
    """Each server takes nothing any more when it dies: then nothing may be lost and nothing done twice, whatever a thread
    was about just then."""
    with serving(PayServer) as served:
        bank = served.proxies[0]
        pay: Callable[[int], int] = {
            "pipelined": lambda number: bank.pay.start(number).result(),
            "quick": bank.pay.now,
            "with options": bank.with_(service="bulk").pay.now,
        }[way]
        stop = threading.Event()
        failures: list[BaseException] = []
        answered: list[int] = []

        def run(first: int) -> None:
            try:
                for number in itertools.count(first, THREADS):
                    if stop.is_set():
                        return
                    assert pay(number) == number
                    answered.append(number)
            except BaseException as error:
                failures.append(error)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=run, args=(first,)) for first in range(THREADS)]
        try:
            for thread in threads:
                thread.start()
            for _ in range(ROUNDS):
                served.drain()
                served.crash()
                served.restart()
                before = len(answered)
                while not failures and len(answered) < before + 2 * THREADS:
                    os.sched_yield()
                assert not failures
        finally:
            stop.set()
            sys.setswitchinterval(interval)
            for thread in threads:
                thread.join()
        assert not failures
        assert sorted(paid(book)) == sorted(answered)


def test_a_request_that_is_noted_after_its_servers_death_is_judged_all_the_same(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that wrote it stands still between the ring and the note, while another thread recovers."""
    with serving(PayServer) as served:
        bank = served.proxies[0]
        written, recovered = threading.Event(), threading.Event()
        note = Outbox.note

        def late(outbox: Outbox, pending: Pending, end: int) -> None:
            if not written.is_set():
                written.set()
                recovered.wait()
            note(outbox, pending, end)

        monkeypatch.setattr(Outbox, "note", late)
        outcome: list[int] = []
        served.drain()
        paying = threading.Thread(target=lambda: outcome.append(bank.with_(service="bulk").pay.now(7)))
        paying.start()
        written.wait()
        served.crash()
        served.restart()
        served.client(served.channels[0]).look()
        recovered.set()
        paying.join()
        assert outcome == paid(book) == [7]


class LookedAtLate(dict[int, list[int]]):
    """The epochs that ended, for a thread that stands still before it looks whether its own is one."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __contains__(self, mark: object) -> bool:
        if not self.reached.is_set():
            self.reached.set()
            self.go_on.wait()
        return super().__contains__(mark)


def test_a_request_that_another_thread_has_judged_is_not_judged_again(book: Path) -> None:
    """The thread that wrote and noted it stands still before it looks at what ended; another has it sent meanwhile."""
    with serving(PayServer) as served:
        bank, channel = served.proxies[0], served.client(served.channels[0])
        channel.outbox.dead = late = LookedAtLate()
        outcome: list[int] = []
        served.drain()
        paying = threading.Thread(target=lambda: outcome.append(bank.pay.start(7).result()))
        paying.start()
        late.reached.wait()
        served.crash()
        served.restart()
        channel.look()
        late.go_on.set()
        paying.join()
        assert bank.pay.now(8) == 8
        assert (outcome, paid(book)) == ([7], [7, 8])


def test_requests_that_wait_for_room_while_their_server_dies_go_to_the_next_one(book: Path) -> None:
    with serving(PayServer, shape=Shape(ring_bits=12, bulk_bits=12)) as served:
        bank = served.proxies[0]
        results: list[int] = []

        async def pay(number: int) -> None:
            results.append(await bank.pay(number))

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(200):  # a ring holds 63
                    nursery.start_soon(pay, number)
                await trio.testing.wait_all_tasks_blocked()
                assert served.client(served.channels[0]).outbox.owed
                served.crash()
                served.restart()

        served.drain()
        trio.run(main)
        assert sorted(results) == sorted(paid(book)) == list(range(200))
