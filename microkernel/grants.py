"""Granted buffers: who owns them, who was given them, what they are charged to, and how they are taken back.

A share belongs to a channel and not to a process: whatever process serves the channel next is given the buffer again,
so a message that names it is understood after a swap or a crash. A buffer is its maker's, and goes with it; one made
`of_server` is the server's: its next process finds it, with the note that the last one left on it.

Steps that touch pages run in threads, one at a time a buffer (`Buffer.changing`), and look again at what they found
before they waited. A charge is made before there is memory for it, and ends when there is none: where pages can be
given back, then; where seals forbid that, or others go on using them, when nobody maps them any more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
import trio

from atoll.ipc.buffer import BufferMode
from atoll.ipc.errors import BadRequest, NotFound, Overloaded, QuotaExceeded
from atoll.ipc.system.control import DeliverBuffer, WithdrawBuffer
from atoll.ipc.system.kernel import BufferMade, BufferRow

from . import accounts
from .buffers import Buffer, short_of_descriptors
from .channels import Channel
from .node import Node
from .parties import KERNEL, Party, Serving

T = TypeVar("T")

LARGEST = 1 << 40
NOTE_MOST = 256
"""Bytes."""
SHARES_MOST = 1024
"""Buffers shared over one channel: each is a mapping in the process at its other end, which has 65,530 of them."""
ROWS_MOST = 128 << 10
"""Bytes of a list of buffers that are told at once."""
AT_ONCE = 1 << 20
"""Bytes whose pages are dealt with on the spot: a millisecond at most, and less than a thread takes to begin."""
THREADS = 4
LOOK_EVERY = 1.0
"""Seconds between two looks at whether given-up memory is still mapped."""


class Grants:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._all: dict[int, Buffer] = {}
        self._shared: dict[int, set[Buffer]] = {}
        """By channel, what was shared over it."""
        self._ending: dict[Buffer, trio.Event] = {}
        """Nobody's any more, until their pages are given back, or they linger."""
        self._lingering: set[Buffer] = set()
        """Nobody's any more, and still mapped by someone."""
        self._more = trio.Event()
        self._threads = trio.CapacityLimiter(THREADS)
        self._next = 1

    # making -------------------------------------------------------------------------------------------------

    async def make(
        self, party: Party, size: int, mode: BufferMode = "writable", of_server: bool = False, note: bytes = b""
    ) -> BufferMade:  # fmt: skip
        """A buffer of the party's, preallocated to its account, and mapped writable by it."""
        if not 0 < size <= LARGEST:
            raise BadRequest(where="buffer: size", expected=f"1 to {LARGEST} bytes", got=str(size))
        if mode == "immutable":
            raise BadRequest(where="buffer: mode", expected="writable or readonly", got=f"{mode}: seal one")
        if len(note) > NOTE_MOST:
            raise BadRequest(where="buffer: note", expected=f"{NOTE_MOST} bytes at most", got=str(len(note)))
        if of_server and not isinstance(party, Serving):
            raise BadRequest(
                where="buffer: of_server", expected="a caller that is a server", got=party.holder
            )
        made = await self._new(party, size, mode, of_server=of_server, note=note)
        return await self._give(made, party)

    async def seal(self, party: Party, number: int) -> BufferMade:
        """The buffer's content, immutable for good, under a new number."""
        buffer = self._own(party, number)
        async with buffer.changing:
            self._own(party, number)
            if buffer.mode == "immutable":
                self._send(buffer, party, 0, "immutable")
                return BufferMade(number=number, token=number)
            # A holder may have it mapped for writing, and Linux does not seal what is: so it is always another memfd.
            sealed = await self._new(
                party, buffer.size, "immutable", of_server=buffer.of_server, note=buffer.note, source=buffer
            )
        return await self._give(sealed, party)

    async def _new(
        self, owner: Party, size: int, mode: BufferMode, *,
        of_server: bool = False, note: bytes = b"", source: Buffer | None = None,
    ) -> Buffer:  # fmt: skip
        """Charged, then made. Raises `QuotaExceeded`, `Overloaded`; then nothing has changed."""
        await self._charge(owner.account, size)
        buffer = Buffer(self._next, owner, size, mode, of_server=of_server, note=note, source=source)
        self._next += 1
        try:
            await self._pages(size, buffer.make)
        except BaseException as error:
            self._node.ledger.release_all(owner.account, accounts.buffer(size))
            if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.ENOSPC):
                raise Overloaded("this machine's memory") from None
            if isinstance(error, OSError) and short_of_descriptors(error):
                raise Overloaded("the kernel's file descriptors") from None
            raise
        buffer.source = None
        self._all[buffer.number] = buffer
        if owner.gone or owner.retired:
            await self._end(buffer)
            raise NotFound(what="party", name=owner.holder)
        return buffer

    async def _give(self, made: Buffer, party: Party) -> BufferMade:
        """Hand a new buffer to whoever asked for it; one who waits no longer leaves none behind."""
        try:
            self._send(made, party, 0, "immutable" if made.mode == "immutable" else "writable")
            await _flushed(party)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._end_in_turn(made, False)
            raise
        return BufferMade(number=made.number, token=made.number)

    async def _charge(self, account: str, size: int) -> None:
        """Charge, if need be after what is on its way out was credited. Raises `QuotaExceeded`."""
        ledger, cost = self._node.ledger, accounts.buffer(size)
        while not ledger.has_room(account, cost) and await self._reclaim(account):
            pass
        ledger.charge_all(account, cost)

    async def _reclaim(self, account: str) -> bool:
        """Wait for what of an account is ending. Whether there was any."""
        for buffer, through in self._ending.items():
            if buffer.owner.account == account:
                await through.wait()
                return True
        return await self._collect([each for each in self._lingering if each.owner.account == account])

    async def _pages(self, size: int, work: Callable[[], T]) -> T:
        """Do what touches so many bytes, in a thread if they are many. Once begun it is finished."""
        if size <= AT_ONCE:
            return work()
        begun = False

        def in_thread() -> T:
            nonlocal begun
            begun = True
            return work()

        try:
            return await trio.to_thread.run_sync(in_thread, limiter=self._threads)
        except RuntimeError:
            if begun:
                raise
            return work()  # there may be no further thread here: it holds everybody up, and the node goes on

    # sharing ------------------------------------------------------------------------------------------------

    async def share(self, party: Party, number: int, channel: int, mode: BufferMode) -> int:
        """Give the other end of a channel the buffer; the token is what a message carries."""
        buffer = self._own(party, number)
        async with buffer.changing:
            self._own(party, number)
            self._reached(party, channel)
            if buffer.shares.get(channel) == mode:
                return number
            shared = await self._as(party, buffer, mode)
            receiver = self._reached(party, channel)
            had = shared.shares.get(channel)
            if had is None or (mode == "writable" and had != mode):
                self._enter(shared, channel, mode if shared.mode != "immutable" else "immutable", party)
                if receiver is not None:
                    with self._shared_or_not(shared, channel, had):
                        self._send(shared, receiver, channel, shared.shares[channel])
        if receiver is not None:
            await _flushed(receiver)
        return shared.number

    async def _as(self, party: Party, buffer: Buffer, mode: BufferMode) -> Buffer:
        """The buffer as others may have it: itself, or a copy of what it holds now."""
        if buffer.spent:
            raise BadRequest(
                where="buffer_share", expected="a buffer that was not taken back", got="one that former holders map: "
                "make another",
            )  # fmt: skip
        if mode == "writable" and (
            buffer.mode == "immutable" or (buffer.mode == "readonly" and buffer.closed_to_writers)
        ):
            raise BadRequest(where="buffer_share: mode", expected=f"{buffer.mode}: it is sealed", got=mode)
        if mode == "writable" or buffer.mode == "immutable":
            return buffer
        if buffer.mode == mode:
            try:
                buffer.close_to_writers()
            except PermissionError:
                raise BadRequest(
                    where="buffer_share", expected="a buffer that can be sealed", got="one that a holder has sealed"
                ) from None  # fmt: skip
            return buffer
        known = buffer.copies.get(mode)
        if known is None:
            known = await self._new(party, buffer.size, mode, of_server=buffer.of_server, source=buffer)
            known.source = buffer
            buffer.copies[mode] = known
        return known

    def _reached(self, party: Party, number: int) -> Party | None:
        """Who is at the other end of a channel of the party's; None: a server that does not run now, and will be given what
        is shared with it when it does. Raises `NotFound`, `BadRequest`."""
        channel = self._node.channels.get(number)
        if channel is None or party.holder not in (channel.client.holder, channel.server):
            raise NotFound(what="channel", name=str(number))
        if channel.server == KERNEL:
            raise BadRequest(
                where="buffer_share: channel", expected="one to a server", got="one to the kernel"
            )
        return self._receiver(channel, party.holder)

    def _receiver(self, channel: Channel, owner: str) -> Party | None:
        return channel.client if channel.server == owner else self._node.serving(channel.server)

    def _enter(self, buffer: Buffer, channel: int, mode: BufferMode, party: Party) -> None:
        over = self._shared.setdefault(channel, set())
        if len(over) >= SHARES_MOST and buffer not in over:
            raise QuotaExceeded(
                account=party.account, resource="buffers shared over one channel", limit=SHARES_MOST
            )
        over.add(buffer)
        buffer.shares[channel] = mode
        buffer.given = True

    @contextmanager
    def _shared_or_not(self, buffer: Buffer, channel: int, had: BufferMode | None) -> Iterator[None]:
        """What could not be handed over is shared as it was before: who asks again is not told that it is."""
        try:
            yield
        except BaseException:
            if had is not None:
                buffer.shares[channel] = had
            else:
                del buffer.shares[channel]
                self._shared[channel].discard(buffer)
            raise

    async def hand_again(self, party: Party, number: int, channel: int) -> None:
        """Hand a buffer once more to one that has unmapped it: its own, or one shared with it over a channel."""
        buffer = self._all.get(number)
        if channel == 0:
            buffer = self._own(party, number)
            mode: BufferMode | None = "immutable" if buffer.mode == "immutable" else "writable"
        else:
            found = self._node.channels.get(channel)
            mode = None if buffer is None else buffer.shares.get(channel)
            if found is None or buffer is None or self._receiver(found, buffer.owner.holder) is not party:
                mode = None
        if mode is None or buffer is None:
            raise NotFound(what="buffer", name=str(number))
        self._send(buffer, party, channel, mode)
        await _flushed(party)

    def hand_over(self, serving: Serving, channels: Iterable[Channel]) -> None:
        """Give a server's new process what clients have shared over channels that it serves from now on."""
        for channel in channels:
            for buffer in list(self._shared.get(channel.number, ())):
                if buffer.owner.holder != channel.server:
                    try:
                        self._send(buffer, serving, channel.number, buffer.shares[channel.number])
                    except Overloaded:  # no descriptor, or a holder wants it so: its owner is to ask again
                        self._withdraw(buffer, [channel.number])

    def rows(self, party: Party, after: int | None = None) -> list[BufferRow]:
        """What the party owns, or its server, in the order of numbers from past one on: as much as one reply holds. Without
        one all: who asks so takes what it is not told of for lost."""
        rows, size = list[BufferRow](), 0
        for number in sorted(number for number in self._all if number > (after or 0)):
            each = self._all[number]
            if each.source is not None or not self._owns(party, each):
                continue
            row = BufferRow(
                number=number, size=each.size, mode=each.mode, note=each.note, shares=dict(each.shares)
            )
            size += len(msgspec.msgpack.encode(row))
            if rows and size > ROWS_MOST and after is not None:
                break
            rows.append(row)
        return rows

    # taking back --------------------------------------------------------------------------------------------

    async def unshare(self, party: Party, number: int, channel: int) -> bool:
        """Have the other end of a channel unmap the buffer; False if it was not shared over that."""
        buffer = self._own(party, number)
        async with buffer.changing:
            self._own(party, number)
            found = [each for each in (buffer, *buffer.copies.values()) if channel in each.shares]
            for each in found:
                self._withdraw(each, [channel])
        return bool(found)

    async def revoke(self, party: Party, number: int) -> int:
        """Take the buffer back from everyone it was shared with: they read zeros from now on."""
        buffer = self._own(party, number)
        async with buffer.changing:
            self._own(party, number)
            if buffer.mode == "immutable" or "immutable" in buffer.copies:
                raise BadRequest(
                    where=f"buffer_revoke({number})", expected="a buffer that is not immutable",
                    got="an immutable one: end the process that holds it",
                )  # fmt: skip
            with trio.CancelScope(shield=True):
                count = len(buffer.shares)
                while buffer.copies:  # a channel that closes meanwhile ends some
                    _, copy = buffer.copies.popitem()
                    count += len(copy.shares)
                    await self._end_in_turn(copy, True)
                if buffer.given and not buffer.spent:
                    buffer.spent = True
                    await self._empty(buffer)
        return count

    async def release(self, party: Party, number: int) -> None:
        """Give the buffer up. Who has it keeps what it maps; no message names it any more."""
        buffer = self._own(party, number)
        async with buffer.changing:
            self._own(party, number)
            await self._end(buffer)

    def leave(self, party: Party) -> None:
        """A party is gone, and with it what it owned."""
        self._end_soon(
            [each for each in self._all.values() if each.owner is party and not each.of_server], False
        )

    def server_left(self, server: str) -> None:
        """There will be no process of a server: what was the server's own is taken back."""
        self._end_soon(
            [each for each in self._all.values() if each.of_server and each.owner.holder == server], True
        )

    def closed(self, channel: int) -> None:
        """A channel is no more, and its ends have unmapped what only it could name."""
        for buffer in self._shared.pop(channel, ()):
            buffer.shares.pop(channel, None)
            if buffer.source is not None and not buffer.shares:
                buffer.source.copies.pop(buffer.mode, None)
                self._end_soon([buffer], False)

    def _end_soon(self, buffers: list[Buffer], take_back: bool) -> None:
        """Nobody can ask for them from now on; their pages follow."""
        for buffer in buffers:
            self._all.pop(buffer.number, None)
            self._ending.setdefault(buffer, trio.Event())
        for buffer in buffers:
            if buffer.source is None or buffer not in buffer.source.copies.values():  # else it goes with that
                self._node.soon(self._end_in_turn, buffer, take_back)

    async def _end_in_turn(self, buffer: Buffer, take_back: bool) -> None:
        async with buffer.changing:
            if take_back and buffer.mode != "immutable" and not buffer.over:
                await self._empty(buffer)
            await self._end(buffer)

    async def _empty(self, buffer: Buffer) -> None:
        self._withdraw(buffer, list(buffer.shares))
        await self._pages(buffer.size, buffer.empty)

    def _withdraw(self, buffer: Buffer, channels: Iterable[int]) -> None:
        """No message of these channels may name it any more."""
        for channel in channels:
            del buffer.shares[channel]
            self._shared[channel].discard(buffer)
            found = self._node.channels.get(channel)
            receiver = None if found is None else self._receiver(found, buffer.owner.holder)
            if receiver is not None and not receiver.gone:
                receiver.send(WithdrawBuffer(token=buffer.number, channel=channel))
                receiver.notice.withdrew()
        owner = self._holder(buffer)
        if owner is not None:
            owner.notice.withdrew()

    async def _end(self, buffer: Buffer) -> None:
        """The end of a buffer and its copies: credited when their pages are free. Goes through, whoever is cancelled. Holds
        `changing`, unless nobody else knows the buffer yet."""
        if buffer.over:
            return
        buffer.over = True
        self._all.pop(buffer.number, None)
        through = self._ending.setdefault(buffer, trio.Event())
        with trio.CancelScope(shield=True):
            try:
                while buffer.copies:  # a channel that closes meanwhile ends some
                    await self._end_in_turn(buffer.copies.popitem()[1], False)
                others = bool(buffer.shares)
                self._withdraw(buffer, list(buffer.shares))
                owner = self._holder(buffer)
                if owner is not None:
                    owner.send(WithdrawBuffer(token=buffer.number))
                if (not others and await self._pages(buffer.size, buffer.give_back)) or not buffer.mapped():
                    await self._close(buffer)
                else:
                    self._lingering.add(buffer)
                    self._more.set()
            finally:
                del self._ending[buffer]
                through.set()

    async def _close(self, buffer: Buffer) -> None:
        await self._pages(buffer.size, buffer.close)
        self._node.ledger.release_all(buffer.owner.account, accounts.buffer(buffer.size))

    async def watch(self) -> None:
        """Credits what lingers when the last one has unmapped it. Runs as long as the node."""
        while True:
            await self._more.wait()
            await trio.sleep(LOOK_EVERY)
            await self._collect(list(self._lingering))
            if not self._lingering:
                self._more = trio.Event()

    async def _collect(self, buffers: list[Buffer]) -> bool:
        """Let go of those that nobody maps. Whether there were any."""
        free = [each for each in buffers if each in self._lingering and not each.mapped()]
        self._lingering.difference_update(free)
        self._ending.update((buffer, trio.Event()) for buffer in free)
        with trio.CancelScope(shield=True):
            for buffer in free:
                await self._close(buffer)
                self._ending.pop(buffer).set()
        return bool(free)

    # inside -------------------------------------------------------------------------------------------------

    def _send(self, buffer: Buffer, party: Party, channel: int, mode: BufferMode) -> None:
        if mode == "writable" and buffer.closed_to_writers:
            mode = "readonly"  # it had it writable, and let go of that
        told = DeliverBuffer(
            token=buffer.number, size=buffer.size, mode=mode, channel=channel, passed=buffer.mode
        )
        try:
            descriptor = buffer.open(mode)
        except BlockingIOError:
            raise Overloaded("a buffer that one of its holders has leased from Linux") from None
        except OSError as error:
            if not short_of_descriptors(error):
                raise
            raise Overloaded("the kernel's file descriptors") from None
        try:
            party.send(told, (descriptor,))
        finally:
            os.close(descriptor)

    def _holder(self, buffer: Buffer) -> Party | None:
        """The process that holds it as its owner now."""
        owner = self._node.serving(buffer.owner.holder) if buffer.of_server else buffer.owner
        return None if owner is None or owner.gone else owner

    @staticmethod
    def _owns(party: Party, buffer: Buffer) -> bool:
        if buffer.of_server and isinstance(party, Serving):
            return buffer.owner.holder == party.holder and not party.retired
        return buffer.owner is party

    def _own(self, party: Party, number: int) -> Buffer:
        found = self._all.get(number)
        if found is None or found.source is not None or not self._owns(party, found):
            raise NotFound(what="buffer", name=str(number))
        return found


async def _flushed(party: Party) -> None:
    """Until what was handed over lies in the party's socket."""
    if party.connection is not None:
        await party.connection.flushed()
