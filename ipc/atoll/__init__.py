"""Atoll: an operating system for one node, in user space. Here are the names that most programs need.

They are imported at their first use: a process that wants one module of Atoll's (the watcher) starts without the SDK.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.ipc import (
        AtollError,
        Buffer,
        Cap,
        Config,
        Deferred,
        Failure,
        Future,
        Interface,
        Keyspace,
        Node,
        Private,
        Serves,
        call,
        connect,
        current,
        stream,
        upload,
    )

__all__ = [
    "AtollError",
    "Buffer",
    "Cap",
    "Config",
    "Deferred",
    "Failure",
    "Future",
    "Interface",
    "Keyspace",
    "Node",
    "Private",
    "Serves",
    "call",
    "connect",
    "current",
    "stream",
    "upload",
]


def __getattr__(name: str) -> Any:
    """PEP 562."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from atoll import ipc

    return getattr(ipc, name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
