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

MERGE_BYTES = 1024 * 1024
"""Packs of less content than this are put together, so that many small puts do not leave many small files."""
PACK_BYTES = 8 * 1024 * 1024
"""Content of a rewritten pack at most."""


class Rewrite(NamedTuple):
    """Packs that are mostly rubbish, or small: what of them to keep. The caller writes it and calls
    `Sweep.switch`.
    """

    numbers: list[int]
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
        gathered = _Gathered()
        for number in list(self._blobs.packs):
            if self._clock() >= self._end:
                return
            if number in self._blobs.packs:
                self._judge(number, self._blobs.packs[number], gathered)
                yield None
            if gathered.size >= PACK_BYTES:
                yield self._rewrite(gathered)
                gathered = _Gathered()
        if gathered.urgent or len(gathered.packs) > 1:
            yield self._rewrite(gathered)

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

    def _judge(self, number: int, pack: Pack, gathered: "_Gathered") -> None:
        """Drop a pack that nobody wants; note one that should be written anew."""
        current = self._current(number, pack)
        wanted = [each for each in current if self._wanted(each)]
        places = self._blobs.places
        if not wanted:
            self.removed += len(current)
            self.bytes += sum(places[each].length for each in current)
            self._blobs.drop_pack(number)
            return
        size = sum(places[each].length for each in wanted)
        poor = len(wanted) * 2 <= len(pack.members) or pack.rotten
        if (poor or size < MERGE_BYTES) and not self._blobs.damaged.intersection(wanted):
            gathered.packs[number] = (wanted, frozenset(current) - frozenset(wanted))
            gathered.size += size
            gathered.urgent |= poor

    def _rewrite(self, gathered: "_Gathered") -> Rewrite | None:
        """None if a blob turned out to be damaged: its pack stays as it is until a put mends it."""
        keep: list[tuple[bytes, bytes]] = []
        dropped: frozenset[bytes] = frozenset()
        for wanted, rubbish in gathered.packs.values():
            dropped |= rubbish
            for each in wanted:
                try:
                    content = self._blobs.small(each)
                except Corrupt as damage:
                    self._blobs.damaged.add(damage.hash)
                    return None
                if content is not None:
                    keep.append((each, content))
        return Rewrite(list(gathered.packs), keep, dropped)

    def still_good(self, rewrite: Rewrite) -> bool:
        """Nothing that the rewrite drops has become wanted while it was written, and the references are
        fresh enough.
        """
        return (
            self._clock() < self._end
            and all(number in self._blobs.packs for number in rewrite.numbers)
            and not any(self._leases.spares(each) for each in rewrite.dropped)
        )

    def switch(self, rewrite: Rewrite) -> None:
        """Remove the old packs; the new one is durable and in the index. Precondition: `still_good` held
        before.
        """
        places = self._blobs.places
        self.removed += len(rewrite.dropped)
        self.bytes += sum(places[each].length for each in rewrite.dropped)
        for number in rewrite.numbers:
            self._blobs.drop_pack(number)


class _Gathered:
    """Packs to be written anew together: for each the wanted blobs and the rubbish. `urgent`: one is
    mostly rubbish.
    """

    def __init__(self) -> None:
        self.packs: dict[int, tuple[list[bytes], frozenset[bytes]]] = {}
        self.size = 0
        self.urgent = False
