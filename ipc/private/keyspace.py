"""A private keyspace, as a server's author has it: `words: Private[Entry]`, where an `Entry` says its `subject`.

    class Entry(Struct):
        rater: str
        text: str
        @property
        def subject(self) -> str: return self.rater

It is read and written like any keyspace, and sealed here, in the process of its server: the store has ciphertext. Of
whom was purged `get` and a transaction raise `Purged`; rows come with `purged` set and no value. The keys of rows are
not sealed: `hashed` makes one of what is personal.
"""

from collections.abc import Collection
from typing import Any, ClassVar, NoReturn

import trio

from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.system.keys import Keys, Purge
from atoll.ipc.system.state import State

from .ring import Ring
from .sealed import P, SealedForm


class Private(Keyspace[P]):
    """Sealed rows of type P by key."""

    __atoll_private__: ClassVar[bool] = True

    def __init__(
        self, state: State, kind: Any, keys: Keys, *, name: str = "", boot: int = 0, prefix: bytes = b""
    ) -> None:
        """`name`: of its need, for errors."""
        self._keys = keys
        self.ring = Ring(keys, name)
        super().__init__(state, kind, boot=boot, prefix=prefix, form=SealedForm(kind, self.ring))

    @property
    def local(self) -> NoReturn:
        """There is none: what everybody said would lie in memory."""
        raise RuntimeError(
            "a private keyspace has no local view: read it with `await rows.get(key)`; what is read is opened and not kept"
        )

    async def follow(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """There is no view to keep."""
        task_status.started()

    async def hashed(self, text: str) -> str:
        """A keyed hash, to stand in keys of rows for what is personal: 32 hexadecimal digits, the same for the same
        text in this keyspace, and to be made by nobody else. A purge leaves it as it is."""
        while (waiting := self.ring.fetch()) is not None:
            await settled(waiting)
        return self.ring.hashed(text)

    async def purged(self, subjects: Collection[str]) -> set[str]:
        """Those who were purged here: what is about them can be neither read nor written."""
        while (waiting := self.ring.fetch(subjects)) is not None:
            await settled(waiting)
        return set(filter(self.ring.is_purged, subjects))

    async def purge(self, subject: str) -> Purge:
        """Destroys the key of all that was ever written about a subject here: rows, their past, backups. Needs the
        right `purge` on the keyspace."""
        return await self._keys.purge(subject)
