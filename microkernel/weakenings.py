"""What a boot says about what this host, or this user, does not give: one line a reason."""

from __future__ import annotations

import os
from collections.abc import Iterable

Weakened = tuple[str, str, str]
"""Server (or `node`), what is missing, why."""

APART = {"process", "seccomp"}
"""Levels whose servers share the user's files and sockets unless they have a user of their own."""


def attaching(levels: Iterable[str], slices: str) -> list[Weakened]:
    """Whether a server could pass for the person who booted: it has neither a user nor a control group of its own."""
    if os.geteuid() == 0 or slices != "none" or not APART & set(levels):
        return []
    why = "a server at process or seccomp runs as you, and what it leaves behind could attach as the node's operator"
    return [("node", "attach check", why)]


def lines(weakened: Iterable[Weakened], known: Iterable[Weakened]) -> list[str]:
    """Sentences for a person, without those that the image itself told."""
    told = set(known)
    whom: dict[tuple[str, str], list[str]] = {}
    for server, what, why in weakened:
        if (server, what, why) not in told:
            whom.setdefault((what, why), []).append(server)
    return [f"weakened: {', '.join(servers)}: {what}: {why}" for (what, why), servers in whom.items()]
