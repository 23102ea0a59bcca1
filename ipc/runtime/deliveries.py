"""What the kernel has delivered to this process, and how messages that carry capabilities and buffers are translated.

A token in a message names a delivery (`Deliver`, `DeliverBuffer`) that lies on the control socket before the message can
arrive; `pump` reads it from there if it was not read yet. Tokens can be guessed, so a message may name only what was
delivered for its own channel: else one client could have a server use another client's capability or buffer.
"""

import mmap
import os
from collections.abc import Callable
from typing import Any

from atoll.ipc.capability import Buffer, Cap, NoCapabilities
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.client.transport import ChannelTransport, Unhindered
from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.interface import Interface
from atoll.ipc.proxy import bind
from atoll.ipc.system.control import Deliver, DeliverBuffer, Port
from atoll.ipc.system.kernel import Kernel
from atoll.native import segments


class Deliveries:
    """Ports and buffers by token."""

    def __init__(self, channels: dict[int, ClientChannel], pump: Callable[[], None]) -> None:
        self.channels = channels
        self.kernel: Kernel | None = None
        self._pump = pump
        self._ports: dict[int, tuple[int, Port]] = {}
        self._buffers: dict[int, Buffer] = {}
        self._named_by: dict[int, set[int]] = {}
        """By buffer, the channels whose messages may name it; 0 is this process itself."""

    def deliver(self, message: Deliver) -> None:
        self._ports[message.token] = message.channel, message.port

    def deliver_buffer(self, message: DeliverBuffer, memory: int) -> None:
        """Map a granted buffer after a look at its seals. Takes `memory`."""
        try:
            if message.token in self._buffers:
                self._named_by[message.token].add(message.channel)
                return
            wanted = segments.SEALS[message.mode]
            if segments.seals(memory) & wanted != wanted or os.fstat(memory).st_size < message.size:
                raise PeerMisbehaved(f"a {message.mode} buffer", "its seals or its size")
            access = mmap.PROT_READ | (mmap.PROT_WRITE if message.mode == "writable" else 0)
            view = memoryview(mmap.mmap(memory, message.size, mmap.MAP_SHARED, access))
        finally:
            os.close(memory)
        self._buffers[message.token] = Buffer(view, message.mode, message.token)
        self._named_by[message.token] = {message.channel}

    def port(self, token: int, channel: int = 0) -> Port | None:
        """The port delivered under a token for messages of a channel, read from the control socket if need be."""
        if token not in self._ports:
            self._pump()
        found = self._ports.get(token)
        if found is None or found[0] != channel:
            return None
        del self._ports[token]
        return found[1]

    def buffer(self, token: int, channel: int = 0) -> Buffer | None:
        """The buffer delivered under a token for messages of a channel; it stays mapped, for the next one that names it."""
        if channel not in self._named_by.get(token, ()):
            self._pump()
        return self._buffers.get(token) if channel in self._named_by.get(token, ()) else None

    def forget(self, token: int) -> None:
        """Keep a delivered buffer no longer: it is unmapped when its last user lets go of it."""
        self.buffer(token)  # its delivery may lie unread
        self._buffers.pop(token, None)
        self._named_by.pop(token, None)

    def transport(self, port: Port) -> ChannelTransport:
        """A transport for a capability of this process."""
        channel = self.channels[port.channel]
        return ChannelTransport(channel, port, Translation(self, lambda: channel.number))

    def proxy(self, interface: type[Interface], port: Port) -> Any:
        return bind(interface, self.transport(port))

    def system_calls(self, port: Port) -> None:
        """Use this capability on the kernel for what messages carry."""
        self.kernel = bind(Kernel, Unhindered(self.channels[port.channel], port))


class Translation(NoCapabilities):
    """The `Translator` of messages to and from one peer: `channel` gives the number of the channel to it."""

    def __init__(self, deliveries: Deliveries, channel: Callable[[], int]) -> None:
        super().__init__("this process holds no capability of the kernel")
        self._deliveries = deliveries
        self._channel = channel

    def send_capability(self, capability: Cap[Any]) -> int:
        kernel, transport = self._deliveries.kernel, capability.transport
        if kernel is None or not isinstance(transport, ChannelTransport):
            return super().send_capability(capability)
        port = transport.port
        number = kernel.number.now(port.channel, port.slot, port.generation)
        return kernel.transfer.now(number, self._channel())

    def receive_capability(self, interface: type[Interface], token: int) -> Cap[Any] | None:
        port = self._deliveries.port(token, self._channel())
        if port is None or port.interface != interface.__name__:
            return None
        return Cap(interface, self._deliveries.transport(port))

    def send_buffer(self, buffer: Buffer) -> int:
        kernel = self._deliveries.kernel
        if kernel is None or not buffer.handle:
            return super().send_buffer(buffer)
        return kernel.buffer_share.now(buffer.handle, self._channel(), buffer.mode)

    def receive_buffer(self, token: int) -> Buffer | None:
        return self._deliveries.buffer(token, self._channel())
