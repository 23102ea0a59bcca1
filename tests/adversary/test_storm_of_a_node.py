"""Attacks that go on, against a server of a real node: who does it is named by the node's own rows, and nobody else is."""

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from mmap import mmap
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.ipc import attach
from atoll.ipc.proxy import transport_of
from atoll.ipc.system import control
from atoll.native import ffi, lib
from tests.kit.forked import forked
from tests.microkernel.nodes import RealNode, booted, interface

from .attack import Attacker, Record
from .attacks import ATTACKS, Attack, Means
from .lies import encode
from .storm import ROUND
from .test_culprits import events

Counter = interface("counter", "Counter")
LASTS = 1.0
"""Seconds of attack."""
MOST = 40
"""Rounds in which an attack that can be seen is seen."""
KINDS = [name for name, attack in ATTACKS.items() if attack.method != "weigh"]
"""All but the attack on a granted buffer, which no check can see and which leans on a server that takes some."""


class Hostile(attach.Node):
    """A program that keeps the memory and the doorbells of its channels."""

    def _act(self, message: control.ToProcess, descriptors: list[int]) -> None:
        if isinstance(message, control.OpenChannel):
            memory, doorbell = map(os.dup, descriptors)
            mapped, bell = mmap(memory, 0), socket.socket(fileno=doorbell)
            words = ffi.from_buffer(mapped)
            self.__dict__.setdefault("kept", {})[message.channel] = SimpleNamespace(
                number=message.channel, shape=message.shape, base=message.base, mapped=mapped, descriptor=memory,
                client_bell=bell, wake_server=lambda: lib.atoll_memory_wake(words, 0, bell.fileno()),
            )  # fmt: skip
        super()._act(message, descriptors)


def attack_counter(node: RealNode, attack: Attack, seed: int, tell: int) -> None:
    """Attach, say who one is, and attack for as long as one is let."""
    with Hostile(node.folder, "hostile") as me:
        transport: Any = transport_of(me.open("counter", Counter))
        port, method = transport.port, Counter.get.spec.number
        good = [
            (Record(0, len(payload), method, slot=port.slot, generation=port.generation), payload)
            for payload in (encode(["x"]), encode(["x" * 900]), encode([1]))
        ]
        memory: Any = me.__dict__["kept"][transport.channel.number]
        os.write(tell, f"@{me.welcome.attachment}".encode())
        attack.run(Means(Attacker(memory, server=False), random.Random(seed), good, -1))


@contextmanager
def honest(node: RealNode) -> Iterator[None]:
    """A program that calls the same server all the while; afterwards it was answered each time, and rightly."""
    over, told = Event(), []

    def call() -> None:
        with node.attach() as attached:
            counter = attached.open("counter", Counter)
            while not over.is_set():
                told.append(counter.get.now("x"))
        told.append("over")

    thread = Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert set(told) == {0, "over"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="module")
def doers() -> set[str]:
    """Everybody who has attacked the node, in whatever test."""
    return set()


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_the_node_name_who_attacks(node: RealNode, doers: set[str], name: str) -> None:
    attack, here, named = ATTACKS[name], set[str](), set[str]()
    with node.attach() as attached, honest(node):
        before = attached.kernel.ps.now()
        began = time.monotonic()
        while time.monotonic() < began + LASTS or (attack.proven and not named and len(here) < MOST):
            heard, tell = os.pipe()
            with forked(partial(attack_counter, node, attack, len(doers), tell)):
                os.close(tell)
                doer = os.read(heard, 100).decode()
                os.close(heard)
                here.add(doer)
                doers.add(doer)
                until = time.monotonic() + ROUND
                while doer not in named and time.monotonic() < until:
                    time.sleep(0)
                    named = here & {row.who for row in events(attached) if row.kind == "misbehaved"}
        blamed = [row for row in events(attached) if row.kind in ("misbehaved", "ended")]
        assert {row.who for row in blamed} <= doers
        assert all(f" between {row.who} and counter: " in row.sentence for row in blamed)
        listed = attached.kernel.refused.now()
        assert named or not attack.proven
        assert named <= {row.server for row in listed if row.by == "protocol"}
        assert {row.server for row in listed} <= doers
        assert {row.pid for row in before} == {row.pid for row in attached.kernel.ps.now()}
