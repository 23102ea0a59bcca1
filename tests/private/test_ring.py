"""The data keys that a process has, while the server of keys comes and goes."""

from collections.abc import AsyncIterator
from typing import Any, cast

import trio
import trio.testing

from atoll.ipc.errors import PeerDied
from atoll.ipc.keyspace import settled
from atoll.ipc.private.ring import Ring
from atoll.ipc.system.keys import KEY, Keys, Told


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
