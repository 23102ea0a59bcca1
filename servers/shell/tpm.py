"""Two small secrets in a machine's TPM 2, for the root key of a node's keyring.

A disk that is carried away, or a copy of it, has not what is in here; and what is overwritten in here is gone, which no SSD
says of itself. Whoever is root on the running machine can read it, as they can the memory of any process.

Five commands are all that is needed, so they are spoken here as the TPM hears them (Trusted Platform Module Library, Part
3; docs/decisions/0022). There are two places, so that a new secret is durable before the old one is given up.
"""

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from atoll.ipc import chance
from atoll.ipc.errors import BadRequest

DEVICE: Final = Path("/dev/tpmrm0")
SECRET: Final = 32
PLACES: Final = 2
_MARK: Final = 16
"""Bytes of the hash of whose secret it is, before it."""
_ANSWER_MOST: Final = 4096

_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_UNDEFINE, _DEFINE, _WRITE, _READ, _READ_PUBLIC = 0x122, 0x12A, 0x137, 0x14E, 0x169
_OWNER, _PASSWORD, _SHA256 = 0x40000001, 0x40000009, 0x000B
_NO_SUCH_INDEX: Final = 0x18B
_ATTRIBUTES: Final = 1 << 1 | 1 << 2 | 1 << 17 | 1 << 18 | 1 << 25
"""Written and read by the owner and by the index's own (empty) authorisation; a wrong one locks nobody out."""
_FIRST: Final = 0x01A70000
"""Of the range that is the owner's to give out."""
_header = struct.Struct(">HII")


class Line(Protocol):
    """The way to a TPM: what is sent whole is answered whole."""

    def exchange(self, command: bytes) -> bytes: ...


class Tpm:
    """The secrets of one node in a TPM. Raises `BadRequest` where it does not do what it is asked."""

    def __init__(self, line: Line, node: str) -> None:
        self._line = line
        self._node = node
        self._mark = sha256(node.encode()).digest()[:_MARK]
        self._first = _FIRST + int.from_bytes(self._mark[:2], "big") % (1 << 15) * PLACES

    def secrets(self) -> list[str]:
        """Those that are there, as texts; mostly one."""
        return [secret for _, secret in self._held()]

    def add(self) -> str:
        """Make a secret beside the one that is there. On return it outlives the power."""
        taken = {place for place, _ in self._held()}
        free = next((place for place in range(PLACES) if place not in taken), None)
        if free is None:
            raise BadRequest(
                "the TPM", "one secret of this node", "two: unlock the keyring first, which ends that"
            )
        secret = chance.secret(SECRET)
        index = self._first + free
        public = struct.pack(">IHIHH", index, _SHA256, _ATTRIBUTES, 0, _MARK + SECRET)
        self._ask(_DEFINE, (_OWNER,), _sized(b"") + _sized(public))
        self._ask(_WRITE, (index, index), _sized(self._mark + secret) + struct.pack(">H", 0))
        return secret.hex()

    def keep_only(self, secret: str) -> None:
        """Overwrite the others, and give up their places."""
        for place, other in list(self._held()):
            if other != secret:
                index = self._first + place
                self._ask(_WRITE, (index, index), _sized(bytes(_MARK + SECRET)) + struct.pack(">H", 0))
                self._ask(_UNDEFINE, (_OWNER, index), b"")

    def _held(self) -> Iterator[tuple[int, str]]:
        for place in range(PLACES):
            index = self._first + place
            if not self._defined(index):
                continue
            told = self._ask(_READ, (index, index), struct.pack(">HH", _MARK + SECRET, 0))
            content = told[2 : 2 + _MARK + SECRET]
            if content[:_MARK] == bytes(_MARK):  # whoever gave it up died before its place was free
                self._ask(_UNDEFINE, (_OWNER, index), b"")
            elif content[:_MARK] != self._mark:
                raise BadRequest(
                    f"the TPM, index {index:#x}", f"a secret of node {self._node!r}", "another node's"
                )
            else:
                yield place, content[_MARK:].hex()

    def _defined(self, index: int) -> bool:
        """A place that was defined and never written is given up."""
        code, told = self._say(_READ_PUBLIC, struct.pack(">I", index))
        if code == _NO_SUCH_INDEX:
            return False
        self._expect(_READ_PUBLIC, code)
        attributes = struct.unpack_from(">I", told, 2 + 4 + 2)[0]
        if attributes & 1 << 29:
            return True
        self._ask(_UNDEFINE, (_OWNER, index), b"")
        return False

    def _ask(self, command: int, handles: tuple[int, ...], parameters: bytes) -> bytes:
        """A command with an empty password; gives the parameters of its answer."""
        session = struct.pack(">IHBH", _PASSWORD, 0, 0, 0)
        body = b"".join(struct.pack(">I", handle) for handle in handles)
        body += struct.pack(">I", len(session)) + session + parameters
        code, told = self._say(command, body, _SESSIONS)
        self._expect(command, code)
        return told[4 : 4 + struct.unpack_from(">I", told)[0]]

    def _say(self, command: int, body: bytes, tag: int = _NO_SESSIONS) -> tuple[int, bytes]:
        answer = self._line.exchange(_header.pack(tag, _header.size + len(body), command) + body)
        _, size, code = _header.unpack_from(answer)
        return code, answer[_header.size : size]

    @staticmethod
    def _expect(command: int, code: int) -> None:
        if code:
            raise BadRequest("the TPM", f"command {command:#x} to be done", f"its code {code:#x}")


def _sized(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


class _Device:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 (closed by `close`)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def exchange(self, command: bytes) -> bytes:
        self._file.write(command)
        return self._file.read(_ANSWER_MOST) or b""

    def close(self) -> None:
        self._file.close()


class _Emulated:
    """An emulator's socket."""

    def __init__(self, path: Path) -> None:
        self._lock = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        """A socket cannot be locked; its folder can."""
        self._end = socket.socket(socket.AF_UNIX)
        try:
            # It hears one program at a time: who was connected, and had no lock, would keep it from who has.
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._end.connect(str(path))
        except BaseException:
            self.close()
            raise

    def exchange(self, command: bytes) -> bytes:
        self._end.sendall(command)
        return self._end.recv(_ANSWER_MOST)

    def close(self) -> None:
        self._end.close()
        os.close(self._lock)


@contextmanager
def opened(path: Path, node: str) -> Iterator[Tpm]:
    """The TPM at a device, or at the socket of an emulator, for one program at a time: the secret that one gives up may
    be the one by which another seals the keyring meanwhile. Raises `BadRequest` where there is none."""
    try:
        line = _Emulated(path) if stat.S_ISSOCK(path.stat().st_mode) else _Device(path)
    except OSError as error:
        raise BadRequest("--tpm", "a TPM 2 that this user may use", f"{path} ({error.strerror})") from None
    try:
        yield Tpm(line, node)
    finally:
        line.close()
