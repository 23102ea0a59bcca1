"""The kernel's end of a control socket: packets to and from a process, in order, never blocking the kernel.

The peer is not trusted: a packet that cannot be read, or that was cut short, ends the conversation. What a peer
does not read is kept, up to a limit; a peer past that has stopped listening and is treated as one that hung.
"""

import array
import errno
import os
import socket
import struct
from collections import deque
from contextlib import suppress

import trio

from atoll.ipc.errors import DecodeFaults, PeerMisbehaved
from atoll.ipc.system import control

DESCRIPTORS_MOST = 16
CREDENTIALS = struct.Struct("=iII")
"""Process, user and group, as Linux says who is at the other end of a socket."""
_RIDERS = socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_LEN(DESCRIPTORS_MOST * array.array("i").itemsize)
BUFFER = 1 << 20
"""Bytes asked for in each direction, so that a burst of packets need not wait for the peer."""
UNREAD_MOST = 65536
COPIES_MOST = 2048
"""Descriptors that are kept for a peer that does not read: they are the kernel's, and no account pays for them."""
TURN = 16
"""Packets of one peer that are taken before others have their turn."""
TRY_AGAIN = 0.001
"""Seconds until descriptors are tried again: there may be room for bytes, and none for them."""


class _Kept:
    """A packet that the peer has no room for, and what rides along. `opens`: the channel that it opens, or 0; `about`: the
    one without which it says nothing, or 0."""

    __slots__ = ("about", "data", "descriptors", "opens")

    def __init__(self, data: bytes, descriptors: list[int], opens: int, about: int) -> None:
        self.data = data
        self.descriptors = descriptors
        self.opens = opens
        self.about = about


class Connection:
    """Owns its end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        for side in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, side, BUFFER)
        self._end = end
        self._unsent: deque[_Kept] = deque()
        self._opening: dict[int, _Kept] = {}
        """By channel what is kept to open it."""
        self._copies = 0
        """Descriptors among what is kept."""
        self._taken = 0
        """Packets since others had their turn."""
        self._more = trio.Event()
        self.closed = False
        self.hung_up = False
        """The peer has said that nothing more will come, and may wait until this end is closed."""
        self.sender = 0
        """The process that sent the last packet, where `ask_sender` was called before it did."""

    def ask_sender(self) -> None:
        """Have the host say which process sends each packet from now on: `sender`."""
        self._end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    @property
    def unsent(self) -> int:
        """Packets that are kept until the peer reads."""
        return len(self._unsent)

    def send(self, message: control.Message, descriptors: tuple[int, ...] = ()) -> None:
        """Send, or keep until there is room. Descriptors stay the caller's. A peer that is gone hears nothing. Raises
        `PeerMisbehaved` for one that has not read for so long that no more can be kept."""
        if self.closed:
            return
        if isinstance(message, control.CloseChannel) and self._never_opened(message.channel):
            return
        data = control.encode(message)
        if self._unsent or not self._try(data, list(descriptors)):
            self._keep(message, data, descriptors)

    def _never_opened(self, channel: int) -> bool:
        """A channel that came and went while the peer did not read: it need not hear of it, nor of what was said of it."""
        if channel not in self._opening:
            return False
        gone = [kept for kept in self._unsent if channel in (kept.opens, kept.about)]
        self._unsent = deque(kept for kept in self._unsent if channel not in (kept.opens, kept.about))
        for kept in gone:
            self._forget(kept)
        return True

    def _forget(self, kept: _Kept) -> None:
        self._opening.pop(kept.opens, None)
        self._copies -= len(kept.descriptors)
        close_all(kept.descriptors)

    def _keep(self, message: control.Message, data: bytes, descriptors: tuple[int, ...]) -> None:
        if len(self._unsent) >= UNREAD_MOST:
            raise PeerMisbehaved("the control socket", f"{UNREAD_MOST} packets are unread")
        if self._copies + len(descriptors) > COPIES_MOST:
            raise PeerMisbehaved("the control socket", f"{self._copies} descriptors are unread")
        copies: list[int] = []
        try:
            for descriptor in descriptors:
                copies.append(os.dup(descriptor))
        except OSError as error:
            close_all(copies)
            raise PeerMisbehaved(
                "the control socket", f"{len(self._unsent)} packets are unread: {error}"
            ) from None
        opens = message.channel if isinstance(message, control.OpenChannel) else 0
        kept = _Kept(data, copies, opens, _about(message))
        self._unsent.append(kept)
        self._copies += len(copies)
        if kept.opens:
            self._opening[kept.opens] = kept
        self._more.set()

    def _try(self, data: bytes, descriptors: list[int]) -> bool:
        try:
            socket.send_fds(self._end, [data], descriptors)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True  # its end is noticed where its packets are received
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # so many descriptors of this user's are on their way
                raise
            return False
        return True

    async def pump(self) -> None:
        """Sends what had to be kept. Runs as long as the connection."""
        with suppress(trio.ClosedResourceError):  # closed meanwhile: nobody is left to send to
            while True:
                await self._more.wait()
                while self._unsent:
                    kept = self._unsent[0]
                    if not self._try(kept.data, kept.descriptors):
                        await trio.lowlevel.wait_writable(self._end)
                        await trio.sleep(TRY_AGAIN)
                        continue
                    self._forget(self._unsent.popleft())
                self._more = trio.Event()

    async def flushed(self) -> None:
        """Until everything sent so far lies in the peer's socket, or the peer is gone."""
        while self._unsent and not self.closed:
            await trio.sleep(0.001)

    async def receive(self) -> tuple[control.ToKernel, list[int]] | None:
        """The next packet and its descriptors, the caller's from now on. None: the peer is gone."""
        self._taken += 1
        if self._taken >= TURN:
            self._taken = 0
            await trio.lowlevel.checkpoint()
        while True:
            if self.closed:
                return None
            try:
                data, riders, flags, _ = self._end.recvmsg(
                    control.PACKET_LIMIT, _RIDERS, socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_readable(self._end)
                except trio.ClosedResourceError:
                    return None
            except ConnectionResetError:
                return None
        descriptors = self._unload(riders)
        if not data:
            close_all(descriptors)
            self.hung_up = True
            return None
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise PeerMisbehaved("the control socket", "a packet was cut short")
            return control.to_kernel.decode(data), descriptors
        except DecodeFaults as fault:
            close_all(descriptors)
            raise PeerMisbehaved("the control socket", str(fault)) from None
        except BaseException:
            close_all(descriptors)
            raise

    def _unload(self, riders: list[tuple[int, int, bytes]]) -> list[int]:
        """The descriptors that rode along, and who sent them."""
        descriptors = array.array("i")
        for level, kind, data in riders:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                self.sender, _, _ = CREDENTIALS.unpack(data[: CREDENTIALS.size])
        return list(descriptors)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self._end)
            self._end.close()
            for kept in self._unsent:
                close_all(kept.descriptors)
            self._unsent.clear()
            self._opening.clear()


def _about(message: control.Message) -> int:
    match message:
        case control.Deliver() | control.DeliverBuffer() | control.WithdrawBuffer():
            return message.channel
        case control.ReadAt(port=control.Port(channel=channel)):
            return channel
    return 0


def close_all(descriptors: list[int]) -> None:
    """Let go of what rode along with a packet."""
    for descriptor in descriptors:
        os.close(descriptor)
