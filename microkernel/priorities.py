"""Circles among callers, and waits of a higher priority on a lower one."""

from collections.abc import Sequence

from .image import Image


def circles(edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """One shortest circle through each caller that is on any, each circle once, beginning at its least name;
    sorted. A server that calls itself is a circle of one.
    """
    follow: dict[str, list[str]] = {}
    for caller, callee in edges:
        if callee not in follow.setdefault(caller, []):
            follow[caller].append(callee)
    found = set()
    for start in sorted(follow):
        circle = _back(follow, start)
        if circle:
            least = circle.index(min(circle))
            found.add((*circle[least:], *circle[:least]))
    return [list(circle) for circle in sorted(found)]


def _back(follow: dict[str, list[str]], start: str) -> list[str]:
    """The shortest way from `start` back to itself, without the return; empty if there is none."""
    paths = [[start]]
    seen = set()
    while paths:
        further = []
        for path in paths:
            for name in sorted(follow.get(path[-1], [])):
                if name == start:
                    return path
                if name not in seen:
                    seen.add(name)
                    further.append([*path, name])
        paths = further
    return []


def inversions(image: Image, edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Calls in which a server of higher priority waits on one of lower, in the order given, each once."""
    return [
        (caller, callee)
        for caller, callee in dict.fromkeys(edges)
        if image.priority(caller) > image.priority(callee)
    ]
