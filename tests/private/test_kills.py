"""Whatever is killed while people write and are purged: what was acknowledged is there, who was purged is not."""

import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from atoll.ipc.attach import Node, connect
from atoll.ipc.errors import AtollError, Purged
from atoll.ipc.future import Future
from atoll.ipc.system.keys import Keys
from tests.microkernel.nodes import RealNode

from .nodes import diary, image
from .packages.diary.interface import Diary, Entry

VICTIMS = ("keys", "diary", "state", "kernel")
CALLS = 12
"""In hand when the kill comes."""


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    running = RealNode(tmp_path_factory.mktemp("private"), image())
    running.boot()
    try:
        yield running
    finally:
        running.stop()


Begun = tuple[str, Entry | str, Future[Any]]
"""Under which key, what was written or who was purged, and what came of it."""


class People:
    """Who said what, and of whom that must be gone; of what was not acknowledged both may be."""

    def __init__(self) -> None:
        self.said: dict[str, Entry] = {}
        self.purged: set[str] = set()
        self.perhaps: set[str] = set()

    def prove(self, found: Diary) -> None:
        for key, entry in self.said.items():
            if entry.subject in self.purged:
                with pytest.raises(Purged):
                    found.read.now(key)
                continue
            try:
                assert found.read.now(key) == entry
            except Purged:
                assert entry.subject in self.perhaps, f"{key} is gone, and nobody purged {entry.subject}"


def act(attached: Node, people: People, chance: random.Random, round_: int) -> list[Begun]:
    """Calls that are in hand: writes of new subjects, purges of old ones."""
    found, keys = diary(attached), attached.open("keys", Keys, ["purge"])
    begun: list[Begun] = []
    for number in range(CALLS):
        if number % 3:
            key = f"{round_}/{number}"
            entry = Entry(f"subject {round_} {number}", f"words {key}")
            begun.append((key, entry, found.write.start(key, entry.subject, entry.text)))
        elif people.said:
            subject = chance.choice(list(people.said.values())).subject
            begun.append(("", subject, keys.purge.start(subject)))
    return begun


def kill_at_once(node: RealNode, attached: Node, victim: str) -> None:
    if victim == "kernel":
        node.kill()
        return
    (pid,) = [row.pid for row in attached.kernel.ps.now() if row.server == victim]
    if pid:
        os.kill(pid, signal.SIGKILL)


def settle(people: People, begun: list[Begun]) -> None:
    for key, what, future in begun:
        try:
            future.result()
        except AtollError:
            if not key:
                people.perhaps.add(str(what))
            continue
        if key:
            assert isinstance(what, Entry)
            people.said[key] = what
        else:
            people.purged.add(str(what))


def live(node: RealNode, kills: int, seed: int) -> People:
    chance, people = random.Random(seed), People()
    for round_ in range(kills):
        victim = VICTIMS[round_] if round_ < len(VICTIMS) else chance.choice(VICTIMS)
        with connect(str(node.folder)) as attached:
            begun = act(attached, people, chance, round_)
            for _, _, future in begun[: chance.randrange(len(begun))]:
                try:
                    future.result()
                except AtollError:
                    break
            kill_at_once(node, attached, victim)
            settle(people, begun)
        if node.kernel is None:
            node.boot()
        with connect(str(node.folder)) as attached:
            people.prove(diary(attached))
    return people


def test_kills_of_each_party(node: RealNode) -> None:
    people = live(node, len(VICTIMS), seed=1)
    assert people.said and people.purged


@pytest.mark.soak
def test_a_hundred_kills(node: RealNode) -> None:
    people = live(node, 100, seed=2)
    assert len(people.purged) > 20
