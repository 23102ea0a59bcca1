"""Garbage collection that cannot lose a referenced blob.

A sweep gets the set of addresses that reference rows named at one revision of the store, read *before*
the sweep began. It removes a blob only if that set does not name it and its lease has run out
(leases.py), and both are looked at in the same step as the removal. Why that suffices: a reference that
is in the set spares the blob. One that is not was committed after the set was read; the server that made
it held a pin from before the commit was sent until after it was acknowledged, and the pin's end began a
lease of one grace. A sweep ends itself half a grace after its set was read, so that lease still runs at
its last step. A reference that was made and released in between needs nothing.

Small blobs go by packs: a pack without a wanted blob is unlinked; one that is less than half wanted is
written anew with the rest, durable before the old one goes, so a crash leaves one copy too many and never
one too few.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .blobs import Blobs, Pack
from .interface import Collected, Corrupt
from .leases import Leases
from .pack import read_record


class Rewrite(NamedTuple):
    """A pack that is mostly rubbish: what of it to keep. The caller writes it and calls `Sweep.switch`."""

    number: int
    keep: list[tuple[bytes, bytes]]
    dropped: frozenset[bytes]


class Sweep:
    """One pass. `steps` removes a little at each step and may be left at any point; other work may run
    between steps.
    """

    def __init__(
        self,
        blobs: Blobs,
        leases: Leases,
        clock: Callable[[], float],
        referenced: Callable[[bytes], bool],
        read_at: float,
    ) -> None:
        """`read_at`: the clock's time just before the references were read."""
        self._blobs = blobs
        self._leases = leases
        self._clock = clock
        self._referenced = referenced
        self._end = read_at + leases.grace / 2
        self.removed = 0
        self.bytes = 0
        self.spared = 0

    def result(self) -> Collected:
        return Collected(blobs=self.removed, bytes=self.bytes, spared=self.spared)

    def _wanted(self, hash: bytes) -> bool:
        if self._referenced(hash):
            return True
        if self._leases.spares(hash):
            self.spared += 1
            return True
        return False

    def steps(self) -> Iterator[Rewrite | None]:
        """Each step removes at most one file or yields one pack to rewrite; ends early when the
        references grow stale.
        """
        for hash in self._blobs.files():
            if self._clock() >= self._end:
                return
            if not self._wanted(hash):
                self._remove_file(hash)
            yield None
        for number in list(self._blobs.packs):
            if self._clock() >= self._end:
                return
            if number in self._blobs.packs:
                yield self._judge(number, self._blobs.packs[number])

    def _remove_file(self, hash: bytes) -> None:
        path = self._blobs.path(hash)
        if path.exists():
            self.bytes += path.stat().st_size
            self.removed += 1
            self._blobs.remove_file(hash)

    def _current(self, number: int, pack: Pack) -> list[bytes]:
        """The members that the index finds in this pack and not in a newer one."""
        places = self._blobs.places
        return [each for each in pack.members if each in places and places[each].pack == number]

    def _judge(self, number: int, pack: Pack) -> Rewrite | None:
        current = self._current(number, pack)
        wanted = [each for each in current if self._wanted(each)]
        places = self._blobs.places
        if not wanted:
            self.removed += len(current)
            self.bytes += sum(places[each].length for each in current)
            self._blobs.drop_pack(number)
            return None
        if len(wanted) * 2 > len(pack.members) and not pack.rotten:
            return None
        try:
            keep = [(each, read_record(pack.descriptor, each, places[each])) for each in wanted]
        except Corrupt as damage:
            self._blobs.damaged.add(damage.hash)
            return None  # the pack stays as evidence until a put mends the damaged blob
        return Rewrite(number, keep, frozenset(current) - frozenset(wanted))

    def still_good(self, rewrite: Rewrite) -> bool:
        """Nothing that the rewrite drops has become wanted while it was written, and the references are
        fresh enough.
        """
        return (
            self._clock() < self._end
            and rewrite.number in self._blobs.packs
            and not any(self._leases.spares(each) for each in rewrite.dropped)
        )

    def switch(self, rewrite: Rewrite) -> None:
        """Remove the old pack; the new one is durable and in the index. Precondition: `still_good`."""
        places = self._blobs.places
        self.removed += len(rewrite.dropped)
        self.bytes += sum(places[each].length for each in rewrite.dropped)
        self._blobs.drop_pack(rewrite.number)
