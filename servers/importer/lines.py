"""The lines of a file that comes in pieces, each with its place: where to go on after a crash."""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import NamedTuple

from atoll.servers.storage.interface import Piece


class Line(NamedTuple):
    place: int
    end: int
    """Where the next one begins."""
    content: bytes | None
    """None: it is too long to be held."""


async def lines(pieces: AsyncIterable[Piece], place: int, longest: int) -> AsyncGenerator[Line, None]:
    """The lines from `place` on. Of one that is longer than `longest` bytes no more than that is held."""
    held, length = list[bytes](), 0
    async for piece in pieces:
        *ended, rest = piece.data.split(b"\n")
        for part in ended:
            length += len(part)
            held.append(part)
            yield Line(place, place + length + 1, b"".join(held) if length <= longest else None)
            place, held, length = place + length + 1, [], 0
        length += len(rest)
        held = [*held, rest] if length <= longest else []
    if length:
        yield Line(place, place + length, b"".join(held) if length <= longest else None)
