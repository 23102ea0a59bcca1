"""Who gets which device memory, and who must give way: pure logic, time handed in.

Requests wait in order of their slices' priority (`standing`), then of their own, then arrival; a client may have so
many waiting, and so many leases, that none fills queue or list by itself. A waiting request
keeps those behind it from the devices it could use, so a large request is not starved by small ones; requests for
other devices pass. If leases of lower priority hold what the first in line needs, the fewest bytes of them that
suffice are told to give way, lowest priority and youngest first, and are taken back when their grace is over. Equal
priority never preempts. What a slice may not have is refused at once: waiting would only hold up others. What a
method changed is appended to `changes`, in order; the server makes it durable and then tells whom it concerns.
"""

from collections.abc import Iterator
from typing import NamedTuple

from msgspec import structs

from atoll.ipc.errors import Overloaded, QuotaExceeded

from .interface import BeyondSlice, Device, Ending, Event, Kind, Lease, NeverFits, NoSuchLease, Notice


class Bound(NamedTuple):
    """What all leases of one slice may take together. None: no bound."""

    name: str
    memory: int | None
    time: float | None


class Limits(NamedTuple):
    queue: int
    """Requests that may wait."""
    queue_per_client: int
    leases: int
    """What is leased, and what waits to be."""
    leases_per_client: int


class Request(NamedTuple):
    number: int
    client: int
    badge: int
    kind: Kind
    memory: int
    priority: int
    ttl: float
    purpose: str
    standing: int
    bounds: tuple[Bound, ...]
    boot: int
    call: int
    """The call's own number, the same when it comes again; 0: it has none."""

    @property
    def order(self) -> tuple[int, int, int]:
        """The smaller goes first."""
        return (-self.standing, -self.priority, self.number)


class Granted(NamedTuple):
    request: int
    lease: Lease


class Undone(NamedTuple):
    """A lease was granted, could not be made durable, and nobody has it."""

    lease: Lease


class Renewed(NamedTuple):
    """A lease's times changed."""

    lease: Lease


class Ended(NamedTuple):
    event: Event


class Told(NamedTuple):
    client: int
    notice: Notice


Change = Granted | Undone | Renewed | Ended | Told


class Admission:
    """One task at a time; invariants in `broken`."""

    def __init__(self, devices: list[Device], grace: float, limits: Limits) -> None:
        """`devices` with what may be leased of each; `grace` in seconds."""
        self.devices = {device.id: device for device in devices}
        self.grace = grace
        self.limits = limits
        self.leases: dict[int, Lease] = {}
        self.waiting: list[Request] = []
        self.changes: list[Change] = []
        self._free = {device.id: device.leasable for device in devices}
        self._next = 1
        self._inherited: set[int] = set()
        """Leases that had to give way before a restart: whether their holders heard of it nobody knows."""
        self._position = 0
        """Of the last notice: its time in microseconds, so that it rises across restarts."""

    # what is asked ----------------------------------------------------------------------------------------

    def restore(self, leases: list[Lease], last_id: int, now: float, boot: int = 0) -> None:
        """Take over leases that stood before a restart. Those of an earlier boot end, since their holders ended with it;
        so do those of devices that are gone, or that do not fit any more.
        """
        self._next = last_id + 1
        for lease in sorted(leases, key=lambda lease: (-lease.standing, -lease.priority, lease.id)):
            self._next = max(self._next, lease.id + 1)
            if lease.boot != boot:
                self.changes.append(Ended(Event(lease=lease, ended=now, how="node ended")))
            elif self._free.get(lease.device, 0) >= lease.memory:
                self._free[lease.device] -= lease.memory
                self.leases[lease.id] = lease
                if lease.leaving:
                    self._inherited.add(lease.id)
            else:
                self._told(lease, "ended", now, "its device is gone or has shrunk", now)
                self.changes.append(Ended(Event(lease=lease, ended=now, how="device gone")))

    def remind(self, now: float) -> None:
        """Tell those who had to give way before a restart once more."""
        for lease in [lease for lease in self.leases.values() if lease.id in self._inherited]:
            why = f"a stronger request needs the memory of {lease.device}"
            self._told(lease, "give way", lease.leaving, why, now)
        self._inherited.clear()

    def ask(self, request: Request, now: float, may_wait: bool) -> None:
        """Queue a request and grant what can be granted. Raises NeverFits, BeyondSlice, QuotaExceeded, Overloaded;
        then nothing has changed.
        """
        eligible = self._eligible(request.kind)
        largest = max((self.devices[each].leasable for each in eligible), default=0)
        if request.memory > largest:
            raise NeverFits(kind=request.kind, memory=request.memory, largest=largest)
        self._within(request.bounds, request.memory)
        self._in_number(request.client)
        if not may_wait and not self._fits_now(request):
            raise Overloaded(f"every device of kind {request.kind!r} (pass `wait` to queue for it)")
        self.waiting.append(request)
        self.waiting.sort(key=lambda each: each.order)
        self._admit(now)

    def held_for(self, client: int, call: int) -> Lease | None:
        """The lease that a call got before it came again."""
        return next(
            (each for each in self.leases.values() if call and (each.client, each.request) == (client, call)),
            None,
        )

    def undo(self, lease: Lease, now: float) -> None:
        """Take back a lease that nobody was told of; there is nothing in it for the history."""
        if self.leases.pop(lease.id, None) is not None:
            self._free[lease.device] += lease.memory
            self.changes.append(Undone(lease))
        self._admit(now)

    def withdraw(self, number: int, now: float) -> bool:
        """Give up waiting; False if the request does not wait (any more)."""
        left = [request for request in self.waiting if request.number != number]
        found = len(left) < len(self.waiting)
        self.waiting = left
        self._admit(now)
        return found

    def release(self, id: int, client: int, now: float) -> bool:
        """End a lease of `client`; False if it is over already. Raises NoSuchLease for another's."""
        lease = self.leases.get(id)
        if lease is None and 0 < id < self._next:
            return False
        if lease is None or lease.client != client:
            raise NoSuchLease(lease=id)
        self._end(lease, "released", now)
        self._admit(now)
        return True

    def renew(
        self, id: int, client: int, ttl: float, now: float, standing: int, bounds: tuple[Bound, ...]
    ) -> Lease:
        """Raises NoSuchLease, also for one whose time is over, and BeyondSlice. A lease that must give way keeps its end.
        `standing`, `bounds`: those of the holder's slice now."""
        self.pass_time(now)
        lease = self.leases.get(id)
        if lease is None or lease.client != client:
            raise NoSuchLease(lease=id)
        self._within(bounds, 0)
        if not lease.leaving:
            lease = structs.replace(
                lease, expires=now + ttl, standing=standing, within=_names(bounds), time=_time(bounds)
            )
            self.leases[id] = lease
            self.changes.append(Renewed(lease))
        return lease

    def client_gone(self, client: int, now: float) -> None:
        """End all leases of a dead client and forget its requests."""
        self.waiting = [request for request in self.waiting if request.client != client]
        for lease in [lease for lease in self.leases.values() if lease.client == client]:
            self._end(lease, "holder died", now)
        self._admit(now)

    def pass_time(self, now: float) -> None:
        """End what is over, and grant what that frees."""
        for lease in list(self.leases.values()):
            if lease.leaving and lease.leaving <= now:
                self._end(lease, "preempted", now)
            elif lease.expires <= now:
                self._end(lease, "expired", now)
        self._admit(now)

    def next_end(self) -> float | None:
        """When `pass_time` has something to do next."""
        return min((lease.leaving or lease.expires for lease in self.leases.values()), default=None)

    def leased(self, device: str) -> int:
        return self.devices[device].leasable - self._free[device]

    # how it is decided ------------------------------------------------------------------------------------

    def _in_number(self, client: int) -> None:
        """Raises QuotaExceeded, Overloaded if one more is more than there may be, of this client or of all."""
        limits = self.limits
        waiting = sum(each.client == client for each in self.waiting)
        leased = sum(each.client == client for each in self.leases.values())
        if leased + waiting >= limits.leases_per_client:
            raise QuotaExceeded(f"client {client} of the gpu server", "leases", limits.leases_per_client)
        if len(self.leases) + len(self.waiting) >= limits.leases:
            raise Overloaded("the gpu server's list of leases")
        if len(self.waiting) >= limits.queue:
            raise Overloaded("the gpu server's queue")
        if waiting >= limits.queue_per_client:
            raise Overloaded(f"client {client}'s part of the gpu server's queue")

    def _within(self, bounds: tuple[Bound, ...], memory: int) -> None:
        """Raises BeyondSlice if a slice may not have so much more than it leases and waits for."""
        for bound in bounds:
            if bound.memory is None:
                continue
            taken = sum(lease.memory for lease in self.leases.values() if bound.name in lease.within)
            taken += sum(each.memory for each in self.waiting if bound.name in _names(each.bounds))
            if taken + memory > bound.memory:
                raise BeyondSlice(slice=bound.name, memory=memory, leased=taken, limit=bound.memory)

    def _eligible(self, kind: Kind) -> list[str]:
        """Devices that serve a kind, those with most free memory first."""
        found = [
            device.id
            for device in self.devices.values()
            if device.kind == kind or (kind == "accelerator" and (device.kind == "cuda" or device.stand_in))
        ]
        return sorted(found, key=lambda id: (-self._free[id], id))

    def _fits_now(self, request: Request) -> bool:
        """Whether `ask` would grant it at once."""
        blocked: set[str] = set()
        for waiting in self.waiting:
            if waiting.order < request.order:
                blocked.update(self._eligible(waiting.kind))
        return any(
            self._free[each] >= request.memory for each in self._eligible(request.kind) if each not in blocked
        )

    def _fronts(self) -> Iterator[tuple[Request, list[str]]]:
        """Waiting requests in order, each with the devices that no one before it waits for."""
        blocked: set[str] = set()
        for request in list(self.waiting):
            eligible = self._eligible(request.kind)
            yield request, [each for each in eligible if each not in blocked]
            if request in self.waiting:
                blocked.update(eligible)

    def _admit(self, now: float) -> None:
        for request, devices in self._fronts():
            fitting = next((each for each in devices if self._free[each] >= request.memory), None)
            if fitting is not None:
                self._grant(request, fitting, now)
            elif devices:
                self._preempt(request, devices, now)

    def _grant(self, request: Request, device: str, now: float) -> None:
        lease = Lease(
            id=self._next,
            device=device,
            memory=request.memory,
            priority=request.priority,
            client=request.client,
            badge=request.badge,
            purpose=request.purpose,
            granted=now,
            expires=now + request.ttl,
            standing=request.standing,
            within=_names(request.bounds),
            time=_time(request.bounds),
            boot=request.boot,
            request=request.call,
        )
        self._next += 1
        self._free[device] -= request.memory
        self.leases[lease.id] = lease
        self.waiting.remove(request)
        self.changes.append(Granted(request.number, lease))

    def _preempt(self, request: Request, devices: list[str], now: float) -> None:
        """Tell the cheapest sufficient set of weaker leases on one device to give way."""
        choices = [victims for each in devices if (victims := self._victims(request, each)) is not None]
        if not choices:
            return
        for lease in min(choices, key=lambda victims: sum(lease.memory for lease in victims)):
            leaving = structs.replace(lease, leaving=min(lease.expires, now + self.grace))
            self.leases[lease.id] = leaving
            self.changes.append(Renewed(leaving))
            why = f"a request of priority {request.priority} needs the memory of {lease.device}"
            self._told(leaving, "give way", leaving.leaving, why, now)

    def _victims(self, request: Request, device: str) -> list[Lease] | None:
        """Weaker leases whose end, with what is free or leaving, makes room; None if even all of them do
        not.
        """
        held = [lease for lease in self.leases.values() if lease.device == device]
        missing = request.memory - self._free[device] - sum(lease.memory for lease in held if lease.leaving)
        strength = (request.standing, request.priority)
        weaker = [lease for lease in held if not lease.leaving and _strength(lease) < strength]
        chosen: list[Lease] = []
        for lease in sorted(weaker, key=lambda lease: (_strength(lease), -lease.id)):
            if missing <= 0:
                break
            chosen.append(lease)
            missing -= lease.memory
        if missing > 0:
            return None
        for lease in list(chosen):  # what a later, larger one made superfluous may stay
            if missing + lease.memory <= 0:
                chosen.remove(lease)
                missing += lease.memory
        return chosen

    def _end(self, lease: Lease, how: Ending, now: float) -> None:
        del self.leases[lease.id]
        self._free[lease.device] += lease.memory
        if how in ("expired", "preempted"):
            why = "its time is over" if how == "expired" else "it had to give way"
            self._told(lease, "ended", now, why, now)
        self.changes.append(Ended(Event(lease=lease, ended=now, how=how)))

    def _told(self, lease: Lease, what: str, until: float, why: str, now: float) -> None:
        position = self._position = max(self._position + 1, int(now * 1e6))
        notice = (
            Notice(position=position, lease=lease.id, what="ended", until=until, why=why)
            if what == "ended"
            else Notice(position=position, lease=lease.id, what="give way", until=until, why=why)
        )
        self.changes.append(Told(lease.client, notice))

    # proving ----------------------------------------------------------------------------------------------

    def broken(self) -> list[str]:
        """Sentences about what should never be true after a method has returned."""
        wrong: list[str] = []
        for device in self.devices.values():
            held = sum(lease.memory for lease in self.leases.values() if lease.device == device.id)
            if held > device.leasable:
                wrong.append(f"{device.id} leases {held} of {device.leasable} bytes")
            if held + self._free[device.id] != device.leasable:
                wrong.append(f"the free memory of {device.id} is not what its leases leave")
        if len(self.waiting) > self.limits.queue:
            wrong.append("more requests wait than may")
        if [request.order for request in self.waiting] != sorted(request.order for request in self.waiting):
            wrong.append("requests do not wait in order")
        for request, devices in self._fronts():
            if any(self._free[each] >= request.memory for each in devices):
                wrong.append(f"request {request.number} waits although it could be granted")
        wrong += [
            f"lease {lease.id} was told to leave after its end"
            for lease in self.leases.values()
            if lease.leaving > lease.expires
        ]
        return wrong


def _strength(lease: Lease) -> tuple[int, int]:
    return (lease.standing, lease.priority)


def _names(bounds: tuple[Bound, ...]) -> tuple[str, ...]:
    return tuple(bound.name for bound in bounds)


def _time(bounds: tuple[Bound, ...]) -> float | None:
    return min((bound.time for bound in bounds if bound.time is not None), default=None)
