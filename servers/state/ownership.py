"""Whose store this is: its format, and the one process that may write it.

META holds three rows. `format` says how the other rows are to be read, and by whom. `identity` is random and tells this
store from any other, one restored from its backup included; whoever claims a store without one gives it one. `owner` is
boot epoch (8 bytes) and 8 random bytes of the writer that claimed the store last; each batch carries the condition that
the row is still its own. So a survivor of an earlier boot, or of an earlier process of this boot, cannot commit, whatever it
believes. A claim is made by the first batch of a writer rather than at open, so that a new version which is
taken back before it wrote leaves the old one in its rights. For the same reason the format is raised just before that:
a version that was taken back has left the store readable for the one that it was to replace.
"""

from collections.abc import Callable, Mapping
from typing import Final

from atoll.ipc import chance

from . import layout
from .engine import Batch, Engine, Table

CLAIM: Final = 3
"""Operations by which `Ownership.bind` makes a batch longer at most."""


class FormatRefused(Exception):
    """The store's format is not one that this version can read or upgrade."""


class Disowned(Exception):
    """Another process has claimed the store since: this one must write no more, and end."""


Upgrade = Callable[[Engine], None]
"""One step from a format to the next. It must be safe to repeat: the new format number is written after
it."""

LADDER: Final[Mapping[int, Upgrade]] = {}
"""Format to the step that leads from it to the next, for formats whose rows have to be rewritten before they are read. From
`READABLE` on none has."""


def settle_format(
    engine: Engine,
    *,
    ladder: Mapping[int, Upgrade] = LADDER,
    readable: int = layout.READABLE,
    latest: int = layout.FORMAT,
    read_only: bool = False,
) -> str:
    """Brings a store to a readable format and returns a sentence on what was done; a new store is stamped with the latest.
    Those from `readable` to `latest` are read as they are; a writer's claim raises them to the latest.

    Raises `FormatRefused`, with what to do, for a newer store, one without a way up, or one that only a
    writer may upgrade.
    """
    with engine.snapshot() as snapshot:
        raw = snapshot.get(Table.META, layout.FORMAT_KEY)
        empty = snapshot.bounds() == (0, 0)
    if raw is None:
        if not empty:
            raise FormatRefused(
                "the store has rows and no format: it is damaged or was not made by Atoll; restore a backup"
            )
        if read_only:
            raise FormatRefused(
                "the store is empty: a reader needs one that a writer has made; start the writer first"
            )
        _stamp(engine, None, latest)
        return f"a new store of format {latest} was made"
    found = int.from_bytes(raw, "big")
    if found > latest:
        raise FormatRefused(
            f"the store has format {found}, this version reads up to {latest}: run the version that wrote it"
        )
    if found >= readable:
        return f"the store has format {found}"
    if read_only:
        raise FormatRefused(
            f"the store has the older format {found}: start the writer once, which upgrades it to {readable}"
        )
    for version in range(found, readable):
        step = ladder.get(version)
        if step is None:
            raise FormatRefused(
                f"the store has format {found} and no way leads from {version} to {version + 1}: "
                "upgrade it with an older version first"
            )
        step(engine)
        _stamp(engine, version.to_bytes(4, "big"), version + 1)
    return f"the store was upgraded from format {found} to {readable}"


def _stamp(engine: Engine, before: bytes | None, version: int) -> None:
    """Writes a format down, where versions that know only older ones find it, too."""
    batch = Batch()
    batch.require(Table.META, layout.FORMAT_KEY, before)
    batch.put(Table.META, layout.FORMAT_KEY, version.to_bytes(4, "big"))
    engine.commit(batch, reserved=True)
    engine.settle()


class Ownership:
    """The writer's claim. `bind` a batch before it is committed, `bound` after it was."""

    def __init__(self, engine: Engine, boot: int) -> None:
        self._engine = engine
        self._boot = boot
        self._row = layout.pack(boot) + chance.token(8)
        self._claimed = False

    @property
    def claimed(self) -> bool:
        """Whether this process has written: only then is it sure to be the one that stays."""
        return self._claimed

    def bind(self, batch: Batch) -> None:
        """Makes the batch fail unless this process is the owner, or may become it. Raises `Disowned`."""
        if self._claimed:
            batch.require(Table.META, layout.OWNER_KEY, self._row)
            return
        with self._engine.snapshot() as snapshot:
            found = snapshot.get(Table.META, layout.OWNER_KEY)
            nameless = snapshot.get(Table.META, layout.IDENTITY_KEY) is None
            form = snapshot.get(Table.META, layout.FORMAT_KEY)
        if found is not None and int.from_bytes(found[:8], "big") > self._boot:
            raise Disowned(self.sentence(found))
        if form is not None and int.from_bytes(form, "big") < layout.FORMAT:
            _stamp(self._engine, form, layout.FORMAT)
        batch.require(Table.META, layout.OWNER_KEY, found)
        batch.put(Table.META, layout.OWNER_KEY, self._row)
        if nameless:
            batch.put(Table.META, layout.IDENTITY_KEY, chance.token(layout.IDENTITY_SIZE))

    def bound(self) -> None:
        """The batch is durable: from now on any other owner row means that somebody else took over."""
        self._claimed = True

    def sentence(self, found: bytes | None) -> str:
        by = "nobody" if found is None else f"a process of boot {int.from_bytes(found[:8], 'big')}"
        return f"the store is owned by {by}, not by this one of boot {self._boot}: nothing was written"
