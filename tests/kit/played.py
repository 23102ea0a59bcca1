"""A channel of the server under test to a server that the test plays. (Raw cffi.)"""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from atoll.ipc.bound import bind
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.interface import Interface
from atoll.ipc.runtime.launch import Process
from atoll.ipc.system import control
from atoll.native import ffi, lib

from .memory import Memory
from .serving import Serving

PLAYED = 900
"""The channel's number."""


@contextlib.contextmanager
def played(served: Serving) -> Iterator[Memory]:
    """The channel; what the test writes into it, the played server has said."""
    memory = Memory(PLAYED, control.Shape(), 0)
    lib.atoll_notice_channel(served.server_notice.c, 0, 1, 1, memory.base, ffi.NULL)
    opened = control.OpenChannel(
        channel=PLAYED,
        role="client",
        peer="the test",
        shape=memory.shape,
        epoch=1,
        base=memory.base,
        notice=0,
    )
    served._send(opened, memory.descriptor, memory.client_bell.fileno())
    served.observe()
    try:
        yield memory
    finally:
        memory.close()


def client_of_played() -> ClientChannel:
    """In the process under test: its end of the channel."""
    process = next(found for found in gc.get_objects() if isinstance(found, Process))
    return process.clients[PLAYED]


def proxy_of_played(interface: type[Interface]) -> Any:
    """In the process under test: of what the played server serves."""
    port = control.Port(channel=PLAYED, slot=0, generation=1, interface=interface.__name__, rights=("read",))
    return bind(interface, ChannelTransport(client_of_played(), port))
