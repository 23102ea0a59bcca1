"""A process's end of the control socket: packets with the descriptors that ride along."""

import os
import select
import socket
import threading
import time
from array import array
from collections.abc import Callable
from typing import TypeVar

import trio
from msgspec import msgpack

from atoll.ipc.errors import DecodeFaults, NodeDown, PeerMisbehaved
from atoll.ipc.system import control

DESCRIPTORS_MOST = 64

P = TypeVar("P", bound=control.Message)
Act = Callable[[control.ToProcess, list[int]], object]
"""Takes a packet, and the descriptors that came with it."""


class ControlSocket:
    """Packets in the order in which they came. The kernel's death reads as `NodeDown`."""

    def __init__(
        self, end: socket.socket, decoder: "msgpack.Decoder[control.ToProcess]" = control.to_process
    ) -> None:
        self.socket = end
        self._decoder = decoder
        self._taking = threading.RLock()
        end.setblocking(False)

    def receive_nowait(self) -> tuple[control.ToProcess, list[int]] | None:
        """The next packet and its descriptors (the caller's from now on); None if there is none."""
        try:
            data, descriptors, flags = self._receive()
        except BlockingIOError:
            return None
        if not data:
            raise NodeDown()
        try:
            return self._decoded(data, flags), descriptors
        except PeerMisbehaved:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _decoded(self, data: bytes, flags: int) -> control.ToProcess:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PeerMisbehaved("the control socket", "a packet or its descriptors were cut short")
        try:
            return self._decoder.decode(data)
        except DecodeFaults as fault:
            raise PeerMisbehaved("the control socket", str(fault)) from None

    def _receive(self) -> tuple[bytes, list[int], int]:
        """No data: the other end is closed, and all that it said was received."""
        try:
            # Without waiting, also where another holder of the socket has it block: that is one state for all of them.
            # Not by `socket.recv_fds`, which drops the flags.
            data, ancillary, flags, _ = self.socket.recvmsg(
                control.PACKET_LIMIT,
                socket.CMSG_LEN(DESCRIPTORS_MOST * array("i").itemsize),
                socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT,
            )
        except (
            ConnectionResetError
        ):  # it closed with something of ours unread; what it said before lies here still
            return self._receive()
        descriptors = array("i")
        for level, kind, packed in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(packed[: len(packed) - len(packed) % descriptors.itemsize])
        return data, list(descriptors), flags

    def take(self, act: Act) -> bool:
        """Have the next packet acted upon, if there is one; whether there was. One at a time, of all threads: who finds
        nothing here finds all done that was said before."""
        with self._taking:
            packet = self.receive_nowait()
            if packet is not None:
                act(*packet)
        return packet is not None

    async def take_next(self, act: Act) -> None:
        """`take` the next packet, waited for in trio."""
        while not self.take(act):
            await trio.lowlevel.wait_readable(self.socket)

    async def receive(self) -> tuple[control.ToProcess, list[int]]:
        """The next packet, waited for in trio."""
        while (packet := self.receive_nowait()) is None:
            await trio.lowlevel.wait_readable(self.socket)
        return packet

    def wait_for(self, event: int) -> None:
        """Halt this thread until the socket has something to read, or room (`select.POLLIN`, `POLLOUT`)."""
        look = select.poll()  # not `select`, which knows no descriptor from 1024 on
        look.register(self.socket, event)
        look.poll()

    def send(self, message: control.Message, descriptors: tuple[int, ...] = ()) -> None:
        """Send one packet. `NodeDown` if the kernel is gone. A full socket halts this thread: the kernel always reads."""
        data = control.encode(message)
        while True:
            try:
                socket.send_fds(self.socket, [data], list(descriptors))
                return
            except (BrokenPipeError, ConnectionResetError):
                raise NodeDown() from None
            except BlockingIOError:
                # Never by having it block: other threads, and worker processes, have it in that state, too, and one that
                # reads what there is would stand in there.
                self.wait_for(select.POLLOUT)

    def hang_up(self, kernel: int, within: float) -> None:
        """Say that nothing more will come, then wait until the kernel has closed its end, which it does when it has
        given up all that it held for us; or until it is dead (`kernel` is its pidfd), or `within` seconds have passed."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:  # its end is closed already
            return
        until = time.monotonic() + within
        look = select.poll()
        look.register(self.socket, select.POLLIN)
        look.register(kernel, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            if any(ready == kernel for ready, _ in look.poll(left * 1000)) or self._is_closed():
                return

    def _is_closed(self) -> bool:
        """Drop what still came. Whether the kernel has closed its end."""
        try:
            while (packet := self.receive_nowait()) is not None:
                for descriptor in packet[1]:
                    os.close(descriptor)
        except (NodeDown, PeerMisbehaved):
            return True
        return False
