"""The suite's second transport: a server process of its own behind real channels (tests/kit), without a kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from atoll.ipc import Cap, Interface, Serves
from tests.kit.serving import Serving, serving

I = TypeVar("I", bound=Interface)  # noqa: E741


class OverChannels:
    """Each client has a channel of its own."""

    def __init__(self, served: Serving) -> None:
        self._served = served

    def client(
        self, interface: type[I], *, badge: int = 0, rights: frozenset[str] | set[str] | None = None
    ) -> I:
        return self._served.proxy(interface, badge=badge, rights=rights)

    def capability(
        self, interface: type[I], *, badge: int = 0, rights: frozenset[str] | set[str] | None = None
    ) -> Cap[I]:
        pytest.skip("only a kernel can transfer a capability from one process to another")


@contextmanager
def running(
    server: type[Serves[Any]], *, in_hand: int | None = None, in_trio: bool = False
) -> Iterator[OverChannels]:
    """Like `testing.running`. `in_trio`: the server sleeps as simulated ones do."""
    with serving(server, clients=0, in_hand=in_hand, in_trio=in_trio) as served:
        yield OverChannels(served)
