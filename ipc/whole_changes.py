"""Changes as they were made: a transaction that is told in parts is put together again."""

from collections.abc import AsyncIterable, AsyncIterator

from msgspec.structs import replace

from .system.state import Change, Item


async def whole(parts: AsyncIterable[Change]) -> AsyncIterator[Change]:
    """Each transaction once, with all that is told of it."""
    begun: list[Change] = []
    async for part in parts:
        if begun and begun[0].revision != part.revision:
            # The feed broke off in it, and nothing of it is told any more: what has come is of it, not of the next one.
            yield _joined(begun)
            begun.clear()
        begun.append(part)
        if not part.more:
            yield part if len(begun) == 1 else _joined(begun)
            begun.clear()


def _joined(parts: list[Change]) -> Change:
    # A feed that broke off in a transaction tells its parts again.
    items: dict[bytes, Item] = {}
    for part in parts:
        for item in part.items:
            items[item.key] = item
    told = next((part.provenance for part in parts if part.provenance.keyspace), parts[-1].provenance)
    last = parts[-1]
    return replace(last, items=list(items.values()), provenance=told, more=False, position=last.revision)
