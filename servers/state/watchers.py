"""Who waits for changes. A commit costs only those watchers whose keyspace it wrote.

A watcher is first a reader of the feed, from its own position; once it has caught up it is told the revisions
that concern it, in order. One that falls behind (`BEHIND` revisions untaken) is told no more and goes back to
reading the feed: it never slows a writer, never misses a change, and holds no more memory than that.
"""

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import trio

from atoll.ipc.system.state import Change

from .history import History
from .layout import KEYSPACE_SIZE

BEHIND: Final = 1024
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

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def announce(self, written: list[tuple[int, list[bytes]]]) -> None:
        """Revisions have become durable, with the keys they wrote."""
        if not self._of:
            return
        everything = self._of.get(b"", ())
        for revision, keys in written:
            for watcher in everything:
                watcher.tell(revision)
            for keyspace in {key[:KEYSPACE_SIZE] for key in keys}:
                for watcher in self._of.get(keyspace, ()):
                    if any(key.startswith(watcher.prefix) for key in keys):
                        watcher.tell(revision)

    def look_again(self) -> None:
        """Something was written, nobody knows what (another process did): all go back to the feed."""
        for watchers in self._of.values():
            for watcher in watchers:
                watcher.behind = True
                watcher.wake.set()

    async def watch(self, after: int, prefix: bytes, *, past: bool) -> AsyncIterator[Change]:
        """Changes under an absolute prefix after a revision: those that are there, then those to come; never
        ends by itself. Without `past` they show what is current when they are read (`History.changes`)."""
        watcher = _Watcher(prefix)
        # A prefix shorter than a keyspace's number can only be the kernel's, who watches everything.
        place = self._of.setdefault(prefix[:KEYSPACE_SIZE] if len(prefix) >= KEYSPACE_SIZE else b"", set())
        place.add(watcher)
        position = after
        try:
            while True:
                # Cleared before the feed is read: what is announced from here on is either read now or stands
                # in `due`.
                watcher.due.clear()
                watcher.behind = False
                more = True
                while more:
                    changes, position, more = self._history.changes(position, prefix, _CHUNK, past=past)
                    for change in changes:
                        yield change
                    await trio.lowlevel.checkpoint()
                while not watcher.behind:
                    if not watcher.due:
                        watcher.wake = trio.Event()
                        await watcher.wake.wait()
                        continue
                    revision = watcher.due.popleft()
                    if revision > position:
                        position = revision
                        change_now = self._history.change(revision, prefix, past=past)
                        if change_now is not None:
                            yield change_now
        finally:
            place.discard(watcher)
