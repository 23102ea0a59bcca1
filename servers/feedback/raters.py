"""Who may submit under which rater's name, and how far a rater is trusted.

What a record says of itself (rater, role, trust) is a claim; what is known for sure is the badge of the
capability that submitted it, which the batch's head keeps. Where a rater has a badge of their own, nobody
else can submit under that name, and that badge can submit under no other. Trust is a bound from the revision on
in which it was written: a set as of an earlier revision counts as it did then, so it stays the same for ever;
a set as of now counts a rater who turned out to be bad for less, whenever they submitted.
"""

import sys
from collections.abc import Iterable
from typing import Any

import trio

from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.local_view import LocalView
from atoll.ipc.transaction import Transaction

from .interface import Invalid, Rater
from .records import Record
from .rows import RATERS, Appointed, Appointments, Row

_SHOWN = 5
_LAST = ""
"""In the view, the row that is written with each appointment; a rater's is under `/` and the name."""


class Raters(LocalView[Appointed | Appointments]):
    """The raters as they are now: a view of their rows. One task at a time touches an instance."""

    def __init__(self) -> None:
        super().__init__()
        self._badges: dict[str, int] = {}
        """Of each rater's row with one."""
        self._names: dict[int, set[str]] = {}
        """Of each badge that speaks for anybody, for whom."""

    @classmethod
    def of(cls, rows: Iterable[tuple[str, Appointed | Appointments]]) -> "Raters":
        """As a transaction has read them."""
        raters = cls()
        for key, value in rows:
            raters.put(key, value, 1)
        return raters

    @property
    def appointed(self) -> int | None:
        """The revision of the last appointment that the view has, 0 where there is none. None until the feed has come as
        far: of those before it one may be missing here."""
        last = self.revision_of(_LAST)
        return last if last <= self.revision else None

    def put(self, key: str, value: Appointed | Appointments, revision: int) -> None:
        self._unbind(key)
        super().put(key, value, revision)
        self._bind(key)

    def delete(self, key: str, revision: int) -> None:
        self._unbind(key)
        super().delete(key, revision)
        self._bind(key)

    def _unbind(self, key: str) -> None:
        badge = self._badges.pop(key[1:], 0)
        if badge:
            self._names[badge].discard(key[1:])
            if not self._names[badge]:
                del self._names[badge]

    def _bind(self, key: str) -> None:
        known = self.get(key)
        if isinstance(known, Appointed) and known.rater.badge:
            self._badges[key[1:]] = known.rater.badge
            self._names.setdefault(known.rater.badge, set()).add(key[1:])

    def check(self, records: list[Record], badge: int) -> None:
        """Raises Invalid for the first record whose rater `badge` does not speak for."""
        own = self._names.get(badge)
        for index, record in enumerate(records):
            theirs = self._badges.get(record.rater, 0)
            if own is not None and record.rater not in own:
                names = ", ".join(map(repr, sorted(own)[:_SHOWN])) + (", ..." if len(own) > _SHOWN else "")
                expected = f"a rater for whom this capability speaks ({names})"
                raise Invalid(index=index, field="rater", expected=expected, got=repr(record.rater))
            if theirs not in (0, badge):
                expected = "a rater for whom this capability may speak"
                got = f"{record.rater!r}, who has a capability of their own"
                raise Invalid(index=index, field="rater", expected=expected, got=got)


class Register:
    """Raters are appointed here, and submissions held to that."""

    def __init__(self, rows: Keyspace[Row]) -> None:
        self._raters = Raters()
        self._rows = Keyspace[Appointed | Appointments](
            rows.state, Appointed | Appointments, boot=rows.boot, prefix=RATERS.encode(), view=self._raters
        )
        self.asking = trio.Lock()
        """Held by a submission as long as it asks the store who is appointed, and tries again. Whoever is to be appointed
        waits for that: one after another, they could keep it from its end."""

    async def load(self) -> None:
        await self._rows.load()

    async def follow(self) -> None:
        """Bring in what was appointed by a call that did not live to hear of it."""
        await self._rows.follow()

    async def appoint(self, rater: Rater) -> int:
        async with self.asking:
            pass
        return await settled(self._rows.put_all({_LAST: Appointments(), f"/{rater.name}": Appointed(rater)}))

    def check(self, records: list[Record], badge: int) -> int | None:
        """As of which appointment `badge` speaks for the raters of all records, for `hold`. Raises Invalid."""
        self._raters.check(records, badge)
        return self._raters.appointed

    async def hold(
        self, tx: Transaction[Any], records: list[Record], badge: int, checked: int | None
    ) -> None:
        """Have a transaction commit only while nobody is appointed in between. `checked`: what `check` gave; None: the store
        is asked, and Invalid raised where that says otherwise."""
        appointments = tx.on(self._rows)
        if checked is not None:
            appointments.expect(_LAST, checked)
        else:
            Raters.of(await appointments.range(limit=sys.maxsize)).check(records, badge)
