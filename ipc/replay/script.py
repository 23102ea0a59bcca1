"""What a recorded call was given, handed out again to the call that is run in its place."""

from collections import deque
from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from atoll.ipc.context import SystemClock
from atoll.ipc.system.calls import ASKED, CHANCE, DOUBLE, MONOTONIC, NOW, Asked, Recorded

_asked = msgspec.msgpack.Decoder(Asked)


class Script:
    """Of one call, or of a server's start. `hindrances` collects what cannot be played, as sentences."""

    def __init__(self, asked: Iterable[Asked], call: Recorded | None = None) -> None:
        self.call = call
        self.asked = list(asked)
        self._left = list(self.asked)
        notes = [] if call is None else call.notes
        self._times: deque[float] = deque(DOUBLE.unpack(noted)[0] for what, noted in notes if what == NOW)
        self._monotonic: deque[float] = deque(
            DOUBLE.unpack(noted)[0] for what, noted in notes if what == MONOTONIC
        )
        self._chance = deque(noted for what, noted in notes if what == CHANCE)
        self._began = 0.0 if call is None else call.time / 1e9
        self._drawn = 0
        self.unasked: list[Asked] = []
        """What was asked now and not then."""
        self.hindrances: list[str] = []

    @classmethod
    def of(cls, call: Recorded) -> "Script":
        return cls((_asked.decode(noted) for what, noted in call.notes if what == ASKED), call)

    def left(self) -> list[Asked]:
        """What was asked then and not (yet) now."""
        return list(self._left)

    def answer(self, need: str, method: str, arguments: bytes) -> Asked | None:
        """What that was answered then; each answer is given once. None: it was not asked."""
        for asked in self._left:
            if (asked.need, asked.method, asked.arguments) == (need, method, arguments):
                self._left.remove(asked)
                return asked
        return None

    def hinder(self, sentence: str) -> None:
        if sentence not in self.hindrances:
            self.hindrances.append(sentence)

    # time and chance ------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """The next time that was asked for; after the last one, that again."""
        if self._times:
            self._began = self._times.popleft()
        return self._began

    def monotonic(self) -> float:
        if self._monotonic:
            return self._monotonic.popleft()
        deadline = 0 if self.call is None else self.call.deadline
        return deadline / 1e9 - 1.0 if deadline else 0.0

    def token(self, size: int) -> bytes:
        """The bytes that were drawn; where more is asked for than then, bytes that are the same in each replay."""
        if self._chance and len(self._chance[0]) == size:
            return self._chance.popleft()
        self._drawn += 1
        named = "start" if self.call is None else self.call.id
        return (
            blake2b(f"{named} {self._drawn}".encode(), digest_size=min(size, 64)).digest().ljust(size, b"\0")
        )


class PlayedClock(SystemClock):
    """Of a call in hand."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def time(self) -> float:
        return self._script.now()

    def monotonic(self) -> float:
        return self._script.monotonic()
