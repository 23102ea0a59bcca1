"""Where the suite runs: each opener makes servers and clients by one transport.

A further transport is one more opener in OPENERS; no test changes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Protocol, TypeVar

import pytest

from atoll.ipc import Cap, Interface, Serves, testing

from . import over_channels

I = TypeVar("I", bound=Interface)  # noqa: E741


class Served(Protocol):
    """A server that runs, by whatever transport."""

    def client(
        self, interface: type[I], *, badge: int = 0, rights: frozenset[str] | set[str] | None = None
    ) -> I: ...

    def capability(
        self, interface: type[I], *, badge: int = 0, rights: frozenset[str] | set[str] | None = None
    ) -> Cap[I]: ...


Opener = Callable[..., AbstractContextManager[Served]]
Open = Callable[..., Served]

OPENERS: dict[str, Opener] = {
    "inprocess": testing.running,
    "channel": over_channels.running,
    "channel, asleep in trio": partial(over_channels.running, in_trio=True),
}


@pytest.fixture(params=OPENERS)
def open_server(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens a server class; it is closed at the end of the test. Options: `in_hand`, calls taken at once."""
    opener = OPENERS[request.param]
    with ExitStack() as stack:

        def open_one(server: type[Serves[Any]], **options: Any) -> Served:
            return stack.enter_context(opener(server, **options))

        yield open_one
