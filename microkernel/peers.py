"""Who is at the other end of a socket: what the host says of a program that connects.

Credentials are those of the moment of connecting; a pidfd holds on to the process, so that what /proc says under its
number is about that one. From Linux 6.5 the host gives the pidfd of the very process that connected. Before, there is
only its number, and whose number it is now must be shown (`certain` is false; see `Gate._prove`).
"""

from __future__ import annotations

import errno
import os
import select
import socket

from .connections import CREDENTIALS

SO_PEERPIDFD = 77


class Refused(Exception):
    """The sentence for a program that may not attach. `who` is what the refusal is recorded under."""

    def __init__(self, sentence: str, who: str = "") -> None:
        super().__init__(sentence)
        self.who = who


class Peer:
    """A program that connected. Owns a pidfd of it. Raises `Refused` for one that is gone, `OSError` where no descriptor is
    left to look at it."""

    def __init__(self, end: socket.socket) -> None:
        data = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        self.pid, self.uid, self.gid = CREDENTIALS.unpack(data)
        self.certain = True
        """Whether `pidfd`, and with it all that was read, is of the process that connected."""
        self.pidfd = self._pidfd(end)
        try:
            self.ancestors = _ancestors(self.pid)
            self.groups = _groups(self.pid)
            with open(f"/proc/{self.pid}/cgroup", "rb") as file:
                self.cgroup = os.fsdecode(file.read())  # whoever makes a group names it, in any bytes
            with open(f"/proc/{self.pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            self.program = " ".join(word.decode(errors="replace") for word in words if word)[:200]
            if not self.lives():
                raise Refused("the program that connected has ended")
        except OSError as error:
            os.close(self.pidfd)
            _unless_short(error)
            raise Refused("the program that connected has ended, or hides from /proc") from None
        except BaseException:
            os.close(self.pidfd)
            raise

    def _pidfd(self, end: socket.socket) -> int:
        try:
            data = end.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
            return int.from_bytes(data, "little")
        except OSError as error:
            _unless_short(error)
            if error.errno != errno.ENOPROTOOPT:  # the host knows the question: the process is gone
                raise Refused("the program that connected has ended") from None
        self.certain = False
        try:
            return os.pidfd_open(self.pid)
        except OSError as error:
            _unless_short(error)
            raise Refused("the program that connected has ended") from None

    def lives(self) -> bool:
        look = select.poll()  # not `select`, which knows no descriptor above 1023
        look.register(self.pidfd, select.POLLIN)
        return not look.poll(0)

    def close(self) -> None:
        os.close(self.pidfd)


def _unless_short(error: OSError) -> None:
    """Where it is the kernel that has no descriptor left, nothing is known of the program: that very error is raised."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise error


def _ancestors(pid: int) -> list[int]:
    """A process, its parent, and so on, without the first process of all."""
    found: list[int] = []
    while pid > 1 and len(found) < 64:
        found.append(pid)
        with open(f"/proc/{pid}/stat", "rb") as file:
            pid = int(file.read().rpartition(b")")[2].split()[1])
    return found


def _groups(pid: int) -> set[int]:
    with open(f"/proc/{pid}/status", "rb") as file:  # its name is its own, and may be no text
        for line in file:
            if line.startswith(b"Groups:"):
                return {int(group) for group in line.split()[1:]}
    return set()
