"""The gpu server: admission (admission.py) made durable, and told to those whom it concerns.

One task commits, in `run`: what admission decided goes into transactions, in order and in pieces that no number of
decisions makes too large, and only then is a lease handed to who waits for it. A lease that a client holds is therefore a
row, and neither a crash nor a swap of the server loses any: `start` takes the rows over, channels survive, calls
that were in hand come again, and whoever died meanwhile is named by `clients_present`.

Each process of the server claims the rows with a row of its own, and commits only while that stands: what an older
one decides in its last moments is refused by the store.
"""

import math
import os
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from typing import Annotated, ClassVar

import trio
from msgspec import Meta, Struct, structs

from atoll.ipc.context import SystemClock, current
from atoll.ipc.errors import Aborted, AtollError, BadRequest, Overloaded, QuotaExceeded
from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.published import Published
from atoll.ipc.runtime import own_kernel
from atoll.ipc.serve import Config, Serves

from .admission import Admission, Bound, Change, Ended, Granted, Limits, Renewed, Request, Told, Undone
from .devices import discover
from .interface import BeyondSlice, Device, Event, Gpu, Kind, Lease, Notice, Statistics

_LONGEST = 7 * 24 * 3600.0
"""Seconds of a lease or a wait at most."""
_NOTICES = 100
"""Notices kept for a client that does not read them."""
_HISTORY = 10_000
"""Ended leases that are kept."""
_LISTED = 1000
"""Leases at most: all of them are one reply of `leases`."""
_PURPOSE = 200
"""Bytes of a purpose at most: it stands in a lease's rows, in each reply that has the lease, and in the history."""
_AT_ONCE = 100
"""Changes of one transaction."""
_PAUSE = 0.25
"""Seconds before a commit that the store refused is tried again."""


class Settings(Config, frozen=True, kw_only=True):
    share: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """Of each device's memory, how much may be leased; the rest is for drivers and for programs that do
    not ask.
    """
    grace: Annotated[float, Meta(ge=0)] = 5.0
    """Seconds that a preempted holder has to give way."""
    queue: Annotated[int, Meta(ge=0)] = 64
    """Requests that may wait."""
    queue_per_client: Annotated[int, Meta(ge=0)] = 16
    """Of them, those of one client."""
    leases: Annotated[int, Meta(ge=1, le=_LISTED)] = _LISTED
    """Leases that there may be, requests that wait for one counted in."""
    leases_per_client: Annotated[int, Meta(ge=1)] = 64
    """Of them, those of one client."""


class Claim(Struct, frozen=True, tag="claim"):
    """Which process of the server commits."""

    process: bytes


class _Waiter:
    """An `acquire` in hand: its lease when it is durable, or why there is none."""

    __slots__ = ("done", "error", "lease")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.lease: Lease | None = None
        self.error: AtollError | None = None


class _Mailbox:
    """Notices of one client."""

    def __init__(self) -> None:
        self.kept: deque[Notice] = deque(maxlen=_NOTICES)
        self.arrived = trio.Event()

    def put(self, notice: Notice) -> None:
        self.kept.append(notice)
        self.arrived.set()
        self.arrived = trio.Event()


class Server(Serves[Gpu]):
    rows: Keyspace[Lease | Event | Claim]
    config: Settings
    publishes: ClassVar = {
        "lease": Published("rows", Lease, "lease/", moments=("granted", "expires", "leaving")),
        "ended": Published(
            "rows", Event, "event/", moments=("ended", "lease_granted", "lease_expires", "lease_leaving")
        ),
    }

    def __init__(self) -> None:
        self._waiters: dict[int, _Waiter] = {}
        self._mail: defaultdict[int, _Mailbox] = defaultdict(_Mailbox)
        self._work = trio.Event()
        self._durable = trio.Event()
        """Set when what was decided up to now is committed; each commit has its own."""
        self._present: set[int] = set()
        """Clients that may be told something."""
        self._claim = Claim(os.urandom(16))
        self._claimed = False
        self._requests = 0
        self._granted = self._preempted = self._refused = 0

    def discover(self) -> tuple[list[Device], str]:
        """The devices of this machine, and why there is no CUDA device among them."""
        return discover()

    async def share(self, client: int) -> tuple[int, tuple[Bound, ...]]:
        """The standing of a client, and what its slice gives it of devices, as the kernel says it now."""
        share = await own_kernel.kernel().device_share(client)
        return share.priority, tuple(Bound(each.name, each.memory, each.time) for each in share.bounds)

    async def start(self) -> None:
        self.rows.keep_remote()
        self._offset = SystemClock().time() - trio.current_time()
        found, self._note = self.discover()
        share = self.config.share
        devices = [structs.replace(device, leasable=int(device.memory * share)) for device in found]
        config = self.config
        limits = Limits(config.queue, config.queue_per_client, config.leases, config.leases_per_client)
        self._admission = Admission(devices, config.grace, limits)
        await self._claim_rows()
        leases = [_bounded(row.value) async for row in self.rows.range("lease/", "lease0")]
        last = [row.value async for row in self.rows.range("event/", "event0", limit=1, reverse=True)]
        last_id = max((each.lease.id for each in last if isinstance(each, Event)), default=0)
        self._admission.restore(
            [each for each in leases if isinstance(each, Lease)], last_id, self._now(), self.rows.boot
        )

    async def _claim_rows(self) -> None:
        await settled(self.rows.put("claim", self._claim))
        self._claimed = True

    def _now(self) -> float:
        """Seconds since the epoch by a clock that does not jump: a lease's time is a duration."""
        return trio.current_time() + self._offset

    def client_gone(self, client: int) -> None:
        """A client's channel closed: its leases end."""
        self._present.discard(client)
        self._admission.client_gone(client, self._now())
        self._mail.pop(client, None)
        self._work.set()

    def clients_present(self, present: frozenset[int]) -> None:
        """This process serves from now on; whoever else holds leases has gone while none did."""
        self._present = set(present)
        self._claimed = False  # a swap that was refused has let another process claim the rows
        held = {lease.client for lease in self._admission.leases.values()}
        for client in (held | {request.client for request in self._admission.waiting}) - present:
            self.client_gone(client)
        self._admission.remind(self._now())
        self._work.set()

    # committing -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        backlog: list[Change] = []
        promised: list[trio.Event] = []
        while True:
            if not backlog and not self._admission.changes:
                await self._wait()
            self._admission.pass_time(self._now())
            backlog += self._admission.changes
            self._admission.changes = []
            promised.append(self._durable)
            self._durable = trio.Event()
            try:
                if not self._claimed:
                    await self._claim_rows()
                while backlog:
                    piece = backlog[:_AT_ONCE]
                    await self._write(piece)
                    for change in piece:
                        self._tell(change)
                    del backlog[: len(piece)]
            except AtollError as error:
                backlog = self._refuse(backlog, error)
                await trio.sleep(_PAUSE)
            else:
                for event in promised:
                    event.set()
                promised = []

    async def _committed(self) -> None:
        """Return when what was decided up to now is durable."""
        durable = self._durable
        self._work.set()
        await durable.wait()

    async def _wait(self) -> None:
        """Until there is something to commit, or a lease's time is over."""
        end = self._admission.next_end()
        with trio.move_on_after(math.inf if end is None else max(0.0, end - self._now())):
            await self._work.wait()
        self._work = trio.Event()

    async def _write(self, changes: list[Change]) -> None:
        rows: dict[str, Lease | Event | None] = {}
        for change in changes:
            match change:
                case Granted(lease=lease) | Renewed(lease=lease):
                    rows[f"lease/{lease.id:016d}"] = lease
                case Undone(lease=lease):
                    rows[f"lease/{lease.id:016d}"] = None
                case Ended(event=event):
                    rows[f"lease/{event.lease.id:016d}"] = None
                    rows[f"event/{event.lease.id:016d}"] = event
                    if event.lease.id > _HISTORY:
                        rows[f"event/{event.lease.id - _HISTORY:016d}"] = None
        if not rows:
            return
        async with self.rows.transaction() as tx:
            if await tx.get("claim") != self._claim:
                raise Aborted("a commit of leases", "another process serves them now")
            for key, row in rows.items():
                if row is None:
                    tx.delete(key)
                else:
                    tx.put(key, row)

    def _refuse(self, changes: list[Change], error: AtollError) -> list[Change]:
        """The store did not take the changes: no lease is handed out. What has ended stays ended and is
        written later.
        """
        for change in changes:
            if isinstance(change, Granted):
                waiter = self._waiters.get(change.request)
                if waiter is not None:
                    waiter.error = error
                    waiter.done.set()
                self._admission.undo(change.lease, self._now())
        return [change for change in changes if not isinstance(change, Granted)]

    def _tell(self, change: Change) -> None:
        match change:
            case Granted(request=request, lease=lease):
                self._granted += 1
                waiter = self._waiters.get(request)
                if waiter is None:  # the caller went away meanwhile
                    self._admission.release(lease.id, lease.client, self._now())
                else:
                    waiter.lease = lease
                    waiter.done.set()
            case Ended(event=event):
                self._preempted += event.how == "preempted"
            case Told(client=client, notice=notice) if client in self._present:
                self._mail[client].put(notice)

    # leases -----------------------------------------------------------------------------------------------

    @Gpu.acquire.serve
    async def acquire(
        self,
        kind: Kind,
        memory: int,
        priority: int = 50,
        ttl: float = 60.0,
        wait: float = 0.0,
        purpose: str = "",
    ) -> Lease:
        _check("memory", memory, 1, 2**62)
        _check("priority", priority, 0, 100)
        _check("ttl", ttl, 0.001, _LONGEST)
        _check("wait", wait, 0.0, _LONGEST)
        if len(purpose.encode()) > _PURPOSE:
            raise BadRequest("$.purpose", f"{_PURPOSE} bytes at most", f"{len(purpose.encode())}")
        call = current()
        self._present.add(call.client)
        known = self._admission.held_for(call.client, call.request)
        if known is not None:
            return known
        standing, bounds = await self.share(call.client)
        self._requests += 1
        number = self._requests
        waiter = self._waiters[number] = _Waiter()
        request = Request(
            number=number,
            client=call.client,
            badge=call.badge,
            kind=kind,
            memory=memory,
            priority=priority,
            ttl=ttl,
            purpose=purpose,
            standing=standing,
            bounds=bounds,
            boot=self.rows.boot,
            call=call.request,
        )
        try:
            self._admission.ask(request, self._now(), may_wait=wait > 0)
            self._work.set()
            with trio.move_on_after(wait):
                await waiter.done.wait()
            if self._admission.withdraw(number, self._now()):
                raise Overloaded(f"every device of kind {kind!r}, for the {wait:g} s that were waited,")
            await waiter.done.wait()
        except (Overloaded, QuotaExceeded, BeyondSlice):
            self._refused += 1
            raise
        except trio.Cancelled:
            self._admission.withdraw(number, self._now())
            if waiter.lease is not None:
                self._admission.release(waiter.lease.id, call.client, self._now())
            raise
        finally:
            del self._waiters[number]
            self._work.set()
        if waiter.error is not None:
            raise waiter.error
        assert waiter.lease is not None, "a waiter is woken with a lease or an error"
        return waiter.lease

    @Gpu.renew.serve
    async def renew(self, lease: int, ttl: float) -> Lease:
        _check("ttl", ttl, 0.001, _LONGEST)
        client = current().client
        standing, bounds = await self.share(client)
        renewed = self._admission.renew(lease, client, ttl, self._now(), standing, bounds)
        await self._committed()
        return renewed

    @Gpu.release.serve
    async def release(self, lease: int) -> bool:
        held = self._admission.release(lease, current().client, self._now())
        await self._committed()
        return held

    @Gpu.notices.serve
    async def notices(self, after: int = 0) -> AsyncIterator[Notice]:
        self._present.add(current().client)
        mailbox = self._mail[current().client]
        while True:
            arrived = mailbox.arrived
            for notice in list(mailbox.kept):
                if notice.position > after:
                    after = notice.position
                    yield notice
            await arrived.wait()

    # reading ----------------------------------------------------------------------------------------------

    @Gpu.devices.serve
    def devices(self) -> list[Device]:
        admission = self._admission
        return [
            structs.replace(each, leased=admission.leased(each.id)) for each in admission.devices.values()
        ]

    @Gpu.leases.serve
    def leases(self) -> list[Lease]:
        return list(self._admission.leases.values())

    @Gpu.history.serve
    async def history(self, limit: int = 100) -> list[Event]:
        _check("limit", limit, 1, 1000)
        rows = self.rows.range("event/", "event0", limit=limit, reverse=True)
        return [row.value async for row in rows if isinstance(row.value, Event)]

    @Gpu.statistics.serve
    def statistics(self) -> Statistics:
        return Statistics(
            leases=len(self._admission.leases),
            waiting=len(self._admission.waiting),
            granted=self._granted,
            preempted=self._preempted,
            refused=self._refused,
            note=self._note,
        )


def _bounded(row: Lease | Event | Claim | None) -> Lease | Event | Claim | None:
    """A lease as it may be written: one of a version that took any purpose has a longer one."""
    if not isinstance(row, Lease):
        return row
    return structs.replace(row, purpose=row.purpose.encode()[:_PURPOSE].decode(errors="ignore"))


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise BadRequest(f"$.{name}", f"a number from {least:g} to {most:g}", f"{value:g}")
