"""Who may submit under which rater's name, and how far a rater is trusted.

What a record says of itself (rater, role, trust) is a claim; what is known for sure is the badge of the
capability that submitted it, which the batch's head keeps. Where a rater has a badge of their own, nobody
else can submit under that name, and that badge can submit under no other. Trust is a bound from the revision on
in which it was written: a set as of an earlier revision counts as it did then, so it stays the same for ever;
a set as of now counts a rater who turned out to be bad for less, whenever they submitted.
"""

from atoll.ipc.local_view import LocalView

from .interface import Invalid
from .records import Record
from .rows import Appointed

_SHOWN = 5


class Raters(LocalView[Appointed]):
    """The raters as they are now, by name: a view of their rows. One task at a time touches an instance."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, set[str]] = {}
        """Of each badge that speaks for anybody, for whom."""

    def put(self, key: str, value: Appointed, revision: int) -> None:
        self._unbind(key)
        super().put(key, value, revision)
        self._bind(key)

    def delete(self, key: str, revision: int) -> None:
        self._unbind(key)
        super().delete(key, revision)
        self._bind(key)

    def _badge(self, name: str) -> int:
        """0 for a rater without one, and for one of whom nothing is known."""
        known = self.get(name)
        return 0 if known is None else known.rater.badge

    def _unbind(self, name: str) -> None:
        badge = self._badge(name)
        if badge:
            self._names[badge].discard(name)
            if not self._names[badge]:
                del self._names[badge]

    def _bind(self, name: str) -> None:
        badge = self._badge(name)
        if badge:
            self._names.setdefault(badge, set()).add(name)

    def check(self, records: list[Record], badge: int) -> None:
        """Raises Invalid for the first record whose rater `badge` does not speak for."""
        own = self._names.get(badge)
        for index, record in enumerate(records):
            theirs = self._badge(record.rater)
            if own is not None and record.rater not in own:
                names = ", ".join(map(repr, sorted(own)[:_SHOWN])) + (", ..." if len(own) > _SHOWN else "")
                expected = f"a rater for whom this capability speaks ({names})"
                raise Invalid(index=index, field="rater", expected=expected, got=repr(record.rater))
            if theirs not in (0, badge):
                expected = "a rater for whom this capability may speak"
                got = f"{record.rater!r}, who has a capability of their own"
                raise Invalid(index=index, field="rater", expected=expected, got=got)
