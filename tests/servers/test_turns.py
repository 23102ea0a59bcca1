"""One at a time, by name: also where somebody who waits is cancelled as the one before ends."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import pytest
import trio
import trio.testing

from atoll.ipc.memory_store import MemoryStore
from atoll.servers.memory.server import Server as MemoryServer
from atoll.servers.storage.references import Reference, References

Alone = Callable[[], AbstractAsyncContextManager[None]]


def of_a_reference() -> Alone:
    references = References(MemoryStore().keyspace(Reference, "references"))
    return lambda: references.alone(1, "owner", "name")


def of_a_share() -> Alone:
    server = cast(Any, MemoryServer())
    server._turns = {}
    return lambda: server._alone(1, 2)


@pytest.mark.parametrize("made", [of_a_reference, of_a_share])
async def test_who_is_cancelled_takes_nobodys_turn_away(made: Callable[[], Alone]) -> None:
    """It came to its end when the name had another turn, and took that: whoever came next did not wait."""
    alone, inside = made(), list[str]()

    async def stay(name: str) -> None:
        async with alone():
            inside.append(name)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        cancelled = trio.CancelScope()

        async def wait() -> None:
            with cancelled:
                await stay("cancelled")

        async with alone():
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            cancelled.cancel()
        async with alone():
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(stay, "next")
            await trio.testing.wait_all_tasks_blocked()
            assert inside == []
        await trio.testing.wait_all_tasks_blocked()
        assert inside == ["next"]
        nursery.cancel_scope.cancel()
