"""What the kernel has delivered to this process, and how messages that carry capabilities and buffers are translated.

A token in a message names a delivery (`Deliver`, `DeliverBuffer`) that lies on the control socket before the message can
arrive; `pump` reads it from there if it was not read yet. Tokens can be guessed, so a message may name only what was
delivered for its own channel: else one client could have a server use another client's capability or buffer.

A buffer is mapped once, its seals looked at once, and its token found without the kernel in every later message, on both
sides. What ends that is counted in the notice (`withdrawals`): a count that stands still means that what this process
knows of buffers is still so.
"""

import mmap
import os
from collections.abc import Callable
from typing import Any

from atoll.ipc.bound import bind
from atoll.ipc.buffer import Buffer, BufferMode
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.client.reading import Reads, StoreTransport
from atoll.ipc.client.transport import ChannelTransport, Unhindered
from atoll.ipc.errors import Overloaded, PeerMisbehaved
from atoll.ipc.interface import Interface
from atoll.ipc.system.control import Deliver, DeliverBuffer, Port, ReadAt, WithdrawBuffer
from atoll.ipc.system.kernel import Kernel
from atoll.ipc.system.state import State
from atoll.ipc.transport import Layer, NoCapabilities, Transport
from atoll.native import segments

WITHDRAWALS = 2
"""Word of the notice that counts them."""


def _silence() -> None:
    """No control socket to read."""


class Deliveries:
    """Ports and buffers by token."""

    def __init__(self, channels: dict[int, ClientChannel], pump: Callable[[], None], *, heard: bool) -> None:
        """`heard`: somebody reads the control socket all the time, not only when a message asks for it."""
        self.channels = channels
        self.kernel: Kernel | None = None
        self._pump = pump
        self._ports: dict[int, tuple[int, Port]] = {}
        self._buffers: dict[int, Buffer | OSError] = {}
        """What is mapped; or why it could not be."""
        self._named_by: dict[int, set[int]] = {}
        """By buffer, the channels whose messages may name it; 0 is this process itself."""
        self._at_hand: dict[tuple[int, int], Buffer] = {}
        """By buffer and channel, what was named so and found; empty whenever any of the above changes."""
        self._notice = memoryview(bytes(mmap.PAGESIZE)).cast("Q")
        self._heard = 0
        """Withdrawals up to which the control socket was read."""
        self._shared: dict[tuple[int, int, BufferMode], tuple[int, int]] = {}
        """By buffer, channel and mode the token it has there, and the withdrawals up to which that is known to hold."""
        self._look = None if heard else pump
        self._reads: dict[tuple[int, int], tuple[int, Reads]] = {}
        """By channel and slot of a capability on the store, with its generation: a slot has one at a time."""

    def notice(self, notice: mmap.mmap) -> None:
        """Watch this process's notice."""
        self._notice = memoryview(notice).cast("Q")

    # what the kernel says -----------------------------------------------------------------------------------

    def deliver(self, message: Deliver) -> None:
        self._ports[message.token] = message.channel, message.port

    def deliver_buffer(self, message: DeliverBuffer, memory: int) -> None:
        """Map a granted buffer after a look at its seals. Takes `memory`."""
        self._at_hand.clear()
        try:
            self._named_by.setdefault(message.token, set()).add(message.channel)
            known = self._buffers.get(message.token)
            if isinstance(known, Buffer) and message.mode in (known.mode, "readonly"):
                return
            wanted = segments.DEMANDED[message.mode]
            if segments.seals(memory) & wanted != wanted or os.fstat(memory).st_size < message.size:
                raise PeerMisbehaved(f"a {message.mode} buffer", "its seals or its size")
            self._buffers[message.token] = _mapped(memory, message)
        finally:
            os.close(memory)

    def withdraw(self, message: WithdrawBuffer) -> None:
        """Let no message of a channel, or none at all, name a buffer: it is unmapped when its last user lets go of it."""
        self._at_hand.clear()
        channels = self._named_by.get(message.token, set())
        channels.discard(message.channel)
        if message.channel == 0 or not channels:
            self._named_by.pop(message.token, None)
            self._buffers.pop(message.token, None)

    def closed(self, channel: int) -> None:
        """A channel is no more: what only its messages could name, nobody names."""
        for token in [token for token, delivered in self._ports.items() if delivered[0] == channel]:
            del self._ports[token]
        for token in [token for token, channels in self._named_by.items() if channel in channels]:
            self.withdraw(WithdrawBuffer(token=token, channel=channel))
        for at in [at for at in self._reads if at[0] == channel]:
            del self._reads[at]

    def let_go(self) -> None:
        """Unmap everything that nobody here uses: this process detaches, and hears nothing any more."""
        self._pump, self._look = _silence, None
        self._at_hand.clear()
        self._named_by.clear()
        self._buffers.clear()

    def _hear(self) -> int:
        """Read what was withdrawn, if anything was since the last time; how many withdrawals there have been."""
        counted = self._notice[WITHDRAWALS]
        if counted != self._heard:
            self._heard = counted  # before reading: what is counted meanwhile is read the next time
            self._shared.clear()
            self._pump()
        return counted

    # for messages -------------------------------------------------------------------------------------------

    def read_at(self, message: ReadAt) -> None:
        """Reads through a capability go to a reader from now on, or no longer."""
        reads = self._reads_of(message.channel, message.slot, message.generation)
        if message.port is None:
            reads.stay()
        else:
            channel = self.channels[message.port.channel]
            reads.go_to(channel, message.port, self._translation(channel))

    def _reads_of(self, channel: int, slot: int, generation: int) -> Reads:
        """What is known of a capability on the store: the kernel may speak of one before it is used, and after its end."""
        known = self._reads.get((channel, slot))
        if known is None or known[0] < generation:
            known = self._reads[channel, slot] = generation, Reads()
        return known[1] if known[0] == generation else Reads()

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
        """The buffer delivered under a token for messages of a channel; it stays mapped, for the next one that names it.

        Raises `Overloaded` where this process cannot map any more.
        """
        found = self._at_hand.get((token, channel))
        if found is not None and self._notice[WITHDRAWALS] == self._heard:
            return found
        found = self._look_for(token, channel)
        if found is not None:
            self._at_hand[token, channel] = found
        return found

    def _look_for(self, token: int, channel: int) -> Buffer | None:
        """A buffer that is not at hand."""
        self._hear()
        if channel not in self._named_by.get(token, ()):
            self._pump()
            if channel not in self._named_by.get(token, ()):
                return None
        if token not in self._buffers and self.kernel is not None:
            self.kernel.buffer_map.now(token, channel)  # it was forgotten here, and is still shared
            self._pump()
        found = self._buffers.get(token)
        if isinstance(found, OSError):
            del self._buffers[token]
            raise Overloaded("the receiver's address space") from found
        return found

    def shared(self, handle: int, channel: int, mode: BufferMode) -> int:
        """Have the peer of a channel given a buffer, unless it has it; the token."""
        known = self._shared.get((handle, channel, mode))
        if known is None or known[1] != self._notice[WITHDRAWALS]:
            assert self.kernel is not None
            counted = self._hear()
            known = self.kernel.buffer_share.now(handle, channel, mode), counted
            self._shared[handle, channel, mode] = known
        return known[0]

    async def share(self, kernel: Kernel, handle: int, channel: int, mode: BufferMode) -> None:
        """`shared`, without holding up the loop; the message that names the buffer next finds it done."""
        counted = self._hear()
        self._shared[handle, channel, mode] = await kernel.buffer_share(handle, channel, mode), counted

    def forget(self, token: int) -> None:
        """Unmap a delivered buffer when its last user here lets go of it. The next message that names it has it mapped
        again."""
        self._pump()  # its delivery may lie unread
        self._at_hand.clear()
        self._buffers.pop(token, None)

    # capabilities -------------------------------------------------------------------------------------------

    def transport(self, port: Port) -> ChannelTransport:
        """A transport for a capability of this process."""
        channel = self.channels[port.channel]
        translation = self._translation(channel)
        if port.interface != State.__name__:
            return ChannelTransport(channel, port, translation)
        reads = self._reads_of(port.channel, port.slot, port.generation)
        return StoreTransport(channel, port, translation, reads, self._look)

    def _translation(self, channel: ClientChannel) -> "Translation":
        return Translation(self, lambda: channel.number)

    def proxy(self, interface: type[Interface], port: Port) -> Any:
        return bind(interface, self.transport(port))

    def system_calls(self, port: Port) -> None:
        """Use this capability on the kernel for what messages carry."""
        self.kernel = bind(Kernel, Unhindered(self.channels[port.channel], port))


def _mapped(memory: int, message: DeliverBuffer) -> Buffer | OSError:
    access = mmap.PROT_READ | (mmap.PROT_WRITE if message.mode == "writable" else 0)
    try:
        view = memoryview(mmap.mmap(memory, message.size, mmap.MAP_SHARED, access))
    except OSError as error:
        return error
    return Buffer(view, message.mode, message.token, message.passed)


class Translation(NoCapabilities):
    """The `Translator` of messages to and from one peer: `channel` gives the number of the channel to it."""

    def __init__(self, deliveries: Deliveries, channel: Callable[[], int]) -> None:
        super().__init__("this process holds no capability of the kernel")
        self._deliveries = deliveries
        self._channel = channel

    def send_capability(self, interface: type, transport: Transport) -> int:
        kernel = self._deliveries.kernel
        if isinstance(transport, Layer):
            transport = transport.inner
        if kernel is None or not isinstance(transport, ChannelTransport):
            return super().send_capability(interface, transport)
        port = transport.port
        number = kernel.number.now(port.channel, port.slot, port.generation)
        return kernel.transfer.now(number, self._channel())

    def receive_capability(self, interface: type, token: int) -> Transport | None:
        port = self._deliveries.port(token, self._channel())
        if port is None or port.interface != interface.__name__:
            return None
        return self._deliveries.transport(port)

    def send_buffer(self, buffer: Buffer) -> int:
        if self._deliveries.kernel is None or not buffer.handle:
            return super().send_buffer(buffer)
        return self._deliveries.shared(buffer.handle, self._channel(), buffer.passed)

    def receive_buffer(self, token: int) -> Buffer | None:
        return self._deliveries.buffer(token, self._channel())
