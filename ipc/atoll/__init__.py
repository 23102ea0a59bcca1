"""Atoll: an operating system for one node, in user space. Here are the names that most programs need."""

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
    "Serves",
    "call",
    "connect",
    "current",
    "stream",
    "upload",
]
