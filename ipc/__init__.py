"""Atoll's SDK: what server authors and their callers write against."""

from .attach import Node, connect
from .buffer import Buffer
from .capability import Cap
from .context import Call, current
from .deferred import Deferred
from .errors import AtollError, CallerFault, Failure, InternalFault, PeerFault
from .future import Future
from .interface import Interface, call, stream, upload
from .keyspace import Keyspace
from .private.keyspace import Private
from .published import Published
from .serve import Config, Serves
from .streaming import BlockingStream, Stream

__all__ = [
    "AtollError",
    "BlockingStream",
    "Buffer",
    "Call",
    "CallerFault",
    "Cap",
    "Config",
    "Deferred",
    "Failure",
    "Future",
    "Interface",
    "InternalFault",
    "Keyspace",
    "Node",
    "PeerFault",
    "Private",
    "Published",
    "Serves",
    "Stream",
    "call",
    "connect",
    "current",
    "stream",
    "upload",
]
