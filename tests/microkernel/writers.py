"""Writers whose node may die at any moment. What they were told is kept outside the node, in a file, as it comes.

Every write has a key of its own, so that what was acknowledged can be compared one by one: it is there, with its value,
counted once. What a writer was not told of may be there or not, and never in part.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.ipc.errors import AtollError, NodeDown

from .nodes import RealNode, interface

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")

NEWEST = 100
"""Acknowledged writes of each writer that are compared after each death: those that it may have met."""


class Writer:
    """Writes key after key and reads each through the teller; keeps what it was told. Comes back to a node that was
    booted again."""

    def __init__(self, node: RealNode, name: str, record: Path) -> None:
        self.node = node
        self.name = name
        self.told: list[tuple[str, int]] = []
        self.asked: dict[str, int] = {}
        self.wrong: list[str] = []
        self.over = threading.Event()
        self.there = threading.Event()
        """Set while a node is there to attach to, and is to answer."""
        self.there.set()
        self.awake = threading.Event()
        """Cleared while the store is walked, which would else have ever more to walk."""
        self.awake.set()
        self._record = record
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._record.open("ab", buffering=0) as record:
            while not self.over.is_set():
                try:
                    with self.node.attach() as attached:
                        counter, teller = attached.open("counter", Counter), attached.open("teller", Teller)
                        while not self.over.is_set():
                            self.awake.wait()
                            number = len(self.asked) + 1
                            key = f"{self.name}.{number}"
                            self.asked[key] = number
                            told = counter.add.now(key, number)
                            record.write(f"{key} {told}\n".encode())
                            self.told.append((key, told))
                            read = teller.total.now(key)
                            if {told, read} != {number}:
                                self.wrong.append(f"{key} was counted as {told} and read as {read}")
                except (NodeDown, ConnectionError, FileNotFoundError):
                    self.there.wait(0.05)
                except AtollError as error:
                    if self.there.is_set():
                        self.wrong.append(f"{type(error).__name__}: {error}")
                        return
                    self.there.wait(0.05)

    def end(self) -> None:
        self.over.set()
        self.awake.set()
        self._thread.join()


class Writers:
    """Three of them. `record`: the file that has a line for each write that was acknowledged, its key and its value."""

    def __init__(self, node: RealNode, record: Path) -> None:
        self.node = node
        self.record = record
        self.each = [Writer(node, name, record) for name in ("a", "b", "c")]

    def goes_on(self) -> None:
        """Every writer is told of writes that it began after now."""
        asked = [len(writer.asked) for writer in self.each]
        for writer, before in zip(self.each, asked, strict=True):
            while not writer.told or writer.told[-1][1] <= before:
                assert not writer.wrong, writer.wrong
                writer.over.wait(0.01)

    def node_is(self, there: bool) -> None:
        """Whether writers are answered, or may be refused anything."""
        for writer in self.each:
            if there:
                writer.there.set()
            else:
                writer.there.clear()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nobody begins another write."""
        for writer in self.each:
            writer.awake.clear()
        yield
        for writer in self.each:
            writer.awake.set()

    def compare_newest(self) -> None:
        """What was acknowledged last is there by its content."""
        self._compare({key: told for writer in self.each for key, told in writer.told[-NEWEST:]})

    def compare(self) -> None:
        """Every write that was acknowledged is there by its content, as the record has it; what was not, is there once or
        not at all."""
        lines = (line.split() for line in self.record.read_text().splitlines())
        told = {key: int(value) for key, value in lines}
        assert told == {key: value for writer in self.each for key, value in writer.told}
        self._compare(told)
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            for writer in self.each:
                assert writer.wrong == []
                for key in writer.asked.keys() - told.keys():
                    assert counter.get.now(key) in (0, writer.asked[key]), key

    def _compare(self, told: dict[str, int]) -> None:
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            found = {key: counter.get.now(key) for key in told}
        assert found == told


@contextmanager
def writing(node: RealNode, record: Path) -> Iterator[Writers]:
    writers = Writers(node, record)
    try:
        yield writers
    finally:
        for writer in writers.each:
            writer.end()
