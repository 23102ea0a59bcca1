"""The kernel's interface: system calls are methods, spoken over an ordinary channel.

Three rights. `observe` reads what the node is; `operate` changes it; `serve` is what a server holds: it
names only what the calling process itself holds, makes or serves. The operator's capability holds all
three. Objects are named by the operator with names (servers) and numbers (capabilities, buffers); a server
names what it holds with the same numbers, after asking once for the number of a slot (`number`) or of an
interface that it serves (`own`).

Times are nanoseconds since the epoch; durations and deadlines are seconds; sizes are bytes.

Any method may also end with `NotAllowed`, `NotFound` (the message suggests the nearest name), `QuotaExceeded`, or, when it
needs the store, `DeadlineExceeded` (down for longer than the call's deadline) and `StoreFull` (the kernel's reserve is
spent). A change and its row commit together or not at all; a change may be repeated with its request id, hence `once`.
"""

from typing import Literal

import msgspec
from msgspec import Struct

from atoll.ipc.buffer import BufferMode
from atoll.ipc.errors import Failure
from atoll.ipc.interface import Interface, call, stream

from ..published import TableShape
from .control import Described
from .measurement import Measurement
from .state import StoreFull

Level = str
"""The name of a protection level: `process`, `seccomp`, `sandbox`, or another that this release has a module of."""
State = Literal["starting", "serving", "draining", "frozen", "restarting", "stopped", "failed"]


def written(number: int) -> str:
    """A capability's number as people write it: the boot that made it, a point, and which of that boot's it is."""
    return f"{number >> 32}.{number & 0xFFFFFFFF}"


class WrongState(Failure, frozen=True, kw_only=True):
    """The server's state does not allow the call."""

    server: str
    state: str
    wanted: str

    @property
    def message(self) -> str:
        return f"server {self.server!r} is {self.state}; this needs it {self.wanted}: see `atoll ps`"


class StartFailed(Failure, frozen=True, kw_only=True):
    """A process of the server did not come up; what ran before it still runs."""

    server: str
    step: str
    reason: str

    @property
    def message(self) -> str:
        return (
            f"server {self.server!r} failed at {self.step}: {self.reason}; "
            f"`atoll log {self.server}` has its last words"
        )


class MechanismMissing(Failure, frozen=True, kw_only=True):
    """This host cannot enforce the level."""

    server: str
    level: str
    mechanism: str
    reason: str

    @property
    def message(self) -> str:
        return (
            f"server {self.server!r} cannot run at level {self.level!r}: {self.mechanism} "
            f"is missing ({self.reason}); "
            "choose a lower level, or see `atoll doctor`"
        )


class NodeRow(Struct, frozen=True, kw_only=True):
    """The node itself. `image` is the text it was booted from; `weakenings` are what boot printed."""

    name: str
    folder: str
    boot: int
    version: str
    image_path: str
    image: str
    started: int
    weakenings: list["Weakening"]


class ProcessRow(Struct, frozen=True, kw_only=True):
    """A server and the process that runs it now (`pid` 0: none). `calls` and `cpu` count since the process
    started."""

    server: str
    state: State
    pid: int
    level: Level
    version: str
    start: Literal["zygote", "exec"]
    uid: int
    started: int
    restarts: int
    memory: int
    cpu: float
    calls: int
    refused: int
    channels: int
    interfaces: list[str]
    reason: str = ""
    """Why it is in this state, where that is not plain: the last exit, who froze it."""
    late: int = 0
    """Of `calls`, those whose plain handler ran past the deadline: it cannot be interrupted, and held up all others."""


class Weakening(Struct, frozen=True, kw_only=True):
    """A mechanism that the image wants and this host or this user does not give."""

    server: str
    mechanism: str
    reason: str


class Mechanism(Struct, frozen=True, kw_only=True):
    name: str
    in_force: bool
    stops: str
    """What it stops, or, not in force, why it is not."""


class Protection(Struct, frozen=True, kw_only=True):
    """What keeps a server in: `wanted` is the image's level, `level` the highest whose mechanisms are all
    in force."""

    server: str
    wanted: Level
    level: Level
    mechanisms: list[Mechanism]
    weakenings: list[Weakening]


REFUSALS_AT_ONCE = 500
CAPS_AT_ONCE = 1000
ATTACHMENTS_AT_ONCE = 200


class CapabilityRow(Struct, frozen=True, kw_only=True):
    """A capability in the tree. `parent` 0: the root that a server's interface has. `expires` 0: never."""

    number: int
    parent: int
    holder: str
    server: str
    interface: str
    badge: int
    rights: list[str]
    lasting: bool
    made: int
    expires: int = 0


class Edge(Struct, frozen=True, kw_only=True):
    """In the graph of who may call whom: `holder` holds `rights` on `interface` of `server`."""

    holder: str
    server: str
    interface: str
    rights: list[str]


class Granted(Struct, frozen=True, kw_only=True):
    """A capability that the caller now holds: its port arrives on the control socket as `Deliver` with this
    token."""

    number: int
    token: int


class Opened(Struct, frozen=True, kw_only=True):
    """`Granted`, with what the server offers, for the caller's SDK to compare with what it expects."""

    number: int
    token: int
    described: Described


class BufferMade(Struct, frozen=True, kw_only=True):
    """A buffer of the caller's; its descriptor arrives on the control socket as `DeliverBuffer` with this
    token."""

    number: int
    token: int


class BufferRow(Struct, frozen=True, kw_only=True):
    """A buffer of the caller's, or of its server's. `shares`: by channel, how it was shared over that."""

    number: int
    size: int
    mode: BufferMode
    note: bytes
    shares: dict[int, BufferMode]


class KeyspaceBinding(Struct, frozen=True, tag="keyspace", kw_only=True):
    keyspace: str
    rights: list[str] = []


class ServerBinding(Struct, frozen=True, tag="server", kw_only=True):
    server: str
    rights: list[str] = []


class ConfigBinding(Struct, frozen=True, tag="config", kw_only=True):
    value: msgspec.Raw
    """MessagePack; checked against the server's Config type before anything starts."""


class SocketBinding(Struct, frozen=True, tag="socket", kw_only=True):
    listen: str
    """`host:port`, or the path of a Unix socket."""


Binding = KeyspaceBinding | ServerBinding | ConfigBinding | SocketBinding


class Load(Struct, frozen=True, kw_only=True):
    """A server to start. A keyspace or folder need without a binding gets one of its own (`SERVER.NEED`);
    other needs must be bound."""

    server: str
    package: str
    """Absolute path of the package folder; it is copied to `versions/<hash>` and runs from there."""
    level: Level = "process"
    start: Literal["zygote", "exec"] = "zygote"
    account: str = ""
    needs: dict[str, Binding] = {}
    degrade: bool = False
    """Accept the nearest lower level where a mechanism is missing, and record it."""
    record: bool = False
    """Record its calls, so that they can be replayed."""


class Swap(Struct, frozen=True, kw_only=True):
    """A new version or level for a server that runs. Empty fields stay as they are."""

    server: str
    package: str = ""
    version: str = ""
    """Of `versions(server)`, any unambiguous beginning; not together with `package`."""
    level: Level | None = None
    deadline: float | None = None
    """Seconds for the old version to finish what it has in hand; unset: as many as the image says (`drain`)."""
    force: bool = False
    """After the deadline end what is left with `PeerDied` instead of refusing."""


class Swapped(Struct, frozen=True, kw_only=True):
    """`pause`: seconds between the old version's last taken message and the new one's first chance to take
    one."""

    server: str
    old: str
    new: str
    level: Level
    pause: float
    handed_over: int
    ended: dict[str, int] = {}
    """Calls that `force` ended: by method, how many."""


class VersionRow(Struct, frozen=True, kw_only=True):
    version: str
    server: str
    package: str
    loaded: int
    running: bool


class Slice(Struct, frozen=True, kw_only=True):
    """What a server may use. None: no bound of its own."""

    cpu_weight: int = 100
    """Against the others, 1 to 10,000."""
    cpu_quota: float | None = None
    """Cores."""
    memory: int | None = None
    io_class: Literal["idle", "best-effort", "real-time"] = "best-effort"
    io_weight: int = 100
    device_memory: int | None = None
    """Bytes of accelerators' memory leased at once."""
    device_time: float | None = None
    """Share of a device's time, 0 to 1: written into leases, and nothing holds anybody to it yet."""
    processes: int | None = None
    priority: int = 5
    """0 to 9: whose requests for a device go first."""
    unenforced: list[str] = []
    """In an answer: what this host holds nobody to, as sentences."""


class DeviceBound(Struct, frozen=True, kw_only=True):
    """What all who are named by `name` may have of devices together. None: no bound."""

    name: str
    """`server NAME`, or `slice NAME`."""
    memory: int | None
    time: float | None


class DeviceShare(Struct, frozen=True, kw_only=True):
    """What one client may have of devices: all bounds hold at once."""

    bounds: list[DeviceBound] = []
    priority: int = 5


class LogRow(Struct, frozen=True, kw_only=True):
    position: int
    time: int
    server: str
    pid: int
    level: str
    text: str
    fields: dict[str, str] = {}


class Refusal(Struct, frozen=True, kw_only=True):
    """What a server or a program was refused, coalesced per (who, what). `by` is the mechanism: `capability`, `quota`,
    `attach`, `seccomp`, `kernel`."""

    server: str
    by: str
    what: str
    count: int
    first: int
    last: int


class ChannelRow(Struct, frozen=True, kw_only=True):
    """A channel of a server, from the kernel's side."""

    channel: int
    client: str
    epoch: int
    calls: int
    pending: int
    bytes: int


class AttachmentRow(Struct, frozen=True, kw_only=True):
    number: int
    pid: int
    uid: int
    command: str
    rights: list[str]
    since: int
    channels: int


class PublishedTable(Struct, frozen=True, kw_only=True):
    server: str
    name: str
    keyspace: str
    """That the server's need is bound to."""
    shape: TableShape


class Kernel(Interface):
    """The system calls."""

    errors = (WrongState, StartFailed, MechanismMissing, StoreFull)

    # what the node is ---------------------------------------------------------------------------------

    @call("observe", idempotent=True, service="control")
    def node(self) -> NodeRow:
        """Name, folder, boot epoch, image and weakenings of this node."""

    @call("observe", idempotent=True, service="control")
    def ps(self) -> list[ProcessRow]:
        """Every server of the node, also those that do not run, in the image's order and then as loaded."""

    @call("observe", idempotent=True)
    def interfaces(self, server: str) -> list[Described]:
        """What a server offers, with schemas: enough to call it without its package."""

    @call("observe", idempotent=True)
    def protection(self, server: str) -> Protection:
        """What is in force around a server, and each weakening with its reason."""

    @call("observe", idempotent=True)
    def graph(self) -> list[Edge]:
        """Who may call whom with which rights, now."""

    @call("observe", idempotent=True)
    def caps(self, server: str = "", after: int = 0) -> list[CapabilityRow]:
        """Capabilities in the tree, parents first; with `server`, those it holds or serves. At most `CAPS_AT_ONCE`, and
        as many as one reply holds: ask again with the last one's number as `after`, until none is left."""

    @call("observe", idempotent=True)
    def versions(self, server: str = "") -> list[VersionRow]:
        """Packages in the node's folder, newest first."""

    @call("observe", idempotent=True)
    def channels(self, server: str) -> list[ChannelRow]:
        """Channels that a server serves, with their counters."""

    @call("serve", idempotent=True)
    def published(self) -> list[PublishedTable]:
        """What the node's servers publish of the caller's `keyspaces`, in the versions that they have now."""

    @call("observe", idempotent=True)
    def slice(self, server: str) -> Slice:
        """What a server may use."""

    @call("serve", idempotent=True)
    def device_share(self, channel: int) -> DeviceShare:
        """What the client of a channel that the calling server serves may have of devices, by its slice as it is now."""

    @call("serve", idempotent=True)
    def measurement(self, channel: int) -> Measurement:
        """What the process at a served channel's other end is. `NotFound` where it is no server's."""

    @call("observe", idempotent=True)
    def attachments(self, after: int = 0) -> list[AttachmentRow]:
        """Programs outside the node that are attached to it, at most `ATTACHMENTS_AT_ONCE` after a number."""

    @call("observe", idempotent=True)
    def refused(self, server: str = "", after: int = 0) -> list[Refusal]:
        """What servers were refused, latest first; what the host does not report is not among it
        (docs/limits.md). At most `REFUSALS_AT_ONCE`, which one reply holds: ask again with how many were told so far as
        `after`; what is refused for the first time comes at the end."""

    @stream("observe", position=int)
    def logs(self, after: int = 0, server: str = "", follow: bool = True) -> LogRow:
        """Log lines after a position; without `follow` the stream ends with the last line that exists."""

    # a server's life ----------------------------------------------------------------------------------

    @call("operate", once=True)
    def load(self, what: Load) -> ProcessRow:
        """Start a server that the image does not have; it returns once the server serves.

        Faults: `BadRequest` (a name taken, a need unbound), `StartFailed`, `MechanismMissing`,
        `Incompatible`."""

    @call("operate", once=True)
    def swap(self, what: Swap) -> Swapped:
        """Put a new version, an old version or another level in a running server's place, with the same
        channels.

        Faults: `DrainTimedOut` names the calls that are still in hand; `StartFailed`, `MechanismMissing`,
        `Incompatible`. After any of them the old version runs on."""

    @call("operate", once=True)
    def stop(self, server: str, deadline: float | None = None) -> ProcessRow:
        """Let a server finish until the deadline (as `Swap` has it), then end it; it stays stopped until `restart`."""

    @call("operate", once=True)
    def restart(self, server: str, deadline: float | None = None) -> ProcessRow:
        """Stop a server, if it runs, and start its version anew; clears a crash loop. The deadline is that of `stop`."""

    @call("operate", once=True)
    def freeze(self, server: str, reason: str = "") -> ProcessRow:
        """Halt a server between two messages. Calls to it wait, up to their deadlines."""

    @call("operate", once=True)
    def thaw(self, server: str) -> ProcessRow:
        """Let a frozen server go on; what it had in hand is checked again first."""

    @call("operate", once=True)
    def set_slice(self, server: str, slice: Slice) -> Slice:
        """Change what a server may use beneath its slice, as one transaction whose rows' history tells who had what when.

        The answer says in `unenforced` what the host holds nobody to. For a server of the image it holds until the node
        ends, since the image wins at a boot; for one that a person loaded it lasts."""

    @call("operate", once=True)
    def shutdown(self, deadline: float = 5.0) -> None:
        """Stop every server, `state` last, and end the node. The reply comes before the end."""

    # capabilities -------------------------------------------------------------------------------------

    @call("operate")
    def open(self, server: str, interface: str = "", rights: list[str] | None = None) -> Opened:
        """A capability on a server, by name, for the caller; it dies with the caller's channel.

        An empty interface means the only one the server has. Without `rights`: all that the interface
        knows."""

    @call("operate")
    def keyspace(self, name: str, rights: list[str] | None = None) -> Granted:
        """A capability of interface `State`, badged with the keyspace, for the caller."""

    @call("serve", idempotent=True)
    def keyspaces(self) -> list[str]:
        """Names of the keyspaces, the kernel's own first: all of them for who may `operate`, else those that the caller
        holds a capability on."""

    @call("serve", idempotent=True)
    def number(self, channel: int, slot: int, generation: int) -> int:
        """The number in the tree of a capability that the caller holds; it never changes."""

    @call("serve", idempotent=True)
    def own(self, interface: str) -> int:
        """The number of the unbadged capability of an interface that the calling server serves: what `mint`
        starts from."""

    @call("serve", once=True)
    def derive(self, capability: int, rights: list[str] | None = None, expires: float = 0.0) -> int:
        """A child with the same badge, fewer or equal rights, and a life of `expires` seconds at most (0:
        the parent's)."""

    @call("serve", once=True)
    def mint(self, capability: int, badge: int, rights: list[str] | None = None, expires: float = 0.0) -> int:
        """A child of an unbadged capability with a badge, which is then fixed. Badge 0 is refused."""

    @call("operate", once=True)
    def grant(
        self,
        capability: int,
        to: str,
        rights: list[str] | None = None,
        expires: float = 0.0,
        lasting: bool = True,
    ) -> int:
        """A child in the hands of a server named `to`; needs the right `delegate` on the capability.

        A lasting one is a row and is delivered again at each start of that server."""

    @call("serve")
    def transfer(self, capability: int, channel: int) -> int:
        """A child for the peer at the other end of a channel of the caller's; the token is what the message
        carries.

        The peer's `Deliver` is on its control socket before this returns."""

    @call("serve", once=True)
    def revoke(self, capability: int, cancel: bool = False) -> int:
        """Take back a capability and all derived from it; the answer is how many.

        A server names only capabilities that it holds or that descend from its own. After it has returned
        no new call is served under any of them; calls in hand go on, or, with `cancel`, are cancelled."""

    # buffers ------------------------------------------------------------------------------------------

    @call("serve")
    def buffer(
        self, size: int, mode: BufferMode = "writable", of_server: bool = False, note: bytes = b""
    ) -> BufferMade:
        """A buffer of zeros that the caller has mapped writable, preallocated to its account.

        `mode` says who may write it. `writable`: whoever it is shared with so; who may only read it has a copy, as it was
        when it was first shared so. `readonly`: whoever has it writable before its first reader; all map the same memory.
        One made `of_server` is not the calling process's but its server's: the next process finds it among `buffers`,
        with `note` (256 bytes at most)."""

    @call("serve")
    def buffer_seal(self, buffer: int) -> BufferMade:
        """What the buffer holds, immutable for good: another one, with the same note. An immutable one is answered as it
        is."""

    @call("serve")
    def buffer_share(self, buffer: int, channel: int, mode: BufferMode = "readonly") -> int:
        """Give the other end of a channel the buffer; the token is what messages over that channel carry, until it is taken
        back. A server keeps it through swaps and crashes."""

    @call("serve", idempotent=True)
    def buffer_unshare(self, buffer: int, channel: int) -> bool:
        """Ask the other end of a channel to unmap the buffer; False if it was not shared over that. What it holds is taken
        from nobody: see `buffer_revoke`."""

    @call("serve", idempotent=True)
    def buffer_map(self, buffer: int, channel: int = 0) -> None:
        """Hand over a buffer once more that this process has unmapped: its own, or one shared with it over a channel.
        Its descriptor arrives on the control socket as `DeliverBuffer`."""

    @call("serve", idempotent=True)
    def buffers(self, after: int | None = None) -> list[BufferRow]:
        """The caller's buffers, and its server's: past a number some, till none is left; without one all, or `TooLarge`."""

    @call("serve", once=True)
    def buffer_revoke(self, buffer: int) -> int:
        """Take the buffer back from everyone it was shared with: they read zeros from now on. The answer is
        how many. Former holders may still map the memory, so the buffer itself, unless only copies of it were shared, is
        not shared again.

        `BadRequest` for an immutable buffer: that is only taken back by ending the process that holds it."""

    @call("serve", once=True)
    def buffer_release(self, buffer: int) -> None:
        """Give the buffer up. Others keep what they have mapped, and no message names it any more. Its account is
        credited when its pages are free: at once if nobody else had it, else when the last one has unmapped it."""
