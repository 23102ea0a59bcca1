"""Granted buffers: memory that the kernel makes, charges, seals and hands over, and can take back.

A writable buffer is sealed against changes of size. A share that may only be read is a memfd of its own sealed against
future writing, since seals belong to the memory and not to the descriptor; the owner's buffer is therefore made twice
only if it is shared so: what the owner wrote by then is copied. An immutable buffer is sealed against writing for good.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.system.control import DeliverBuffer
from atoll.ipc.system.kernel import BufferMade, BufferMode
from atoll.native import lib, segments

from .parties import Party

if TYPE_CHECKING:
    from .node import Node

LARGEST = 1 << 40
CHUNK = 16 << 20


class Buffer:
    """One memfd of the kernel's; owns descriptor and, for as long as it may have to be zeroed, a mapping."""

    def __init__(self, number: int, owner: Party, size: int, mode: BufferMode) -> None:
        self.number = number
        self.owner = owner
        self.size = size
        self.mode = mode
        self.shares: dict[int, set[int]] = {}
        """By number the parties that have it beside its owner, and the channels whose messages may name it there."""
        self.copies: dict[str, Buffer] = {}
        """Read-only or immutable shares of it, by mode."""
        self.descriptor = os.memfd_create(f"buffer {number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.map: mmap.mmap | None = None
        try:
            os.ftruncate(self.descriptor, size)
            os.posix_fallocate(self.descriptor, 0, size)
            if mode == "writable":
                segments.seal(self.descriptor, segments.SEALS[mode])
        except BaseException:
            os.close(self.descriptor)
            raise

    def copy_of(self, source: Buffer) -> None:
        """Take over what another buffer holds now, and be sealed as the mode wants it."""
        with mmap.mmap(source.descriptor, source.size, mmap.MAP_SHARED, mmap.PROT_READ) as held:
            done = 0
            while done < self.size:
                done += os.pwrite(self.descriptor, memoryview(held)[done : done + CHUNK], done)
        if self.mode == "readonly":
            self.map = mmap.mmap(self.descriptor, self.size)
        segments.seal(self.descriptor, segments.SEALS[self.mode])

    def zero(self) -> None:
        """Take back what it held from everyone who maps it."""
        if self.map is not None:
            step = 1 << 20
            empty = bytes(min(step, self.size))
            for at in range(0, self.size, step):
                self.map[at : min(at + step, self.size)] = empty[: min(step, self.size - at)]
        else:
            problem = lib.atoll_punch(self.descriptor, 0, self.size)
            if problem:
                raise OSError(problem, os.strerror(problem))

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
            self.map = None
        os.close(self.descriptor)


class Grants:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._all: dict[int, Buffer] = {}
        self._next = 1

    def make(self, party: Party, size: int) -> BufferMade:
        """A writable buffer of the party's, preallocated to its account."""
        if not 0 < size <= LARGEST:
            raise BadRequest(where="buffer: size", expected=f"1 to {LARGEST} bytes", got=str(size))
        made = self._new(party, size, "writable")
        self._hand(made, party)
        return BufferMade(number=made.number, token=made.number)

    def seal(self, party: Party, number: int) -> BufferMade:
        """The buffer's content, immutable for good, under a new number."""
        buffer = self._own(party, number)
        if buffer.mode != "immutable":
            # Against further seals it is sealed since it was handed over, so that no holder could keep the kernel from
            # taking it back; what shall never change again is therefore always another memfd.
            sealed = self._new(party, buffer.size, "immutable")
            sealed.copy_of(buffer)
            buffer = sealed
        self._hand(buffer, party)
        return BufferMade(number=buffer.number, token=buffer.number)

    async def share(self, party: Party, number: int, channel: int, mode: BufferMode) -> int:
        """Give the peer of a channel the buffer; the token is what a message carries."""
        buffer = self._own(party, number)
        peer = self._node.syscalls.powers.peer(party, channel)
        if mode == "writable" and buffer.mode != "writable":
            raise BadRequest(where="buffer_share: mode", expected=buffer.mode, got=mode)
        shared = buffer if buffer.mode in (mode, "immutable") else self._copy(buffer, mode)
        if peer is not shared.owner and channel not in shared.shares.get(peer.number, ()):
            shared.shares.setdefault(peer.number, set()).add(channel)
            self._hand(shared, peer, channel)
            if peer.connection is not None:
                await peer.connection.flushed()
        return shared.number

    def revoke(self, party: Party, number: int) -> int:
        """Take the buffer back from everyone it was shared with: they read zeros from now on."""
        buffer = self._own(party, number)
        if buffer.mode == "immutable" or "immutable" in buffer.copies:
            raise BadRequest(
                where=f"buffer_revoke({number})", expected="a buffer that is not immutable",
                got="an immutable one: end the process that holds it",
            )  # fmt: skip
        count = 0
        for copy in list(buffer.copies.values()):
            copy.zero()
            count += len(copy.shares)
            self._drop(copy)
        buffer.copies.clear()
        if buffer.shares:
            count += len(buffer.shares)
            buffer.zero()
            buffer.shares.clear()
        return count

    def release(self, party: Party, number: int) -> None:
        """Give the buffer up."""
        buffer = self._own(party, number)
        for copy in buffer.copies.values():
            self._drop(copy)
        self._drop(buffer)

    def leave(self, party: Party) -> None:
        """A party is gone: what it owned goes, and what it was shared counts no more."""
        for buffer in list(self._all.values()):
            buffer.shares.pop(party.number, None)
            if buffer.owner is party:
                self._drop(buffer)

    # inside -------------------------------------------------------------------------------------------------

    def _new(self, party: Party, size: int, mode: BufferMode) -> Buffer:
        self._node.ledger.charge(party.account, "buffers", size)
        try:
            made = Buffer(self._next, party, size, mode)
        except BaseException:
            self._node.ledger.release(party.account, "buffers", size)
            raise
        self._next += 1
        self._all[made.number] = made
        return made

    def _copy(self, buffer: Buffer, mode: BufferMode) -> Buffer:
        """The buffer as others may have it: with what it holds now."""
        known = buffer.copies.get(mode)
        if known is not None:
            return known
        copy = self._new(buffer.owner, buffer.size, mode)
        copy.copy_of(buffer)
        buffer.copies[mode] = copy
        return copy

    def _hand(self, buffer: Buffer, party: Party, channel: int = 0) -> None:
        told = DeliverBuffer(token=buffer.number, size=buffer.size, mode=buffer.mode, channel=channel)
        party.send(told, (buffer.descriptor,))

    def _drop(self, buffer: Buffer) -> None:
        if self._all.pop(buffer.number, None) is not None:
            buffer.close()
            self._node.ledger.release(buffer.owner.account, "buffers", buffer.size)

    def _own(self, party: Party, number: int) -> Buffer:
        found = self._all.get(number)
        if found is None or found.owner is not party:
            raise NotFound(what="buffer", name=str(number))
        return found
