"""How a private keyspace writes its values: MessagePack, sealed under the data key of whom the value is about."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from atoll.ipc.context import current_or_none, in_hand
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import DecodeFaults, PeerMisbehaved
from atoll.ipc.form import Draft, Form
from atoll.ipc.keyspace import settled
from atoll.ipc.system.keys import SUBJECT_MOST

from .envelope import label_in, open_, seal
from .ring import Ring


class Personal(Protocol):
    """A value that says whom it is about: a field, or a property, `subject`."""

    @property
    def subject(self) -> str: ...


P = TypeVar("P", bound=Personal)


class SealedForm(Form[P]):
    waits = True

    def __init__(self, kind: Any, ring: Ring) -> None:
        from cryptography.exceptions import InvalidTag

        super().__init__(kind)
        self.ring = ring
        self._wrong = InvalidTag

    def draft(self, value: P) -> Draft:
        subject = value.subject
        if not (isinstance(subject, str) and subject):
            raise TypeError(
                f"{type(value).__name__}.subject: a text that names whom it is about, not {subject!r}"
            )
        if len(subject.encode()) > SUBJECT_MOST:
            raise TypeError(
                f"{type(value).__name__}.subject: {SUBJECT_MOST} bytes at most, or nobody could purge it"
            )
        return Draft(self._packed(value), subject)

    def written(self, key: bytes, draft: Draft) -> bytes:
        label = self.ring.label(draft.subject)
        return seal(self.ring.cipher(label), label, self.ring.badge, key, draft.packed)

    def read(self, key: bytes, packed: bytes) -> P:
        label = label_in(packed)
        if label is None:
            raise _unfit(key, "a value that is not sealed")
        try:
            plain = open_(self.ring.cipher(label), packed, self.ring.badge, key)
        except self._wrong:
            raise _unfit(key, "a value that was not sealed for this key") from None
        try:
            return self.decode(plain)
        except DecodeFaults:
            # Its sentence may quote the value.
            raise _unfit(key, "a value of another type") from None

    def before(
        self,
        drafts: Iterable[Draft],
        packed: Iterable[bytes],
        go: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        waiting = self._missing({draft.subject for draft in drafts}, _labels(packed))
        if waiting is None:
            self._go(go, failed)
            return
        call = current_or_none()

        def come(_: None) -> None:
            with in_hand(call):
                self._go(go, failed)

        waiting.react(come, failed)

    @staticmethod
    def _go(go: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        try:
            go()
        except Exception as error:  # as a handler's own: it is whoever waits for the outcome who hears of it
            failed(error)

    async def ready(self, drafts: Iterable[Draft] = (), packed: Iterable[bytes] = ()) -> None:
        subjects, labels = {draft.subject for draft in drafts}, _labels(packed)
        while (waiting := self._missing(subjects, labels)) is not None:
            await settled(waiting)  # until nothing is missing now: meanwhile all may have been let go again

    def _missing(self, subjects: set[str], labels: set[bytes]) -> Deferred[None] | None:
        return self.ring.fetch(subjects, labels) if subjects or labels else None


def _labels(packed: Iterable[bytes]) -> set[bytes]:
    return {label for each in packed if (label := label_in(each)) is not None}


def _unfit(key: bytes, found: str) -> PeerMisbehaved:
    return PeerMisbehaved(f"row {key[:100]!r} of a private keyspace", f"the store has {found} there")
