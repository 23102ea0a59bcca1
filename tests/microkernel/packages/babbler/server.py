import os
import socket

from atoll.ipc import Serves

from .interface import Babbler


class Server(Serves[Babbler]):
    @Babbler.say.serve
    def say(self, packets: list[bytes]) -> int:
        ends = [socket.socket(fileno=os.dup(number)) for number in range(3, 32) if _speaks(number)]
        ends[0].setblocking(True)
        for packet in packets:
            ends[0].send(packet)
        return len(packets)

    @Babbler.write.serve
    def write(self, lines: int, length: int) -> None:
        for number in range(lines):
            print(f"{number:04} " + "y" * length)


def _speaks(number: int) -> bool:
    """Whether it is a socket of packets: the control socket is the only one."""
    try:
        with socket.socket(fileno=os.dup(number)) as end:
            return end.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
    except OSError:
        return False
