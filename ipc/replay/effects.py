"""What calls of the store come to: which rows they leave written, once transactions have ended."""

from typing import Any

import msgspec

from atoll.ipc.method import MethodSpec
from atoll.ipc.system.state import State

BY_LABEL: dict[str, MethodSpec] = {
    method.spec.label: method.spec for method in vars(State).values() if hasattr(method, "spec")
}
_arguments: dict[str, Any] = {
    label: msgspec.msgpack.Decoder(spec.arguments) for label, spec in BY_LABEL.items()
}
_id, _number = msgspec.msgpack.Decoder(bytes), msgspec.msgpack.Decoder(int)

Place = tuple[str, bytes]
"""Need and key."""


def arguments_of(label: str, payload: bytes) -> Any:
    """The arguments of a method of `State`."""
    return _arguments[label].decode(payload)


class Effects:
    """Of one call: `rows` has what it wrote so far as its own reads see it, by need and key."""

    def __init__(self) -> None:
        self._written: list[tuple[bytes, Place, bytes | None]] = []
        """In order, with the transaction in which; empty: in none, or in one that has been committed."""
        self._marks: dict[tuple[bytes, int], int] = {}
        """By transaction and savepoint, or part (and -1), how much had been written."""
        self._whole: dict[bytes, bytes] = {}
        """By part, the transaction."""

    @property
    def rows(self) -> dict[Place, bytes | None]:
        return {place: value for _, place, value in self._written}

    def happened(self, need: str, label: str, payload: bytes, reply: bytes | None) -> None:
        """A call of the store, with its reply (of a cast b""); None: it failed."""
        name, given = label.removeprefix("State."), arguments_of(label, payload)
        if reply is None:
            if name == "finish":
                self._forget(self._of(given.transaction), 0)
            return
        match name:
            case "commit" | "append":
                of = self._of(given.transaction)
                self._written += [(of, (need, write.key), write.value) for write in given.writes]
            case "savepoint":
                self._marks[given.transaction, _number.decode(reply)] = len(self._written)
            case "share":
                part = _id.decode(reply)
                self._whole[part] = self._of(given.transaction)
                self._marks[part, -1] = len(self._written)
            case "undo":
                self._forget(
                    self._of(given.transaction), self._marks.get((given.transaction, given.savepoint), 0)
                )
            case "retract":
                self._forget(self._of(given.part), self._marks.get((given.part, -1), 0))
            case "abort":
                self._forget(self._of(given.transaction), 0)
            case "finish":
                ended = self._of(given.transaction)
                self._written = [(b"" if of == ended else of, *rest) for of, *rest in self._written]  # type: ignore[misc]

    def _of(self, id: bytes) -> bytes:
        return self._whole.get(id, id)

    def _forget(self, transaction: bytes, since: int) -> None:
        kept, later = self._written[:since], self._written[since:]
        self._written = kept + [each for each in later if each[0] != transaction]
