"""The client side of a process that is not a server: a notebook, a command, a service.

Threads that block wait inside the C core and need nothing from here. Tasks of trio or asyncio wait on one epoll descriptor
that gathers a doorbell a channel, the kernel's pidfd, and a kick for when a thread that received for everybody stops. In
trio one waiting task leads: it waits on the descriptor and drains for the others, then hands the lead on. In asyncio the
event loop watches the descriptor.
"""

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

import trio

from atoll.ipc.context import forbid_blocking
from atoll.ipc.future import wait_for

from .channel import ClientChannel

Subscribe = Callable[[Callable[[], None]], None]


class _Order:
    """Who waits for the descriptor in one trio run: the leader, and those who would follow it. Of that run's thread."""

    def __init__(self) -> None:
        self.led = False
        self.followers: list[trio.Event] = []


class Outside:
    """The `Host` of such a process's channels. `kernel` is a pidfd of the node's kernel; it stays the caller's."""

    def __init__(self, kernel: int, report: Callable[[int, str], None]) -> None:
        self.channels: dict[int, ClientChannel] = {}
        self._kernel = kernel
        self._report = report
        self._kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._kick, select.EPOLLIN)
        self._epoll.register(kernel, select.EPOLLIN)
        self._process = os.getpid()
        self._down = False
        self._orders: WeakKeyDictionary[trio.lowlevel.TrioToken, _Order] = WeakKeyDictionary()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ringing = False
        """`_ring` will be called by the event loop anyhow."""
        self._closed = False

    def add(self, channel: ClientChannel) -> None:
        self.channels[channel.number] = channel
        # Edge by edge: a peer that shuts its end down leaves the bell readable for ever, and rings once.
        self._epoll.register(channel.doorbell, select.EPOLLIN | select.EPOLLET)

    def remove(self, number: int) -> None:
        channel = self.channels.pop(number, None)
        if channel is not None and self._process == os.getpid():  # a fork shares the epoll with its parent
            self._epoll.unregister(channel.doorbell)

    def close(self) -> None:
        """Stop watching; the channels are closed by whoever made them."""
        self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._kick)

    # what channels ask of their host (see Host) -----------------------------------------------------------------------

    def may_block(self, method: str) -> None:
        forbid_blocking(method)

    def alive(self, wait: float = 0.0) -> bool:
        if not self._down:
            look = select.poll()  # not `select`, which knows no descriptor from 1024 on
            look.register(self._kernel, select.POLLIN)
            self._down = bool(look.poll(wait * 1000))
        return not self._down

    def kick(self, channel: int) -> None:
        if self._loop is not None or any(order.led for order in list(self._orders.values())):
            self._poke()

    def _poke(self) -> None:
        """Make the descriptor that the event loop waits on readable."""
        if not self._closed:
            with contextlib.suppress(BlockingIOError):  # the counter is full, so it is readable
                os.eventfd_write(self._kick, 1)

    def misbehaved(self, channel: int, check: str) -> None:
        self._report(channel, check)

    def sent(self) -> None:
        if self._loop is not None and self._loop is _running_loop():
            self._arm_for_asyncio()

    async def wait(self, subscribe: Subscribe) -> None:
        if trio.lowlevel.in_trio_run():
            await self._wait_in_trio(subscribe)
        else:
            self._adopt(asyncio.get_running_loop())
            self._arm_for_asyncio()
            await wait_for(subscribe)

    # gathering --------------------------------------------------------------------------------------------------------

    def _arm(self) -> bool:
        """Have every channel with open requests ring for the next message. False: something is there already."""
        # Every channel is armed, also after one that has something: a batch may leave the others waiting.
        quiet = [channel.arm() for channel in list(self.channels.values()) if channel.pending]
        return all(quiet)

    def _gather(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            if descriptor == self._kick:
                with contextlib.suppress(BlockingIOError):  # another thread's loop has read it
                    os.eventfd_read(self._kick)
        if not self.alive():
            for channel in list(self.channels.values()):
                channel.down()
            return
        for channel in list(self.channels.values()):
            if channel.pending:
                channel.look()

    # trio -------------------------------------------------------------------------------------------------------------

    async def _wait_in_trio(self, subscribe: Subscribe) -> None:
        token, home = trio.lowlevel.current_trio_token(), threading.get_ident()
        fired = False
        change = trio.Event()
        lead = trio.CancelScope()

        def told() -> None:
            nonlocal fired
            fired = True
            change.set()
            lead.cancel()  # the leader waits for its descriptor, and another thread has received for it

        def notify() -> None:
            if threading.get_ident() == home:
                told()
                return
            with contextlib.suppress(
                trio.RunFinishedError
            ):  # the loop that waited has ended, with it the wait
                token.run_sync_soon(told)

        subscribe(notify)
        order = self._orders.setdefault(token, _Order())
        try:
            while not fired:
                if not order.led:
                    order.led = True
                    try:
                        with lead:
                            await self._lead()
                    finally:
                        order.led = False
                    break
                change = trio.Event()
                order.followers.append(change)
                try:
                    await change.wait()
                finally:
                    if change in order.followers:
                        order.followers.remove(change)
        finally:
            if not order.led and order.followers:
                order.followers.pop().set()  # also if we never led: whoever handed the lead to us counts on it

    async def _lead(self) -> None:
        """Receive for every task of this loop, until cancelled: the leader's own reply does that."""
        while True:
            if self._arm():
                await trio.lowlevel.wait_readable(self._epoll)
            else:
                await trio.lowlevel.checkpoint()  # others run, too, while there is always something
            self._gather()

    # asyncio ----------------------------------------------------------------------------------------------------------

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._epoll.fileno())
        self._loop = loop
        self._ringing = False
        loop.add_reader(self._epoll.fileno(), self._ring)

    def _arm_for_asyncio(self) -> None:
        # Each time: a thread that received meanwhile has taken the ring off, and kicks only if it leaves requests behind.
        if not self._ringing and not self._arm() and self._loop is not None:
            self._ringing = True
            self._loop.call_soon(self._ring)

    def _ring(self) -> None:
        self._ringing = False
        if self._closed:
            return
        self._gather()
        if any(channel.pending for channel in self.channels.values()) and not self._down:
            self._arm_for_asyncio()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
