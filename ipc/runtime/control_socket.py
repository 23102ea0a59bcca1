"""A process's end of the control socket: packets with the descriptors that ride along."""

import socket
from typing import TypeVar

import trio
from msgspec import DecodeError, msgpack

from atoll.ipc.errors import NodeDown, PeerMisbehaved
from atoll.ipc.system import control

DESCRIPTORS_MOST = 64

P = TypeVar("P", bound=control.Message)


class ControlSocket:
    """Packets in the order in which they came. The kernel's death reads as `NodeDown`."""

    def __init__(
        self, end: socket.socket, decoder: "msgpack.Decoder[control.ToProcess]" = control.to_process
    ) -> None:
        self.socket = end
        self._decoder = decoder
        end.setblocking(False)

    def receive_nowait(self) -> tuple[control.ToProcess, list[int]] | None:
        """The next packet and its descriptors (the caller's from now on); None if there is none."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                self.socket, control.PACKET_LIMIT, DESCRIPTORS_MOST, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raise NodeDown() from None
        if not data:
            raise NodeDown()
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PeerMisbehaved("the control socket", "a packet or its descriptors were cut short")
        try:
            return self._decoder.decode(data), descriptors
        except DecodeError as fault:
            raise PeerMisbehaved("the control socket", str(fault)) from None

    async def receive(self) -> tuple[control.ToProcess, list[int]]:
        """The next packet, waited for in trio."""
        while (packet := self.receive_nowait()) is None:
            await trio.lowlevel.wait_readable(self.socket)
        return packet

    def send(self, message: control.Message, descriptors: tuple[int, ...] = ()) -> None:
        """Send one packet. `NodeDown` if the kernel is gone. A full socket blocks: the kernel always reads."""
        data = control.encode(message)
        try:
            self.socket.setblocking(True)
            socket.send_fds(self.socket, [data], list(descriptors))
        except (BrokenPipeError, ConnectionResetError):
            raise NodeDown() from None
        finally:
            self.socket.setblocking(False)
