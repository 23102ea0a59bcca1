"""The data keys of one private keyspace, as far as its owner's process has them.

They are held as long as the stream `hold` of `keys` lives: on it each purge arrives, the key goes, and `let_go` says
so. When the stream breaks for good nothing is held any more, and what is wanted next is asked for anew. What is
missing is asked for by a task of its own, many at a time, and under no caller's deadline: others may wait for the same key.
"""

from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from atoll.ipc.context import Log
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import AtollError, PeerFault, Purged, Sealed, TooLarge
from atoll.ipc.form import NotReady
from atoll.ipc.system.keys import AT_ONCE, Keys, Told, hashed, tag_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MOST: Final = 10_000
"""Subjects whose keys are held at a time, the latest asked for."""
_RETRY: Final = 0.1
"""Seconds until `keys` is asked again after it went."""
_REFUSED: Final = 1.0
"""And after it refused: somebody has to act first."""


class _Wanted:
    """Whoever waits for keys."""

    __slots__ = ("done", "labels", "subjects")

    def __init__(self, subjects: tuple[str, ...], labels: tuple[bytes, ...]) -> None:
        self.subjects = subjects
        self.labels = labels
        self.done: Deferred[None] = Deferred()


class Ring:
    """One task runs `run`; everything else is called on the same thread."""

    def __init__(self, keys: Keys, name: str = "") -> None:
        # Only here: it is 20 ms and some MiB that a process without private keyspaces has no use for.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aead = AESGCM
        self._keys = keys
        self._name = name
        self._index = b""
        self._generation = bytes(1)
        self.badge = 0
        self._held: dict[bytes, AESGCM | None] = {}
        """By label; None: purged, or unknown."""
        self._unknown: set[bytes] = set()
        """Labels of generations that the keyring has not."""
        self._labels: dict[str, bytes] = {}
        """Of subjects, for what is sealed now."""
        self._waiting: list[_Wanted] = []
        self._asked = trio.Event()
        self._fault: Sealed | None = None
        """Why `keys` gives nothing, if it said so."""

    # what others ask ------------------------------------------------------------------------------------------

    def label(self, subject: str) -> bytes:
        """By which key is sealed what is about a subject. Precondition, as of all that follows: `fetch` said that nothing is
        missing for it."""
        found = self._labels.get(subject)
        if found is None:
            found = self._labels[subject] = self._generation + tag_of(self._index, subject)
            _trim(self._labels)
        return found

    def hashed(self, text: str) -> str:
        return hashed(self._index, b"text", text).hex()[:32]

    def cipher(self, label: bytes) -> "AESGCM":
        """Raises `Purged`, as an error without a name: by its label nobody is known. NotReady where `fetch` has to be asked
        first."""
        found = self._held.get(label)
        if found is not None:
            return found
        if label not in self._held:
            raise NotReady
        if label in self._unknown:
            raise Sealed(
                self._name, "by a generation of keys that this keyring has not: put back the newest one"
            )
        raise Purged("whom a row is about")

    def is_purged(self, subject: str) -> bool:
        return self._held[self.label(subject)] is None

    def fetch(self, subjects: Collection[str] = (), labels: Collection[bytes] = ()) -> Deferred[None] | None:
        """None: all of their keys are here, or gone; for nobody, the index key is. Else it is done when they are, and fails
        with `Sealed` where `keys` gives none."""
        if not self._missing(subjects, labels):
            return None
        if len(subjects) + len(labels) > MOST // 2:
            raise TooLarge(
                "what is sealed or opened at once, in subjects,", len(subjects) + len(labels), MOST // 2
            )
        wanted = _Wanted(tuple(subjects), tuple(labels))
        if self._fault is not None and not self._index:
            wanted.done.fail(self._fault)
            return wanted.done
        self._waiting.append(wanted)
        self._asked.set()
        return wanted.done

    def _missing(self, subjects: Iterable[str], labels: Iterable[bytes]) -> bool:
        """Whether a key is missing for one of them; with no index key, all are."""
        held = self._held
        if not self._index:
            return True
        for label in labels:
            if label not in held:
                return True
        return any(self.label(subject) not in held for subject in subjects)

    # its task -------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Holds keys until cancelled."""
        task_status.started()
        while True:
            await self._hold()
            self._held.clear()
            self._unknown.clear()
            self._labels.clear()
            self._index = b""
            await trio.sleep(_RETRY if self._fault is None else _REFUSED)

    async def _hold(self) -> None:
        """As long as one stream lives."""
        async with trio.open_nursery() as nursery:
            try:
                async for told in self._keys.hold():
                    if told.purged:
                        await self._purged(told)
                    else:
                        first = not self._index
                        self._begin(told)
                        if first:
                            self._fault = None
                            self._asked.set()  # for whoever waits since the stream of before
                            nursery.start_soon(self._ask)
            except PeerFault as fault:
                Log().debug("a private keyspace waits for its keys", reason=str(fault))
            except AtollError as fault:
                self._refused(fault)
            nursery.cancel_scope.cancel()

    def _refused(self, fault: AtollError) -> None:
        """Nobody is to wait for what will not come until somebody acts."""
        self._fault = Sealed(self._name, str(fault))
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.done.fail(self._fault)

    def _begin(self, told: Told) -> None:
        self._index, self.badge = told.index, told.badge
        self._generation = bytes((told.generation,))
        self._labels.clear()
        # It may be told by another process, over another keyring: the newest one, which was put back.
        for label in self._unknown:
            self._held.pop(label, None)
        self._unknown.clear()

    async def _purged(self, told: Told) -> None:
        # Of all generations, also those whose keys are not here yet, but may be on their way.
        for generation in range(self._generation[0] + 1):
            self._held[bytes((generation,)) + told.purged] = None
        with suppress(AtollError):  # as above; the stream goes on
            await self._keys.let_go(told.position)

    async def _ask(self) -> None:
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            if asked := self._next():
                try:
                    keys = await self._keys.release(asked)
                except AtollError:
                    # A new process of `keys` may hear of this before it hears of the stream, on which it says what is wrong
                    # if something is.
                    self._asked.set()
                    await trio.sleep(_RETRY)
                    continue
                self._unknown.update(label for label, key in zip(asked, keys, strict=True) if key is None)
                for label, key in zip(asked, keys, strict=True):
                    # A purge that came meanwhile is the later word.
                    self._held.setdefault(label, self._aead(key) if key else None)
            waiting, self._waiting = self._waiting, []
            done: list[_Wanted] = []
            for each in waiting:
                (self._waiting if self._missing(each.subjects, each.labels) else done).append(each)
            if self._waiting:
                self._asked.set()
            for each in done:
                each.done.complete(None)
            _trim(self._held)

    def _next(self) -> list[bytes]:
        """What is asked for now: first what those lack who came first. They may want more together than is held at a time:
        what came for one must not take the place of what the one before waits for."""
        asked: dict[bytes, None] = {}
        for each in self._waiting:
            for label in self._all(each):
                if label not in self._held:
                    asked[label] = None
                    if len(asked) == AT_ONCE:
                        return list(asked)
        return list(asked)

    def _all(self, wanted: _Wanted) -> Iterable[bytes]:
        yield from wanted.labels
        for subject in wanted.subjects:
            yield self.label(subject)


def _trim(held: dict[str, bytes] | dict[bytes, "AESGCM | None"]) -> None:
    """The oldest go; what was just asked for is at the end."""
    for key in list(islice(held, max(0, len(held) - MOST))):
        del held[key]  # type: ignore[arg-type]
