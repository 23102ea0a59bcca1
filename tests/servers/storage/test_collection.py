"""Collection never takes a blob that is referred to, spared or pinned, in whatever order puts, references
and sweeps run.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.servers.storage.blobfile import chunks, read_footer
from atoll.servers.storage.blobs import Blobs
from atoll.servers.storage.collector import Rewrite, Sweep
from atoll.servers.storage.interface import BlobRef
from atoll.servers.storage.leases import Leases
from atoll.servers.storage.pack import LARGEST

GRACE = 100.0


def read(blobs: Blobs, address: bytes) -> bytes:
    small = blobs.small(address)
    if small is not None:
        return small
    descriptor = blobs.open_file(address)
    try:
        footer = read_footer(descriptor, address)
        return b"".join(chunks(descriptor, footer, 0, footer.size))
    finally:
        os.close(descriptor)


class Collection(RuleBasedStateMachine):
    """The steps that the server takes on its loop, interleaved at every point where it awaits."""

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.now = 1000.0
        self.blobs = Blobs(Path(self.folder.name))
        self.blobs.open()
        self.leases = Leases(lambda: self.now, GRACE)
        self.contents: dict[bytes, bytes] = {}
        self.rows: dict[int, bytes] = {}
        self.pending: list[tuple[ExitStack, bytes, int]] = []
        self.sweep: Sweep | None = None
        self.rewrite: Rewrite | None = None
        self.number = 0

    def teardown(self) -> None:
        self.blobs.close()
        self.folder.cleanup()

    def safe(self, address: bytes) -> bool:
        return address in self.rows.values() or self.leases.spares(address)

    @rule(content=st.binary(min_size=1, max_size=6))
    def put_large(self, content: bytes) -> None:
        writer = self.blobs.writer()
        writer.write(content * 20_000)
        footer = writer.seal()
        with self.leases.pinned([footer.hash]):
            if self.blobs.sound(footer.hash):
                writer.discard()
            else:
                self.blobs.install(writer.temporary, self.blobs.path(footer.hash))
        self.contents[footer.hash] = content * 20_000

    @rule(contents=st.lists(st.binary(max_size=3), min_size=1, max_size=8))
    def put_small(self, contents: list[bytes]) -> None:
        held = {BlobRef.of(content).hash: content for content in contents}
        assert all(len(content) <= LARGEST for content in contents)
        with self.leases.pinned(held):
            new = [(address, content) for address, content in held.items() if not self.blobs.sound(address)]
            if new:
                self.blobs.admit(self.blobs.write_pack(self.blobs.temporary(), self.blobs.next_pack(), new))
        self.contents.update(held)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def begin_reference(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.contents)))
        if self.blobs.has(address):
            pins = ExitStack()
            pins.enter_context(self.leases.pinned([address]))
            self.number += 1
            self.pending.append((pins, address, self.number))

    @precondition(lambda self: self.pending)
    @rule()
    def commit_reference(self) -> None:
        _, address, number = self.pending[0]
        self.rows[number] = address

    @precondition(lambda self: self.pending)
    @rule()
    def acknowledge_reference(self) -> None:
        pins, address, number = self.pending.pop(0)
        self.rows[number] = address
        pins.close()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.rows)))
        if number not in {each[2] for each in self.pending}:
            self.leases.renew([self.rows.pop(number)])

    @rule(seconds=st.sampled_from([1.0, GRACE / 2, GRACE - 1, GRACE + 1]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin_sweep(self) -> None:
        if self.rewrite is None:
            referenced = frozenset(self.rows.values())
            self.sweep = Sweep(self.blobs, self.leases, lambda: self.now, referenced.__contains__, self.now)
            self.steps = self.sweep.steps()

    @precondition(lambda self: self.sweep is not None)
    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        assert self.sweep is not None
        for _ in range(count):
            if self.rewrite is not None:
                new = self.blobs.write_pack(self.blobs.temporary(), self.blobs.next_pack(), self.rewrite.keep)
                self.blobs.admit(new)
                if self.sweep.still_good(self.rewrite):
                    self.sweep.switch(self.rewrite)
                self.rewrite = None
                return
            try:
                self.rewrite = next(self.steps)
            except StopIteration:
                self.sweep = None
                return

    @rule()
    def sweep_all(self) -> None:
        self.rewrite = None
        self.begin_sweep()
        while self.sweep is not None:
            self.step(8)

    @rule()
    def restart(self) -> None:
        self.blobs.close()
        self.blobs = Blobs(Path(self.folder.name))
        self.blobs.open()
        self.leases = Leases(lambda: self.now, GRACE)
        self.pending.clear()
        self.sweep = self.rewrite = None

    @invariant()
    def nothing_safe_is_lost(self) -> None:
        for address, content in list(self.contents.items()):
            if self.safe(address):
                assert self.blobs.has(address), "a blob that is referred to or spared is gone"
                assert read(self.blobs, address) == content
            elif not self.blobs.has(address):
                del self.contents[address]
        assert self.blobs.broken() == []


TestCollection = Collection.TestCase
TestCollection.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_rewrite_is_dropped_when_its_rubbish_becomes_wanted(tmp_path: Path) -> None:
    """The gap between judging a pack and removing it, during which the new pack is written in a thread."""
    time = [0.0]

    def clock() -> float:
        return time[0]

    blobs = Blobs(tmp_path)
    blobs.open()
    leases = Leases(clock, GRACE)
    held = {BlobRef.of(content).hash: content for content in (b"kept", b"rubbish", b"wanted again")}
    blobs.admit(blobs.write_pack(blobs.temporary(), blobs.next_pack(), list(held.items())))
    kept, _, again = held
    time[0] = GRACE + 1
    sweep = Sweep(blobs, leases, clock, {kept}.__contains__, clock())
    rewrite = next(each for each in sweep.steps() if each is not None)
    new = blobs.write_pack(blobs.temporary(), blobs.next_pack(), rewrite.keep)
    leases.renew([again])
    assert not sweep.still_good(rewrite)
    blobs.admit(new)
    assert len(blobs.packs) == 2, "both the new pack and the old one stay"
    assert (read(blobs, kept), read(blobs, again)) == (b"kept", b"wanted again")
    time[0] += GRACE + 1
    assert list(Sweep(blobs, leases, clock, {kept}.__contains__, clock()).steps()) == [None, None]
    assert (blobs.has(kept), blobs.has(again)) == (True, False)
    blobs.close()
