"""Channels as the kernel makes and keeps them. (Raw cffi.)

One channel a pair of client process and server: memory and doorbell, of which the kernel keeps duplicates, so that
the channel outlives either end. When the server's process is replaced, the epoch rises and positions begin at a new
random base: no byte of an earlier epoch can be taken for a record of this one.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from atoll.ipc.system.control import OpenChannel, Shape
from atoll.native import ffi, lib

from .mechanisms import Chance
from .memory import Memory
from .notices import CLOSED, LINE, OPEN, RESTARTING
from .parties import Party

LEFT_MOST = 1024
"""Channels of which it is remembered whose they were: a server tells of what was refused there a little later."""
PER_LOOP = 4096
"""A receive loop files channels by their number modulo this; so no two that live share a remainder."""


class Channel:
    """One channel; owns its memory and both ends of its doorbell."""

    def __init__(
        self, number: int, client: Party, server: str, shape: Shape, base: int, pending: int, opened: int
    ) -> None:
        self.number = number
        self.opened = opened
        """When, in ns since the epoch."""
        self.client = client
        self.server = server
        self.shape = shape
        self.epoch = 1
        self.base = base
        self.pending = pending
        """Calls that the client's account may have in hand at this server; 0: no bound."""
        self.line = client.notice.take()
        try:
            size = int(lib.atoll_channel_size(shape.lanes, shape.ring_bits, shape.bulk_bits))
            self.memory = Memory(f"channel {number}", size, written_by_others=True, preallocate=False)
        except BaseException:
            client.notice.give_back(self.line)
            raise
        try:
            self._server_bell, self._client_bell = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except BaseException:
            self.memory.close()
            client.notice.give_back(self.line)
            raise
        for bell in (self._server_bell, self._client_bell):
            bell.setblocking(False)
        self.state = OPEN
        self.told = False
        """Whether the client knows it."""
        self._tell()

    def _tell(self, taken: tuple[int, ...] = ()) -> None:
        self.client.notice.channel(self.line, self.epoch, self.state, self.base, taken)

    def opening(
        self, *, as_client: bool, positions: tuple[int, ...] = ()
    ) -> tuple[OpenChannel, tuple[int, int]]:
        """The packet that gives one end to its process, and the descriptors that go with it (they stay ours)."""
        opened = OpenChannel(
            channel=self.number,
            role="client" if as_client else "server",
            peer=self.server if as_client else self.client.holder,
            shape=self.shape,
            epoch=self.epoch,
            base=self.base,
            notice=self.line,
            positions=positions,
            account="" if as_client else self.client.account,
            pending=0 if as_client else self.pending,
        )
        bell = self._client_bell if as_client else self._server_bell
        return opened, (self.memory.descriptor, bell.fileno())

    def server_doorbell(self) -> int:
        """The server's end, for the one server that lives in this process. It stays the channel's."""
        return self._server_bell.fileno()

    def taken(self) -> tuple[int, ...]:
        """How far the server says it has consumed each lane's requests: its own word, bounded by the client."""
        words = ffi.new("uint64_t[3]")
        lib.atoll_memory_taken(ffi.from_buffer(self.memory.map), self.shape.lanes, words)
        return tuple(words)

    def server_died(self, base: int) -> None:
        """Begin a new epoch: nothing that the dead process left in the rings counts, except what it had taken."""
        taken = self.taken()
        self.epoch += 1
        # Cannot be spared: another base, `self.base = base`.
        self.base = base
        self.state = RESTARTING
        self._tell(taken)
        self.wake_client()

    def served_again(self) -> None:
        """A new process has the channel."""
        if self.state != OPEN:
            self.state = OPEN
            self._tell(self._last_taken())

    def _last_taken(self) -> tuple[int, ...]:
        """The client may not have looked since the epoch rose: what it needs to know stays in the line."""
        line = (self.line + 1) * 64
        words = memoryview(self.client.notice.memory.map)[line : line + 64].cast("Q")
        try:
            return tuple(words[3:6])
        finally:
            words.release()

    def notice(self) -> tuple[int, int, int]:
        """Epoch, state and base, as its client reads them."""
        at = (self.line + 1) * LINE
        _, epoch, state, base = struct.unpack_from("=QIIQ", self.client.notice.memory.map, at)
        return epoch, state, base

    def close_for_client(self) -> None:
        """Calls of this channel end: there will be no server."""
        taken = self._last_taken()
        self.state = CLOSED
        self._tell(taken)
        self.wake_client()

    def wake_client(self) -> None:
        lib.atoll_memory_wake(ffi.from_buffer(self.memory.map), 1, self._server_bell.fileno())

    def close(self) -> None:
        """Let go of everything. Both processes were told."""
        self.memory.close()
        self._server_bell.close()
        self._client_bell.close()


class Channels:
    """All channels of the node."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._all: dict[int, Channel] = {}
        self._of_client: dict[Party, dict[str, Channel]] = {}
        """By client, and by server."""
        self._left: dict[int, tuple[str, str]] = {}
        """Of channels that are no more, the latest ones: whose they were, client and server."""
        self._next = 1

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Channel]:
        return iter(list(self._all.values()))

    def get(self, number: int) -> Channel | None:
        return self._all.get(number)

    def holder(self, number: int, server: str) -> str | None:
        """Who is the client of a channel that a server serves, or was of late."""
        channel = self._all.get(number)
        ends = (channel.client.holder, channel.server) if channel is not None else self._left.get(number)
        return ends[0] if ends is not None and ends[1] == server else None

    def of_server(self, server: str) -> list[Channel]:
        """Channels that a server serves, oldest first."""
        return [channel for channel in self._all.values() if channel.server == server]

    def of_client(self, client: Party) -> list[Channel]:
        """Channels of which a party is the client, oldest first."""
        return list(self._of_client.get(client, {}).values())

    def between(self, client: Party, server: str) -> Channel | None:
        """The channel over which a party calls a server, if it has one."""
        return self._of_client.get(client, {}).get(server)

    def make(self, client: Party, server: str, shape: Shape, pending: int = 0, opened: int = 0) -> Channel:
        """A channel with a number that no other one of this boot has had. `OSError` if memory or descriptors lack."""
        taken = {number % PER_LOOP for number in self._all}
        if len(taken) == PER_LOOP:
            raise OSError(f"a node has {PER_LOOP} channels at most")
        while self._next % PER_LOOP in taken:
            self._next += 1
        channel = Channel(self._next, client, server, shape, self.new_base(), pending, opened)
        self._next += 1
        self._all[channel.number] = channel
        self._of_client.setdefault(client, {})[server] = channel
        return channel

    def forget(self, channel: Channel) -> None:
        """The channel is no more."""
        del self._all[channel.number]
        self._left[channel.number] = channel.client.holder, channel.server
        if len(self._left) > LEFT_MOST:
            del self._left[next(iter(self._left))]
        calls = self._of_client.get(channel.client, {})
        if calls.get(channel.server) is channel:
            del calls[channel.server]
        if not calls:
            self._of_client.pop(channel.client, None)
        if not channel.client.gone:
            channel.client.notice.give_back(channel.line)
        channel.close()

    def check(self) -> list[str]:
        """What holds at all times, as sentences about what does not."""
        wrong = []
        lines: set[tuple[int, int]] = set()
        for number, channel in self._all.items():
            if channel.number != number or self.between(channel.client, channel.server) is not channel:
                wrong.append(f"channel {number} is not the one of its client to {channel.server}")
            if channel.client.gone:
                wrong.append(f"channel {number} outlives its client")
            if (channel.client.number, channel.line) in lines or not channel.client.notice.taken(
                channel.line
            ):
                wrong.append(f"channel {number} has no line of its own in its client's notice")
            lines.add((channel.client.number, channel.line))
            if channel.notice() != (channel.epoch, channel.state, channel.base):
                wrong.append(
                    f"channel {number} is at epoch {channel.epoch}, and its client is told otherwise"
                )
        return wrong

    def new_base(self) -> int:
        """Where an epoch's positions start: 62 random bits, a multiple of 64."""
        return int.from_bytes(self._chance.token(8), "little") >> 2 & ~63
