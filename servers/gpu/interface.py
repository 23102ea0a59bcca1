"""What others may ask of the gpu server: devices and leases.

A lease gives its holder so many bytes of one device's memory, at a priority, for a time that the holder
renews. It ends by release, by the holder's death, when its time is over, or when a request of higher
priority needs the memory: then the holder first gets a notice and the grace to give way.
"""

from typing import Literal

from msgspec import Struct

from atoll.ipc.errors import Failure
from atoll.ipc.interface import Interface, call, stream
from atoll.ipc.system.state import StoreFull

Kind = Literal["cuda", "cpu", "accelerator"]
"""`accelerator`: a CUDA device, or what stands in for one."""

Ending = Literal["released", "holder died", "expired", "preempted", "device gone", "node ended"]


class Device(Struct, frozen=True, kw_only=True):
    id: str
    kind: Literal["cuda", "cpu"]
    name: str
    uuid: str
    memory: int
    """Bytes of the device; how much of them may be leased is the configuration's `share`."""
    stand_in: bool
    """Stands in for an accelerator that this machine does not have."""
    leasable: int = 0
    leased: int = 0


class Lease(Struct, frozen=True, kw_only=True, tag="lease"):
    id: int
    device: str
    memory: int
    priority: int
    """0 to 100; the higher goes first."""
    client: int
    """The channel that holds it."""
    badge: int
    purpose: str
    granted: float
    """Seconds since the epoch, as is `expires`."""
    expires: float
    leaving: float = 0.0
    """Not 0: preempted, and taken back then at the latest."""
    standing: int = 5
    """The priority of its holder's slice, 0 to 9: goes before `priority`, which the holder chose."""
    within: tuple[str, ...] = ()
    """The slices of which it is a part."""
    time: float | None = None
    """The share of the device's time that the holder's slice gives it; None: no bound. Nothing enforces it yet."""
    boot: int = 0
    """Of the node: channels are numbered anew in each."""
    request: int = 0
    """The call that asked for it. When that comes again, after a crash of the server, it is answered with this lease."""


class Notice(Struct, frozen=True, kw_only=True):
    """What a holder should know. `give way`: release by `until`; `ended`: the lease is over."""

    position: int
    lease: int
    what: Literal["give way", "ended"]
    until: float
    why: str


class Event(Struct, frozen=True, kw_only=True, tag="event"):
    """A row of the history: who had what, from when to when, and how it ended."""

    lease: Lease
    ended: float
    how: Ending


class Statistics(Struct, frozen=True, kw_only=True):
    leases: int
    waiting: int
    granted: int
    preempted: int
    refused: int
    note: str
    """Why there is no CUDA device, or empty."""


class NoSuchLease(Failure, frozen=True, kw_only=True):
    lease: int

    @property
    def message(self) -> str:
        return f"lease {self.lease} is not held by this client (it ended, or is another's): acquire a new one"


class NeverFits(Failure, frozen=True, kw_only=True):
    """No device of the kind could hold this even if it were empty; waiting would be in vain."""

    kind: str
    memory: int
    largest: int

    @property
    def message(self) -> str:
        if not self.largest:
            return f"this machine has no device of kind {self.kind!r}: `devices` lists those it has"
        return (
            f"{self.memory} bytes were asked for, and the largest device of kind {self.kind!r} leases"
            f" {self.largest}: ask for less, or raise `share` in the image"
        )


class BeyondSlice(Failure):
    """The holder's slice gives it less device memory than this would take, whatever is free."""

    slice: str
    memory: int
    leased: int
    limit: int

    @property
    def message(self) -> str:
        return (
            f"{self.slice} may lease {self.limit} bytes of device memory, has {self.leased}, and {self.memory} were"
            " asked for: release some, or give it a larger slice"
        )


class Gpu(Interface):
    """Devices and leases. Rights: `read`, `lease`."""

    errors = (NoSuchLease, NeverFits, BeyondSlice, StoreFull)

    @call("read", idempotent=True)
    def devices(self) -> list[Device]: ...

    @call("lease", once=True)
    def acquire(
        self,
        kind: Kind,
        memory: int,
        priority: int = 50,
        ttl: float = 60.0,
        wait: float = 0.0,
        purpose: str = "",
    ) -> Lease:
        """A lease of `memory` bytes for `ttl` seconds, renewable; waits up to `wait` seconds for its turn: by the priority
        of its slice, then by `priority`, then in order.

        If the server's process ends meanwhile the request is asked again and gets one lease; it then waits anew, behind
        those that came before it.

        Raises NeverFits, BeyondSlice, QuotaExceeded (this client has as many leases as one may), Overloaded (the queue, this
        client's part of it, or the list of all leases is full, or `wait` is over), BadRequest.
        """

    @call("lease", idempotent=True)
    def renew(self, lease: int, ttl: float) -> Lease:
        """Let the lease run for `ttl` seconds from now; one that must give way is not prolonged. Raises NoSuchLease, and
        BeyondSlice where the slice has become smaller than what is leased: it ends at its time then.
        """

    @call("lease", idempotent=True)
    def release(self, lease: int) -> bool:
        """Give it back; False if it had ended already. Raises NoSuchLease for another client's."""

    @call("read", idempotent=True)
    def leases(self) -> list[Lease]: ...

    @stream("lease", position=int)
    def notices(self, after: int = 0) -> Notice:
        """What happens to this client's leases, from the notice after `after` on."""

    @call("read", idempotent=True)
    def history(self, limit: int = 100) -> list[Event]:
        """Ended leases, the latest granted first."""

    @call("read", idempotent=True)
    def statistics(self) -> Statistics: ...
