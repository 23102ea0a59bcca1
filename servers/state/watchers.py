"""Who waits for changes. A commit costs those watchers whom it concerns; others by how many lengths their prefixes have.

A watcher is first a reader of the feed, from its own position; once it has caught up it is told the revisions
that concern it, in order. One that falls behind (`BEHIND` revisions untaken) is told no more and goes back to
reading the feed, a page at a time, and each change says by how far it is behind: it never slows a writer, never misses a
change, and holds no more memory than that.

The writer tells of what it committed (`announce`). A reader process, which commits nothing, reads the feed once for all who
watch there, from where it was last, and tells them the same (`follow`).
"""

from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from typing import Final

import trio
from msgspec.structs import replace

from atoll.ipc.system.state import Change, Only

from .history import LOOK, History

BEHIND: Final = 1024
"""Revisions; `Change.behind` speaks of them, too."""
_CHUNK: Final = 64
"""Changes read from the feed in one go."""


class _Watcher:
    __slots__ = ("behind", "due", "prefix", "wake")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.due: deque[int] = deque()
        self.behind = False
        self.wake = trio.Event()

    def tell(self, revision: int) -> None:
        if len(self.due) >= BEHIND:
            self.behind = True
        else:
            self.due.append(revision)
        self.wake.set()


class Watchers:
    def __init__(self, history: History) -> None:
        self._history = history
        self._of: dict[bytes, set[_Watcher]] = {}
        """By prefix."""
        self._lengths: Counter[int] = Counter()
        """Of the prefixes, with how many watchers have one of each."""
        self._followed = 0
        """Up to where `follow` has read the feed, which says nothing while nobody watches."""

    def __len__(self) -> int:
        return self._lengths.total()

    def add(self, prefix: bytes) -> _Watcher:
        watcher = _Watcher(prefix)
        self._of.setdefault(prefix, set()).add(watcher)
        self._lengths[len(prefix)] += 1
        return watcher

    def remove(self, watcher: _Watcher) -> None:
        prefix = watcher.prefix
        self._of[prefix].remove(watcher)
        if not self._of[prefix]:
            del self._of[prefix]
        self._lengths[len(prefix)] -= 1
        if not self._lengths[len(prefix)]:
            del self._lengths[len(prefix)]

    def announce(self, written: list[tuple[int, list[bytes]]]) -> None:
        """Revisions have become durable, with the keys they wrote."""
        if not self._of:
            return
        for revision, keys in written:
            concerned: set[_Watcher] = set()
            for length in self._lengths:
                for beginning in {key[:length] for key in keys}:
                    concerned |= self._of.get(beginning, set())
            for watcher in concerned:
                watcher.tell(revision)

    def follow(self) -> bool:
        """Tells of what another process has committed since, as far as one look goes; whether there may be more."""
        if not self._of:
            return False
        looked = 0
        for revision, keys in self._history.written(self._followed):
            if revision > self._followed + 1:
                self._doubt(self._followed + 1)
            self.announce([(revision, keys)])
            self._followed = revision
            looked += 1
        return looked == LOOK

    def _doubt(self, revision: int) -> None:
        """Events from a revision on have left the feed: what they wrote is given up, and each watcher has to find out
        whether that concerns it. None may pass over that revision on the word of what it is told after it."""
        for watchers in self._of.values():
            for watcher in watchers:
                watcher.tell(revision)
                watcher.behind = True

    async def watch(
        self, after: int, prefix: bytes, *, past: bool, only: Only = "all"
    ) -> AsyncIterator[Change]:
        """Changes under an absolute prefix after a revision: those that are there, then those to come; never
        ends by itself. `past` and `only` as in `History.changes`."""
        if not self._of:
            # What is there by now everybody who comes reads in the feed.
            self._followed = self._history.head()
        watcher = self.add(prefix)
        position = after
        try:
            while True:
                # Up to what is due first nothing was written here but what it has heard: the feed may be given up as far.
                if watcher.due:
                    position = max(position, watcher.due[0] - 1)
                # Cleared before the feed is read: what is announced from here on is either read now or stands
                # in `due`.
                watcher.due.clear()
                watcher.behind = False
                more = True
                while more:
                    changes, position, more = self._history.changes(
                        position, prefix, _CHUNK, past=past, only=only
                    )
                    head = self._history.head() if changes else 0
                    for change in changes:
                        behind = head - change.revision
                        for part in self._whole(change, prefix, past, only):
                            yield replace(part, behind=behind) if behind > BEHIND else part
                            if part.more:
                                await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                while not watcher.behind:
                    if not watcher.due:
                        watcher.wake = trio.Event()
                        await watcher.wake.wait()
                        continue
                    revision = watcher.due.popleft()
                    if revision > position:
                        position = revision
                        for part in self._history.parts(revision, prefix, past=past, only=only):
                            yield part
                            if part.more:
                                await trio.lowlevel.checkpoint()
        finally:
            self.remove(watcher)

    def _whole(self, change: Change, prefix: bytes, past: bool, only: Only) -> Iterable[Change]:
        if not change.more:
            return (change,)
        return self._history.parts(change.revision, prefix, past=past, only=only)
