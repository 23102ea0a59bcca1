"""Who is told what a private keyspace holds.

What a recorded server is told lies in `calls/SERVER` in the clear: the arguments that it is called with, the replies that it
gets, and what it replies itself, which may be made of both, also calls later. So nothing of one call could be left out of
the record to any avail, and a server that is recorded may not be on a way of calls to or from a private keyspace's.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

EXPECTED = (
    "no record of a server that talks with one that has a private keyspace: "
    "what is said there would be rows in the clear"
)


class Way(NamedTuple):
    recorded: str
    servers: tuple[str, ...]
    """Each calls the next one; at one end is who is recorded, at the other who has the private keyspace."""

    def __str__(self) -> str:
        return " -> ".join(self.servers)


def ways(
    calls: Iterable[tuple[str, str]], recorded: Iterable[str], private: Collection[str]
) -> Iterator[Way]:
    """The shortest one of each direction for each recorded server that has none itself. `calls`: who calls whom."""
    called: dict[str, list[str]] = {}
    calling: dict[str, list[str]] = {}
    for caller, callee in calls:
        called.setdefault(caller, []).append(callee)
        calling.setdefault(callee, []).append(caller)
    for name in recorded:
        if name in private:
            continue
        if hears := _shortest(called, name, private):
            yield Way(name, hears)
        elif told := _shortest(calling, name, private):
            yield Way(name, told[::-1])


def _shortest(edges: Mapping[str, Collection[str]], start: str, ends: Collection[str]) -> tuple[str, ...]:
    """Empty: there is none."""
    waiting: deque[tuple[str, ...]] = deque([(start,)])
    seen = {start}
    while waiting:
        way = waiting.popleft()
        for name in edges.get(way[-1], ()):
            if name in ends:
                return (*way, name)
            if name not in seen:
                seen.add(name)
                waiting.append((*way, name))
    return ()
