"""What the kernel and a process it started say to each other over the control socket.

One `SOCK_SEQPACKET` pair a process; one tagged Struct a packet, in MessagePack; descriptors ride along by SCM_RIGHTS
in the order each message names. The kernel speaks first (`Start`), the process answers `Ready` or `Failed`; from then
on either side may speak at any time. Only the kernel's end is trusted: what a process says here is a claim about
itself and nothing else. The process's end closes when the kernel dies, and the process ends then.
"""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from atoll.ipc.buffer import BufferMode
from atoll.ipc.context import Level

PACKET_LIMIT = 192 * 1024
"""Bytes of one packet at most; what is larger (hand-over state) travels in a sealed memfd."""


class Message(Struct, frozen=True, tag=True, kw_only=True):
    """A packet; `descriptors` names, in order, the file descriptors that travel with it."""

    descriptors: ClassVar[tuple[str, ...]] = ()


class Shape(Struct, frozen=True, kw_only=True):
    """A channel's geometry, fixed when it is made: lanes (one a class of service), log2 bytes of each ring and bulk half."""

    lanes: int = 3
    ring_bits: int = 16
    bulk_bits: int = 20


class Port(Struct, frozen=True, kw_only=True):
    """A capability as its holder addresses it: the channel to send on, and slot and generation in the server's table."""

    channel: int
    slot: int
    generation: int
    interface: str
    rights: tuple[str, ...]
    service: int = 0
    """The best lane that its calls may take; the server refuses better ones."""


class KeyspaceNeed(Struct, frozen=True, tag="keyspace", kw_only=True):
    port: Port
    keys: Port | None = None
    """Of a private one, where its keys come from."""


class ServerNeed(Struct, frozen=True, tag="server", kw_only=True):
    port: Port


class ConfigNeed(Struct, frozen=True, tag="config", kw_only=True):
    value: msgspec.Raw
    """The image's table for this need, as MessagePack; the server's Config type validates it."""


class SocketNeed(Struct, frozen=True, tag="socket", kw_only=True):
    descriptor: int
    """Index into the descriptors that follow the fixed ones of `Start`."""


class FolderNeed(Struct, frozen=True, tag="folder", kw_only=True):
    """A read-write directory of this server's own, made by the kernel under the node's folder and kept across boots."""

    path: str
    """Where the process sees it: in a sandbox it is bound there."""


CALLS = "calls!"
"""The need of a server whose calls are recorded: the keyspace they are put away in. No attribute has such a name."""


class Recording(Struct, frozen=True, kw_only=True):
    """How a process's calls are recorded; the tape is the last descriptor of `Start`."""

    size: int
    """Bytes of the tape."""
    payloads: bool
    """With arguments, replies, and all that handlers are given: so that a call can be replayed."""
    every: int
    """One call of so many."""
    full: bool
    """None is dropped: callers wait instead."""
    keyspaces: dict[str, str] = {}
    """By need, the name of its keyspace."""


Need = KeyspaceNeed | ServerNeed | ConfigNeed | SocketNeed | FolderNeed


# kernel to process ---------------------------------------------------------------------------------------------------


class Start(Message, frozen=True, kw_only=True):
    """The first packet. Channels named by needs are opened by `OpenChannel` packets sent before it is acted upon."""

    descriptors = ("notice", "status")
    server: str
    package: str
    folder: str
    """Holds the package as a folder of its name: `versions/<hash>`. Nothing is imported from elsewhere."""
    version: str
    boot: int
    process: int
    """The kernel's number of this process; channels, rows and refusals name it."""
    needs: dict[str, Need]
    rights: dict[str, tuple[str, ...]]
    """Per interface name, the right names in bit order (bit 0 first): append-only across versions."""
    kernel: Port | None
    handover: bool = False
    """A `TakeOver` follows before `Ready` is expected."""
    channels: int = 0
    """How many `OpenChannel` packets follow before the process starts up."""
    recording: Recording | None = None
    segments: int = 1
    """How many `AddSegment` packets follow before the process starts up."""


class Given(Struct, frozen=True, kw_only=True):
    """A capability that an attached program has from the beginning: on an interface of a server, or on a keyspace."""

    server: str
    interface: str
    port: Port
    keyspace: str = ""


class Welcome(Message, frozen=True, kw_only=True):
    """The kernel's answer to `Hello`: what `Start` is to a server. `kernel` is a pidfd of the node's kernel.

    `channels` `OpenChannel` packets follow, the ones that `port` and `given` name; later ones, and `Deliver`,
    come as system calls ask for them. End of file detaches.
    """

    descriptors = ("notice", "kernel")
    node: str
    folder: str
    boot: int
    attachment: int
    """The kernel's number of this attachment."""
    operator: bool
    port: Port
    """On `Kernel`: all three rights for an operator, else `serve`."""
    given: tuple[Given, ...] = ()
    channels: int = 1


class Unwelcome(Message, frozen=True, kw_only=True):
    """The kernel's other answer to `Hello`; it closes the socket afterwards. One sentence for a person."""

    sentence: str


class Prove(Message, frozen=True, kw_only=True):
    """Before the answer to `Hello`, where the host cannot say which process connected: send `challenge` back in `Proof`.
    The packet carries the number of the process that sent it, and what sent it then is alive when the challenge is out."""

    challenge: bytes


class OpenChannel(Message, frozen=True, kw_only=True):
    """A channel for this process. `positions`, if not empty, are where to go on (a swap): see `HandedOver`."""

    descriptors = ("memory", "doorbell")
    channel: int
    role: Literal["client", "server"]
    peer: str
    shape: Shape
    epoch: int
    base: int
    """Where this epoch's positions start on every ring: a random multiple of 64, so that no payload can be made to look
    like a record."""
    notice: int
    """Index of this channel's entry in the process's notice segment."""
    positions: tuple[int, ...] = ()
    account: str = ""
    """Who pays for what the client has in hand here."""
    pending: int = 0
    """Calls that the account may have in hand at this server, over all its channels; 0: as many as each channel may."""


class CloseChannel(Message, frozen=True, kw_only=True):
    channel: int
    reason: str


class AddSegment(Message, frozen=True, kw_only=True):
    """A further segment of this server's capability table; segments are numbered densely from 0."""

    descriptors = ("segment",)
    index: int


class CancelCalls(Message, frozen=True, kw_only=True):
    """The capability in this slot was revoked, and whoever did it wants its calls in hand given up, too."""

    slot: int
    generation: int


class Deliver(Message, frozen=True, kw_only=True):
    """A capability was granted to this process; `token` is what a message that carries it names. Only messages of
    `channel`, the one it was transferred over, may: tokens can be guessed. 0: this process's own, named by no message."""

    token: int
    port: Port
    channel: int = 0


class DeliverBuffer(Message, frozen=True, kw_only=True):
    """A granted buffer; `mode` says which seals the receiver must find. `channel` as in `Deliver`: the one it was shared
    over; a buffer that is shared over another one as well is delivered once more."""

    descriptors = ("memory",)
    token: int
    size: int
    mode: BufferMode
    channel: int = 0
    passed: BufferMode = "writable"
    """How its owner's messages pass it on."""


class WithdrawBuffer(Message, frozen=True, kw_only=True):
    """No message of `channel` names that buffer any more; 0: none at all, its owner has given it up. The kernel counts this
    in the notice afterwards, so that a process whose count stands still has nothing to read here."""

    token: int
    channel: int = 0


class ReadAt(Message, frozen=True, kw_only=True):
    """Reads of the store through the capability so addressed may go to a reader process from now on, by way of `port`;
    None: no longer. Its channel was opened before; it is closed after."""

    channel: int
    slot: int
    generation: int
    port: Port | None


class Drain(Message, frozen=True, kw_only=True):
    """Take no further message; finish what is in hand until `deadline` (CLOCK_MONOTONIC ns), then `Drained` with the same
    number: the kernel may have given the swap up meanwhile, and drain for another one."""

    deadline: int
    number: int = 0


class HandOver(Message, frozen=True, kw_only=True):
    """After `Drained`: give state and positions (`HandedOver`), then wait for `Stop` or `Resume`."""


class TakeOver(Message, frozen=True, kw_only=True):
    """The old version's hand-over state in a sealed memfd (`size` bytes)."""

    descriptors = ("state",)
    size: int


class Resume(Message, frozen=True, kw_only=True):
    """Go on as if `Drain` had not been said (the swap was refused), or, for a new version, begin to serve."""


class Stop(Message, frozen=True, kw_only=True):
    """Finish until `deadline` (CLOCK_MONOTONIC ns), then exit 0."""

    deadline: int


class Ping(Message, frozen=True, kw_only=True):
    number: int


# process to kernel ---------------------------------------------------------------------------------------------------


Number = Annotated[int, Meta(ge=0, lt=1 << 48)]
"""What a process says that is counted: sums of it fit a row."""


class Hello(Message, frozen=True, kw_only=True):
    """The first packet of a program that attaches from outside; who it is the kernel learns from the socket."""

    name: str
    """What it calls itself, for the list of attachments."""
    version: int = 1


class Proof(Message, frozen=True, kw_only=True):
    """The answer to `Prove`."""

    challenge: bytes


class Described(Struct, frozen=True, kw_only=True):
    """An interface as a process offers it."""

    name: str
    fingerprint: bytes
    rights: tuple[str, ...]
    schema: msgspec.Raw


class Ready(Message, frozen=True, kw_only=True):
    interfaces: tuple[Described, ...]
    accepts_handover: bool = False


class Failed(Message, frozen=True, kw_only=True):
    """It could not start, or a step it was asked for failed; the process exits after saying so at start."""

    step: str
    sentence: str
    traceback: str = ""


class Refused(Message, frozen=True, kw_only=True):
    """Calls the C check turned away, coalesced per (channel, slot, method, why)."""

    channel: Number
    slot: Number
    method: Number
    why: Literal["slot", "channel", "generation", "rights", "expired", "method", "quota"]
    count: Number


class Misbehaved(Message, frozen=True, kw_only=True):
    channel: Number
    check: str
    """Which check failed (the C core's name of it)."""


class Drained(Message, frozen=True, kw_only=True):
    """Nothing is in hand any more, or `pending` says what the deadline left: by method how many calls. `lost` are those of
    them that nobody may send again."""

    pending: dict[str, int] = {}
    lost: dict[str, int] = {}
    number: int = 0


class HandedOver(Message, frozen=True, kw_only=True):
    """Bytes of state, and of positions, in a sealed memfd: see `handover.py`."""

    descriptors = ("state",)
    size: int
    positions: int


class Pong(Message, frozen=True, kw_only=True):
    number: Number
    busy: str = ""
    """The method whose handler is running, or the name of a Python thread that keeps the interpreter busy."""


class Log(Message, frozen=True, kw_only=True):
    level: Level
    text: str
    fields: dict[str, str] = {}


ToProcess = (
    Start
    | Welcome
    | Unwelcome
    | Prove
    | OpenChannel
    | CloseChannel
    | AddSegment
    | CancelCalls
    | Deliver
    | DeliverBuffer
    | WithdrawBuffer
    | ReadAt
    | Drain
    | HandOver
    | TakeOver
    | Resume
    | Stop
    | Ping
)
ToKernel = Hello | Proof | Ready | Failed | Refused | Misbehaved | Drained | HandedOver | Pong | Log

to_process = msgspec.msgpack.Decoder(ToProcess)
to_kernel = msgspec.msgpack.Decoder(ToKernel)
encode = msgspec.msgpack.Encoder().encode
