"""The data keys that a process has, while the server of keys comes and goes."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
import trio.testing

from atoll.ipc.errors import PeerDied, Sealed
from atoll.ipc.keyspace import settled
from atoll.ipc.private.ring import MOST, Ring
from atoll.ipc.system.keys import KEY, LABEL, Keys, Told


class Leaving:
    """A server of keys whose first stream breaks while keys are asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.first = trio.Event()

    async def hold(self) -> AsyncIterator[Told]:
        yield Told(0, badge=1, index=b"index")
        if not self.asked:
            await self.first.wait()
            raise PeerDied("Keys.hold", True)
        await trio.sleep_forever()

    async def release(self, labels: list[bytes]) -> list[bytes | None]:
        self.asked += 1
        if self.asked == 1:
            self.first.set()
            await trio.sleep_forever()  # it would be sent again, to whoever comes next
        return [bytes(KEY) for _ in labels]


def test_keys_that_were_asked_for_when_the_stream_broke_are_asked_for_again() -> None:
    """Whoever waited for them waited until somebody else needed keys."""

    async def main() -> None:
        ring = Ring(cast(Keys, cast(Any, Leaving())))
        async with trio.open_nursery() as nursery:
            await nursery.start(ring.run)
            await trio.testing.wait_all_tasks_blocked()
            waiting = ring.fetch(["ann"])
            assert waiting is not None
            with trio.move_on_after(3600):  # nothing else happens: time passes at once
                await settled(waiting)
            assert waiting.done
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Serving:
    """A server of keys that has one for everybody."""

    def __init__(self) -> None:
        self.asked = 0

    async def hold(self) -> AsyncIterator[Told]:
        yield Told(0, badge=1, index=b"index")
        await trio.sleep_forever()

    async def release(self, labels: list[bytes]) -> list[bytes | None]:
        self.asked += len(labels)
        if self.asked > 10 * MOST:
            pytest.fail("keys are asked for again and again, and nobody has all of theirs")
        return [bytes(KEY) for _ in labels]


def test_more_keys_than_are_held_are_wanted_by_several_at_once() -> None:
    """None of them ever had all of theirs together: what came for one took the place of what had come for another."""

    async def main() -> None:
        ring = Ring(cast(Keys, cast(Any, Serving())))
        async with trio.open_nursery() as nursery:
            await nursery.start(ring.run)
            await trio.testing.wait_all_tasks_blocked()
            size = MOST // 2
            for first in range(0, 3 * size, size):
                waiting = ring.fetch(
                    labels=[number.to_bytes(LABEL, "big") for number in range(first, first + size)]
                )
                assert waiting is not None
                nursery.start_soon(settled, waiting)
            await trio.testing.wait_all_tasks_blocked()
            assert not ring._waiting
            nursery.cancel_scope.cancel()

    trio.run(main)


class PutBack:
    """A server of keys whose keyring is a copy from before new seeds, until the newest one is put back. To its clients that
    is a stream which goes on: it begins again with what they work with."""

    def __init__(self) -> None:
        self.newest = trio.Event()

    async def hold(self) -> AsyncIterator[Told]:
        yield Told(0, badge=1, index=b"index")
        await self.newest.wait()
        yield Told(0, badge=1, index=b"index", generation=1)
        await trio.sleep_forever()

    async def release(self, labels: list[bytes]) -> list[bytes | None]:
        return [bytes(KEY) if self.newest.is_set() or not label[0] else None for label in labels]


def test_what_an_older_keyring_did_not_know_is_asked_for_again_when_the_newest_is_back() -> None:
    """It was closed until its server was restarted."""

    async def main() -> None:
        keys = PutBack()
        ring = Ring(cast(Keys, cast(Any, keys)))
        label = bytes((1,)).ljust(LABEL, b"a")
        async with trio.open_nursery() as nursery:
            await nursery.start(ring.run)
            waiting = ring.fetch(labels=[label])
            assert waiting is not None
            await settled(waiting)
            with pytest.raises(Sealed, match="put back the newest one"):
                ring.cipher(label)
            keys.newest.set()
            await trio.testing.wait_all_tasks_blocked()
            again = ring.fetch(labels=[label])
            assert again is not None
            await settled(again)
            assert ring.cipher(label)
            nursery.cancel_scope.cancel()

    trio.run(main)
