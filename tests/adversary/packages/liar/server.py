"""Lies to whoever asks. (Raw cffi.)"""

import ctypes
import gc
import mmap
import os
from collections import Counter as Count
from contextlib import suppress
from itertools import islice
from pathlib import Path

from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.context import current
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import AtollError
from atoll.ipc.interface import Interface, call
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.runtime.control_socket import ControlSocket
from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.serve import Serves
from atoll.ipc.system import control
from atoll.native import Kind, lib

from .interface import Forged, Liar

NORMAL = 1
BEYOND = (1024, 65_535, 65_536, 2**32 - 1)
"""The first slot of a second segment, the last that there can be, and two that there are not."""
BATCH = 64
PR_SET_DUMPABLE = 4


class Counter(Interface):
    """As much of the counter as it uses; it was given the right to read."""

    @call("read", idempotent=True)
    def get(self, key: str) -> int: ...

    @call("write", once=True)
    def add(self, key: str, by: int = 1) -> int: ...


class Server(Serves[Liar]):
    counter: Counter

    @Liar.forge.serve
    async def forge(self, slots: int) -> Forged:
        mine = transport_of(self.counter)
        port = mine.port
        ports = (
            control.Port(channel=port.channel, slot=slot, generation=generation, interface="Counter",
                         rights=("read", "write"))
            for slot in sorted({*range(slots), *BEYOND})
            for generation in {0, 1, 2, port.generation - 1, port.generation, port.generation + 1, 2**32 - 1}
            if generation >= 0 and (slot, generation) != (port.slot, port.generation)
        )  # fmt: skip
        errors: Count[str] = Count()
        served = []
        tried = 1
        while batch := tuple(islice(ports, BATCH)):
            tried += len(batch)
            futures = [
                bind(Counter, ChannelTransport(mine.channel, forged)).get.start("x") for forged in batch
            ]
            for forged, future in zip(batch, futures, strict=True):
                try:
                    await future
                    served.append(f"slot {forged.slot}, generation {forged.generation}")
                except AtollError as error:
                    errors[type(error).__name__] += 1
        try:
            await self.counter.add("x")
            served.append("a right that it lacks")
        except AtollError as error:
            errors[type(error).__name__] += 1
        written, looked_at = _write_what_is_the_kernels()
        return Forged(tried, dict(errors), served, written, looked_at)

    @Liar.lie.serve
    def lie(self) -> None:
        loop = next(found for found in gc.get_objects() if isinstance(found, ServeLoop))
        lib.atoll_loop_reply(loop.c, current().client, 1, NORMAL, Kind.CALL, b"", 0)

    @Liar.accuse.serve
    def accuse(self) -> Deferred[None]:
        self._say(control.Misbehaved(channel=current().client, check="nothing at all"))
        return Deferred()

    @Liar.babble.serve
    def babble(self) -> None:
        self._say(control.Hello(name="me"))

    @staticmethod
    def _say(message: control.Message) -> None:
        end = next(found for found in gc.get_objects() if isinstance(found, ControlSocket))
        end.socket.send(control.encode(message))


def _write_what_is_the_kernels() -> tuple[list[str], int]:
    """By every way that /proc offers to one's own mappings and descriptors."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # who is not dumpable may not even look at itself
    written, looked_at = [], 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:table " not in line and "memfd:notice " not in line:
            continue
        span, permissions, name = line.split()[0], line.split()[1], line.split("memfd:")[1]
        begin, end = (int(edge, 16) for edge in span.split("-"))
        looked_at += 1
        if "w" in permissions:
            written.append(f"{name}: mapped for writing")
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 3) == 0:
            written.append(f"{name}: made writable where it lies")
        with suppress(OSError):  # refused, as it should be
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(begin)
                memory.write(b"\xff")
            written.append(f"{name}: /proc/self/mem")
        written += _reopened(f"/proc/self/map_files/{span}", name)
    for descriptor in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{descriptor}"
        try:
            name = os.readlink(path)
        except OSError:
            continue
        if "memfd:table " in name or "memfd:notice " in name:
            looked_at += 1
            written += _reopened(path, name)
    return written, looked_at


def _reopened(path: str, name: str) -> list[str]:
    try:
        again = os.open(path, os.O_RDWR)
    except OSError:
        return []
    done = []
    with suppress(OSError):  # refused, as these should be
        os.pwrite(again, b"\xff", 0)
        done.append(f"{name}: written by {path}")
    with suppress(OSError):
        mmap.mmap(again, mmap.PAGESIZE)
        done.append(f"{name}: mapped by {path}")
    os.close(again)
    return done
