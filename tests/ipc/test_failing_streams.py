"""A stream whose source fails: what came before reaches its reader, then why it failed."""

from collections.abc import AsyncIterator, Iterator

import pytest

from atoll.ipc import Interface, Serves, stream, testing
from atoll.ipc.errors import NotFound
from atoll.ipc.streams import RECORD_ITEMS
from tests.kit.serving import serving


class Pages(Interface):
    @stream("read")
    def plain(self, count: int) -> int: ...

    @stream("read")
    def waiting(self, count: int) -> int: ...


class Server(Serves[Pages]):
    @Pages.plain.serve
    def plain(self, count: int) -> Iterator[int]:
        yield from range(count)
        raise NotFound("page", str(count))

    @Pages.waiting.serve
    async def waiting(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
        raise NotFound("page", str(count))


def read(pages: Pages, name: str, count: int) -> list[int]:
    found: list[int] = []

    def each() -> None:
        for number in getattr(pages, name).now(count):
            found.append(number)  # not at once: it fails in the end

    with pytest.raises(NotFound, match=str(count)):
        each()
    return found


EACH = pytest.mark.parametrize("count", [0, 3, RECORD_ITEMS, 10 * RECORD_ITEMS + 3])


@EACH
@pytest.mark.parametrize("name", ["plain", "waiting"])
def test_in_a_process(name: str, count: int) -> None:
    """Up to a record of what a plain generator had yielded was missing."""
    with serving(Server) as served:
        assert read(served.proxies[0], name, count) == list(range(count))


@EACH
@pytest.mark.parametrize("name", ["plain", "waiting"])
def test_in_one_process(name: str, count: int) -> None:
    with testing.node(Server) as pages:
        assert read(pages, name, count) == list(range(count))
