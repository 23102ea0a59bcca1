"""Lines of a file, however it comes in pieces, and from each place at which one begins."""

from collections.abc import AsyncIterator

import trio
from hypothesis import given, settings
from hypothesis import strategies as some

from atoll.servers.importer.lines import Line, lines
from atoll.servers.storage.interface import Piece

LONGEST = 5
contents = some.text(alphabet="ab\n", max_size=40).map(str.encode)


def found(content: bytes, cuts: list[int], place: int = 0) -> list[Line]:
    async def pieces() -> AsyncIterator[Piece]:
        begin = place
        for end in sorted({cut for cut in cuts if place < cut < len(content)} | {len(content)}):
            yield Piece(end, content[begin:end])
            begin = end

    async def gather() -> list[Line]:
        return [line async for line in lines(pieces(), place, LONGEST)]

    return trio.run(gather)


@settings(deadline=None)
@given(contents, some.lists(some.integers(0, 40)))
def test_lines_are_those_of_the_content_and_lie_where_they_say(content: bytes, cuts: list[int]) -> None:
    told = found(content, cuts)
    expected = content.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line.content for line in told] == [each if len(each) <= LONGEST else None for each in expected]
    assert [content[line.place : line.end].rstrip(b"\n") for line in told] == [
        each.rstrip(b"\n") for each in expected
    ]
    assert [line.place for line in told] == [0, *[line.end for line in told]][: len(told)]


@settings(deadline=None)
@given(contents, some.lists(some.integers(0, 40)))
def test_from_where_a_line_begins_come_the_same_ones(content: bytes, cuts: list[int]) -> None:
    whole = found(content, [])
    for number, line in enumerate(whole):
        assert found(content, cuts, line.place) == whole[number:]
