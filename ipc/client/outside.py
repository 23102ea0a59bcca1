"""The client side of a process that is not a server: a notebook, a command, a service.

Threads that block wait inside the C core and need nothing from here. Tasks of trio or asyncio wait on one epoll descriptor
that gathers a doorbell a channel, the kernel's pidfd, and a kick for when a thread that received for everybody stops. In
trio one waiting task leads: it waits on the descriptor and drains for the others, then hands the lead on. In asyncio the
event loop watches the descriptor. Several loops may run, each in a thread of its own: whichever wakes first receives for
all, and one that stops kicks the others.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from atoll.ipc.context import forbid_blocking
from atoll.ipc.future import running_loop, wait_for

from .channel import ClientChannel
from .host import Subscribe

if TYPE_CHECKING:
    import asyncio


class _Order:
    """Who waits for the descriptor in one trio run: the leader, and those who would follow it. Of that run's thread."""

    def __init__(self) -> None:
        self.led = False
        self.followers: list[trio.Event] = []
        self.waiting = 0


class _Reader:
    """An asyncio loop that watches the descriptor. Of that loop's thread."""

    def __init__(self) -> None:
        self.called = False
        """It will look anyhow."""


def _open(channel: int) -> bool:
    """No kernel, so nobody closes one."""
    return False


def _unheard(channel: int, check: str) -> None:
    """No kernel to tell."""


class Outside:
    """The `Host` of such a process's channels. `kernel` is a pidfd of the node's kernel; it stays the caller's."""

    def __init__(
        self, kernel: int, report: Callable[[int, str], None], closed: Callable[[int], bool] = _open
    ) -> None:
        """`report`: tells the kernel of a peer that misbehaved; `closed`: whether it has closed a channel."""
        self.channels: dict[int, ClientChannel] = {}
        self._kernel = kernel
        self._report = report
        self.closed = closed
        self._kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._kick, select.EPOLLIN)
        self._epoll.register(kernel, select.EPOLLIN)
        self._process = os.getpid()
        self._down = False
        self._loops = threading.Lock()
        """Of the two tables below: each entry is its own loop's."""
        self._orders: dict[trio.lowlevel.TrioToken, _Order] = {}
        self._readers: dict[asyncio.AbstractEventLoop, _Reader] = {}
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
        """Stop watching; the channels are closed by whoever made them. No task may wait any more. A thread may: it has
        nobody left to tell, or to ask."""
        self._closed = True
        self._report, self.closed = _unheard, _open
        with self._loops:
            readers = [loop for loop in self._readers if not loop.is_closed()]
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._epoll)
        for loop in readers:
            with contextlib.suppress(RuntimeError):  # it was closed meanwhile, and watches nothing
                if loop is running_loop() or not loop.is_running():
                    self._forget(loop)
                else:
                    loop.call_soon_threadsafe(self._forget, loop)
        self._end()

    def _forget(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop's thread: watch no more."""
        loop.remove_reader(self._epoll.fileno())
        with self._loops:
            self._readers.pop(loop, None)
        if self._closed:
            self._end()

    def _end(self) -> None:
        """Close the descriptors once no loop watches them: a number that is used anew must not be found in one."""
        with self._loops:
            watched = any(not loop.is_closed() for loop in self._readers)
            if watched or self._epoll.closed:
                return
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
        with self._loops:
            watched = bool(self._readers or self._orders)
        if watched:
            self._poke()

    def _poke(self) -> None:
        """Make the descriptor that the event loop waits on readable."""
        # Nothing is made under the lock: an object that is collected for it may cancel a call, and come here.
        with contextlib.suppress(BlockingIOError), self._loops:  # the counter is full, so it is readable
            if not self._epoll.closed:
                os.eventfd_write(self._kick, 1)

    def misbehaved(self, channel: int, check: str) -> None:
        self._report(channel, check)

    def sent(self) -> None:
        loop = running_loop()
        if loop is not None and loop in self._readers:
            self._arm_for_asyncio(loop)

    def looping(self) -> bool:
        return trio.lowlevel.in_trio_run() or running_loop() is not None

    def owing(self, when_paid: Subscribe, settle: Callable[[], None]) -> None:
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.spawn_system_task(self._wait_in_trio, when_paid)
        elif (loop := running_loop()) is not None:
            self._arm_for_asyncio(loop)
        else:
            settle()

    async def wait(self, subscribe: Subscribe) -> None:
        if trio.lowlevel.in_trio_run():
            await self._wait_in_trio(subscribe)
        else:
            if (loop := running_loop()) is not None:
                self._arm_for_asyncio(loop)
            await wait_for(subscribe)

    # gathering --------------------------------------------------------------------------------------------------------

    def _arm(self) -> bool:
        """Have every channel with something open ring for the next message, or for room. False: it is there already."""
        # Every channel is armed, also after one that has something: a batch may leave the others waiting.
        quiet = [channel.arm() for channel in list(self.channels.values()) if channel.open_ended]
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
            if channel.open_ended:
                channel.look(arms=True)

    def _something_open(self) -> bool:
        return not self._down and any(channel.open_ended for channel in list(self.channels.values()))

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
        with self._loops:
            order = self._orders.setdefault(token, _Order())
        order.waiting += 1
        led = False
        try:
            while not fired:
                if not order.led:
                    order.led = led = True
                    try:
                        with lead:
                            await self._lead()
                    finally:
                        order.led = False
                    break
                change = trio.Event()
                order.followers.append(change)
                if not self._arm():  # the leader slept before this was asked, perhaps through another channel
                    self._poke()
                try:
                    await change.wait()
                finally:
                    if change in order.followers:
                        order.followers.remove(change)
        finally:
            order.waiting -= 1
            if not order.led and order.followers:
                order.followers.pop().set()  # also if we never led: whoever handed the lead to us counts on it
            elif not order.waiting:
                with self._loops:
                    del self._orders[token]
                    others = bool(self._orders or self._readers)
                if led and others and self._something_open():
                    self._poke()

    async def _lead(self) -> None:
        """Receive for every task of this loop, until cancelled: the leader's own reply does that."""
        while True:
            if not self._arm():
                await trio.lowlevel.checkpoint()  # others run, too, while there is always something
            else:
                try:
                    await trio.lowlevel.wait_readable(self._epoll)
                except trio.ClosedResourceError:
                    return  # detached: whoever waits has been told
            self._gather()

    # asyncio ----------------------------------------------------------------------------------------------------------

    def _arm_for_asyncio(self, loop: asyncio.AbstractEventLoop) -> None:
        # Each time: a thread that received meanwhile has taken the ring off, and kicks only if it leaves requests behind.
        reader = self._readers.get(loop) or self._adopt(loop)
        if not reader.called and not self._arm():
            reader.called = True
            loop.call_soon(self._ring, loop, reader)
            if len(self._readers) > 1 or self._orders:
                self._poke()  # this loop may end before it looks

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> _Reader:
        reader = _Reader()
        with self._loops:
            for ended in [known for known in self._readers if known.is_closed()]:
                del self._readers[ended]
            self._readers[loop] = reader
        loop.add_reader(self._epoll.fileno(), self._ring, loop, reader)
        return reader

    def _ring(self, loop: asyncio.AbstractEventLoop, reader: _Reader) -> None:
        reader.called = False
        if self._closed:
            return
        self._gather()
        if self._something_open():
            self._arm_for_asyncio(loop)
