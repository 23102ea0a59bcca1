"""Who may submit under which rater's name, and how far a rater is trusted.

What a record says of itself (rater, role, trust) is a claim; what is known for sure is the badge of the
capability that submitted it, which the batch's head keeps. Where a rater has a badge of their own, nobody
else can submit under that name, and that badge can submit under no other. Trust is a bound from the revision on
in which it was written: a set as of an earlier revision counts as it did then, so it stays the same for ever;
a set as of now counts a rater who turned out to be bad for less, whenever they submitted.
"""

from collections.abc import Iterable

from .interface import Invalid, Rater
from .records import Record

_SHOWN = 5


class Raters:
    """The raters as they are now. One task at a time touches an instance."""

    def __init__(self, raters: Iterable[Rater] = ()) -> None:
        self._by_name: dict[str, Rater] = {}
        self._names: dict[int, set[str]] = {}
        """Of each badge that speaks for anybody, for whom."""
        for rater in raters:
            self.put(rater)

    def put(self, rater: Rater) -> None:
        before = self._by_name.get(rater.name)
        if before is not None and before.badge:
            names = self._names[before.badge]
            names.discard(rater.name)
            if not names:
                del self._names[before.badge]
        if rater.badge:
            self._names.setdefault(rater.badge, set()).add(rater.name)
        self._by_name[rater.name] = rater

    def check(self, records: list[Record], badge: int) -> None:
        """Raises Invalid for the first record whose rater `badge` does not speak for."""
        own = self._names.get(badge)
        for index, record in enumerate(records):
            known = self._by_name.get(record.rater)
            if own is not None and record.rater not in own:
                names = ", ".join(map(repr, sorted(own)[:_SHOWN])) + (", ..." if len(own) > _SHOWN else "")
                expected = f"a rater for whom this capability speaks ({names})"
                raise Invalid(index=index, field="rater", expected=expected, got=repr(record.rater))
            if known is not None and known.badge not in (0, badge):
                expected = "a rater for whom this capability may speak"
                got = f"{record.rater!r}, who has a capability of their own"
                raise Invalid(index=index, field="rater", expected=expected, got=got)
