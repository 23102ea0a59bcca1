"""How a keyspace's local view is kept: filled from the store, and brought on by its feed."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

import trio

from .context import Log
from .errors import Overloaded, PeerDied
from .form import Draft, Form
from .local_view import RESERVED, LocalView, after_prefix, decode_key
from .system.state import Compacted, Item, State
from .whole_changes import whole

T = TypeVar("T")

_PAGE: Final = 1000
_RETRY: Final = 0.05
"""Seconds until a broken feed is asked for again."""


class Following(Generic[T]):
    """One view. Its values are made of their bytes, for it alone: what others do to theirs changes none."""

    def __init__(self, prefix: bytes, form: Form[T], view: LocalView[T]) -> None:
        self.view = view
        self.loaded = False
        self._prefix = prefix
        self._form = form
        self._unseen: list[tuple[int, Callable[[], None]]] = []
        """Answers that wait for the view to come to a revision."""

    async def follow(self, state: State, *, task_status: "trio.TaskStatus[None]") -> None:
        """See `Keyspace.follow`."""
        if not self.loaded:
            await self.load(state)
        task_status.started()
        while True:
            try:
                async for change in whole(state.watch(self.view.revision, self._prefix)):
                    for item in change.items:
                        self.apply(item)
                    self.view.pass_to(change.revision)
                    self._answer()
            except Compacted as fault:
                # It was away for longer than the keyspace keeps its past.
                told = str(fault)
                await self._load_anew(state)
            except (PeerDied, Overloaded) as fault:
                # The feed goes on where it broke off, as soon as there is a store again.
                told = str(fault)
            else:
                told = "the store ended the feed"
            Log().debug("a local view waits for the store", reason=told)
            await trio.sleep(_RETRY)

    async def load(self, state: State) -> None:
        """Fills the view as the store is now."""
        start, at = self._prefix, None
        while True:
            page = await state.range(start, after_prefix(self._prefix), _PAGE, at)
            for item in page.items:
                self.apply(item)
            # Later pages are read as of now, not of the first one's revision, which would need the right to
            # history: what is newer than `revision` arrives again by the feed and is the same or older than
            # what is here.
            if at is None and not self.view.revision:
                self.view.revision = page.revision
            if not page.more:
                self.loaded = True
                return
            start = page.items[-1].key + b"\0"

    async def _load_anew(self, state: State) -> None:
        """Brings the view to the state of now, where the feed can no longer tell what was deleted meanwhile."""
        start, at, there = self._prefix, 0, set[str]()
        with suppress(
            PeerDied, Overloaded
        ):  # the feed will be asked for again, and say again what it cannot tell
            while True:
                page = await state.range(start, after_prefix(self._prefix), _PAGE)
                at = at or page.revision
                for item in page.items:
                    self.apply(item)
                    there.add(self._name(item.key))
                if not page.more:
                    break
                start = page.items[-1].key + b"\0"
            for key in [key for key in self.view if key not in there]:
                # What is not there and was written later was deleted later still: the feed after `at` says so.
                if self.view.revision_of(key) < at:
                    self.view.delete(key, at)
            self.view.pass_to(at)
            self._answer()

    def forget(self) -> None:
        """Begin anew, with nothing in it: `load` fills it."""
        self.view, self.loaded = LocalView(), False

    def apply(self, item: Item) -> None:
        """Bring one row in."""
        if item.key >= RESERVED:
            return
        if item.value is None:
            self.view.delete(self._name(item.key), item.revision)
        else:
            self.view.put(self._name(item.key), self._form.read(item.key, item.value), item.revision)

    def find(self, key: bytes) -> tuple[T | None, int]:
        """A row, as a copy for who may change it, with its revision."""
        name = self._name(key)
        value = self.view.get(name)
        if value is not None:
            value = self._form.decode(self._form.encode(value))
        return value, self.view.revision_of(name)

    def wrote(self, key: bytes, draft: Draft | None, revision: int) -> None:
        """Bring an own write in, once it is committed; None: a deletion."""
        if not self.loaded:
            return
        if draft is None:
            self.view.erased(self._name(key), revision)
        else:
            self.view.wrote(self._name(key), self._form.meant(draft), revision)

    def once_at(self, revision: int, answer: Callable[[], None]) -> None:
        """Has `answer` called when the view has come as far: at once where it has, or is not kept."""
        if not self.loaded or revision <= self.view.revision:
            answer()
        else:
            self._unseen.append((revision, answer))

    def _answer(self) -> None:
        """The view has come further."""
        if not self._unseen:
            return
        seen = [answer for revision, answer in self._unseen if revision <= self.view.revision]
        self._unseen = [waiting for waiting in self._unseen if waiting[0] > self.view.revision]
        for answer in seen:
            answer()

    def _name(self, key: bytes) -> str:
        return decode_key(key[len(self._prefix) :])
