"""Whose turn it is to change a row: changes that begin with what the one before left wait for each other."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from .context import Call, back_in_hand, current_or_none
from .deferred import Deferred


class _Turn:
    __slots__ = ("ahead", "begin", "call", "later", "places")

    def __init__(self, begin: Callable[[], None], places: tuple[Hashable, ...]) -> None:
        self.begin = begin
        self.places = places
        self.ahead = 0
        """At how many of its places somebody is before it."""
        self.later = False
        """Others stand above where it begins: `call` is in hand again then, and none of theirs."""
        self.call: Call | None = None


class Turns:
    """One line a place; who wants several stands in all of their lines from the same moment on, so nobody waits in a
    circle."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[_Turn]] = {}
        self._next: deque[_Turn] = deque()
        self._beginning = False

    def take(self, places: Iterable[Hashable], begin: Callable[[], None], done: Deferred[Any]) -> None:
        """Has `begin` called when all who came before to one of these places have had their turn. Its own lasts until `done`
        is; `begin` raises nothing, but fails that."""
        turn = _Turn(begin, tuple(dict.fromkeys(places)))
        for place in turn.places:
            line = self._lines.setdefault(place, deque())
            turn.ahead += bool(line)
            line.append(turn)
        if turn.ahead or self._beginning:
            turn.later, turn.call = True, current_or_none()
        done.react(lambda _: self._leave(turn), lambda _: self._leave(turn))
        if not turn.ahead:
            self._next.append(turn)
            self._begin()

    def _leave(self, turn: _Turn) -> None:
        for place in turn.places:
            line = self._lines[place]
            line.popleft()
            if not line:
                del self._lines[place]
                continue
            line[0].ahead -= 1
            if not line[0].ahead:
                self._next.append(line[0])
        self._begin()

    def _begin(self) -> None:
        """A loop: of a thousand turns that are over as soon as they begin none begins inside the one before."""
        if self._beginning:
            return
        self._beginning = True
        try:
            while self._next:
                turn = self._next.popleft()
                if turn.later:
                    with back_in_hand(turn.call):
                        turn.begin()
                else:
                    turn.begin()
        finally:
            self._beginning = False
