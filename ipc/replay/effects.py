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
        """In order, with the transaction or part in which; empty: in none, or in one that has been committed."""
        self._marks: dict[tuple[bytes, int], int] = {}
        """By transaction and savepoint, or part (and -1), how much had been written."""
        self._within: dict[bytes, bytes] = {}
        """By part, what it is a part of."""

    @property
    def rows(self) -> dict[Place, bytes | None]:
        return {place: value for _, place, value in self._written}

    def happened(self, need: str, label: str, payload: bytes, reply: bytes | None) -> None:
        """A call of the store, with its reply (of a cast b""); None: it failed."""
        name, given = label.removeprefix("State."), arguments_of(label, payload)
        if reply is None:
            if name == "finish":
                self._forget(given.transaction, 0)
            return
        match name:
            case "commit" | "append":
                self._written += [
                    (given.transaction, (need, write.key), write.value) for write in given.writes
                ]
            case "savepoint":
                self._marks[given.transaction, _number.decode(reply)] = len(self._written)
            case "share":
                part = _id.decode(reply)
                self._within[part] = given.transaction
                self._marks[part, -1] = len(self._written)
            case "undo":
                self._forget(given.transaction, self._marks.get((given.transaction, given.savepoint), 0))
            case "join":
                self._become(given.part, self._within.get(given.part, given.part))
            case "retract":
                self._forget(given.part, self._marks.get((given.part, -1), 0))
            case "abort":
                self._forget(given.transaction, 0)
            case "finish":
                self._become(given.transaction, b"")

    def _is_in(self, id: bytes, whole: bytes) -> bool:
        """Whether that is a transaction or a part, or a part of it."""
        while id != whole and id in self._within:
            id = self._within[id]
        return id == whole

    def _become(self, ended: bytes, of: bytes) -> None:
        """What was written in a transaction or a part is of another one from now on."""
        self._written = [
            (of if self._is_in(each[0], ended) else each[0], *each[1:]) for each in self._written
        ]

    def _forget(self, ended: bytes, since: int) -> None:
        """What was written in a transaction or a part, and in no other that was beside it, is undone."""
        kept, later = self._written[:since], self._written[since:]
        self._written = kept + [each for each in later if not self._is_in(each[0], ended)]
