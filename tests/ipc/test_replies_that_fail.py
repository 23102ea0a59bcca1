"""Replies that cannot be given: why is told alike, whenever the handler gives them."""

import pytest
import trio

from atoll.ipc import Buffer, Deferred, Interface, Serves, call
from atoll.ipc.errors import BadRequest
from tests.kit.serving import serving


class Lends(Interface):
    @call("use")
    def at_once(self) -> Buffer: ...

    @call("use")
    def in_a_task(self) -> Buffer: ...

    @call("use")
    def later(self) -> Buffer: ...

    @call("use")
    def done(self) -> Buffer: ...


def loose() -> Buffer:
    """None that the kernel has made: no message carries it."""
    return Buffer(memoryview(b"loose"), "readonly", 0)


class Server(Serves[Lends]):
    @Lends.at_once.serve
    def at_once(self) -> Buffer:
        return loose()

    @Lends.in_a_task.serve
    async def in_a_task(self) -> Buffer:
        await trio.lowlevel.checkpoint()
        return loose()

    @Lends.later.serve
    def later(self) -> Deferred[Buffer]:
        made: Deferred[Buffer] = Deferred()
        trio.lowlevel.spawn_system_task(self._complete, made)
        return made

    async def _complete(self, made: Deferred[Buffer]) -> None:
        made.complete(loose())

    @Lends.done.serve
    def done(self) -> Deferred[Buffer]:
        return Deferred.resolved(loose())


@pytest.mark.parametrize("way", ["at_once", "in_a_task", "later", "done"])
def test_why_is_told(way: str) -> None:
    """Of a `Deferred` it was a fault of the server's, with the refusal in its text."""
    with serving(Server) as served, pytest.raises(BadRequest, match="this process holds no capability"):
        getattr(served.proxies[0], way).now()
