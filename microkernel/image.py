"""The image: everything a node is, as one readable TOML file.

The Structs below are the format: their fields are the keys, their types what a value may be, the descriptions
what it means (docs/images.md is written from them, a test holds that). `image_read` reads a file into them
and notes every departure with its line; `image_check` then holds the whole against servers and host. Nothing
here does I/O.

Two rules shape the format. What a server is given is always written, also when it is nothing (`needs = {}`,
`rights = []`): an empty grant is a decision, a missing line an oversight. And what makes a server weaker than
its level promises carries a reason, since whoever reads the image later must be able to ask whether it still
holds.
"""

from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Struct

Service = Literal["control", "normal", "bulk"]
SERVICES: tuple[Service, ...] = ("control", "normal", "bulk")
"""Classes of service, dearest first."""

KEYSPACE_RIGHTS = ("read", "write", "history", "pin", "append")
"""What the store's interface offers to a holder of a keyspace."""
PURGE = "purge"
"""The right on a private keyspace that is none at the store, but at the server that keeps its keys."""
DELEGATE = "delegate"
"""The right that every capability may carry: to grant it to another process."""


class Size(int):
    """A number of bytes; written `"512MiB"`, or as a plain integer."""


class Seconds(float):
    """A length of time in seconds; written `"250ms"`, `"30s"`, `"5min"`, `"2h"`, `"90d"`, or as a plain
    number.
    """


YEAR = Seconds(365 * 86400)


class Address(str):
    """`HOST:PORT` of a socket the kernel listens on for a server."""

    __slots__ = ()


class Uids(Struct, frozen=True, order=True):
    """User ids from `first` to `last`, both included; written `1000` or `"1000-1999"`."""

    first: int
    last: int

    def overlaps(self, other: "Uids") -> bool:
        return self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class Key(NamedTuple):
    """A key's meaning and the bounds of its value, both included."""

    text: str
    ge: float | None = None
    le: float | None = None


class Table(Struct, frozen=True, kw_only=True):
    """Base of every table of an image."""


class About(Table, frozen=True, kw_only=True):
    """`[image]`: what this image is."""

    name: Annotated[str, Key("The node's name; its folder and its cgroup carry it.")]
    about: Annotated[str, Key("One sentence for whoever boots it.")] = ""
    profile: Annotated[
        Literal["edge", "desktop", "cloud"], Key("The kind of machine it is meant for; boot prints it.")
    ] = "desktop"


class Node(Table, frozen=True, kw_only=True):
    """`[node]`: what holds for every server that does not say otherwise."""

    level: Annotated[str, Key("Protection level of a server that names none.")] = "sandbox"
    slice: Annotated[str, Key("Slice of a server that names none; empty: no limits but the node's.")] = ""
    account: Annotated[str, Key("Account of a server that names none; empty: the built-in limits.")] = ""
    keep_log: Annotated[
        Seconds | None, Key("How long log lines are kept; unset: for ever.", ge=0)
    ] = Seconds(30 * 86400)  # fmt: skip
    keep_calls: Annotated[
        Seconds | None, Key("How long recorded calls are kept; unset: for ever.", ge=0)
    ] = Seconds(7 * 86400)  # fmt: skip
    uids: Annotated[
        Uids, Key("Where root takes one user id a server from; no person and no other node may use them.")
    ] = Uids(61184, 61439)


class Drop(Table, frozen=True, kw_only=True):
    """An element of `server.NAME.drop`: a mechanism of the level that this server goes without."""

    mechanism: Annotated[str, Key("The mechanism's name, as `atoll protection show` prints it.")]
    reason: Annotated[str, Key("Why the server cannot run with it; boot prints it.")]


class Allow(Table, frozen=True, kw_only=True):
    """An element of `server.NAME.allow`: a group of system calls beside those that every server has."""

    calls: Annotated[str, Key("The group: `spawn`, `network`, `paging` or `devices`.")]
    reason: Annotated[str, Key("Why the server needs them; boot prints it.")]


class Restart(Table, frozen=True, kw_only=True):
    """`[server.NAME.restart]`: what follows a crash. The wait doubles from `first` to `most`."""

    first: Annotated[Seconds, Key("Wait before the first restart.", ge=0, le=3600)] = Seconds(0.1)
    most: Annotated[Seconds, Key("The longest wait.", ge=0, le=3600)] = Seconds(30)
    limit: Annotated[int, Key("This many crashes `within` that time stop the server.", ge=1, le=1000)] = 5
    within: Annotated[Seconds, Key("The time in which crashes count as one loop.", ge=1, le=86400)] = Seconds(
        60
    )


class Readers(Table, frozen=True, kw_only=True):
    """`[server.NAME.readers]`, of the store alone: read-only processes beside its writer, started as load asks."""

    most: Annotated[int, Key("So many at most; 0: the writer answers all reads.", ge=0, le=16)] = 0
    above: Annotated[
        int, Key("Reads a second and process above which one more is started.", ge=1, le=1_000_000)
    ] = 5000
    slice: Annotated[
        str, Key("A `[slice.NAME]`, in which each has a control group of its own; empty: the writer's group.")
    ] = ""


class KeyspaceBinding(Table, frozen=True, kw_only=True):
    """A need bound to a keyspace."""

    keyspace: Annotated[str, Key("A `[keyspace.NAME]` of this image.")]
    rights: Annotated[
        tuple[str, ...],
        Key(
            "Of `read`, `write`, `append` (add rows, change none), `history`, `pin`, `delegate`, and of a private one "
            "`purge`; written out also when empty."
        ),
    ]


class ServerBinding(Table, frozen=True, kw_only=True):
    """A need bound to another server's interface."""

    server: Annotated[str, Key("A `[server.NAME]` of this image.")]
    rights: Annotated[
        tuple[str, ...], Key("Of the interface's rights, and `delegate`; written out also when empty.")
    ]
    interface: Annotated[
        str, Key("The interface's name; empty: the one the server declares for this need.")
    ] = ""
    badge: Annotated[
        str | None,
        Key(
            "The object's name, which the called server sees as a number; unset: the caller's name. "
            '`""`: no badge, and the holder may mint any.'
        ),
    ] = None
    service: Annotated[Service, Key("The best class of service its calls may have.")] = "normal"


class ConfigBinding(Table, frozen=True, kw_only=True):
    """A need bound to configuration."""

    config: Annotated[dict[str, Any], Key("A table; the server's `Config` type says which keys.")]


class ListenBinding(Table, frozen=True, kw_only=True):
    """A need bound to a listening socket."""

    listen: Annotated[Address, Key("`HOST:PORT`; the kernel listens and passes the socket.")]


class FolderBinding(Table, frozen=True, kw_only=True):
    """A need bound to a directory of the server's own."""

    folder: Annotated[str, Key("Its name under the server's data in the node's folder; kept across boots.")]


Binding = KeyspaceBinding | ServerBinding | ConfigBinding | ListenBinding | FolderBinding
"""The first key of each tells it from the others."""


class Server(Table, frozen=True, kw_only=True):
    """`[server.NAME]`: one server."""

    needs: Annotated[
        dict[str, Binding], Key("Each need the server declares, bound by name; `{}` if it declares none.")
    ]
    package: Annotated[
        str, Key("An installed server's name, or a path relative to the image (with a `/`); empty: NAME.")
    ] = ""
    level: Annotated[str, Key("Protection level; empty: the node's.")] = ""
    start: Annotated[
        Literal["zygote", "exec"],
        Key(
            "`zygote`: in milliseconds, sharing address layout and hash seed; `exec`: a fresh process, as a "
            "heavy server's always is."
        ),
    ] = "zygote"
    add: Annotated[tuple[str, ...], Key("Mechanisms beyond the level's.")] = ()
    drop: Annotated[
        tuple[Drop, ...], Key("Mechanisms of the level it goes without, each with a reason.")
    ] = ()
    allow: Annotated[
        tuple[Allow, ...], Key("Groups of system calls beyond the usual ones, each with a reason.")
    ] = ()
    refuse: Annotated[
        Literal["notify", "kill"], Key("What follows a denied system call: a recorded error, or the end.")
    ] = "notify"
    slice: Annotated[str, Key("A `[slice.NAME]`; empty: the node's.")] = ""
    account: Annotated[str, Key("An `[account.NAME]`; empty: the node's.")] = ""
    service: Annotated[Service, Key("The best class of service that any call of this server may have.")] = (
        "normal"
    )
    record: Annotated[
        bool,
        Key("Record its calls with all that its handlers are given, so that `atoll replay` runs them again."),
    ] = False
    audit: Annotated[
        Literal["none", "sample", "full"],
        Key(
            "Which of its calls become rows: `sample`: one of 64; `full`: all, and callers wait where they come faster than "
            "rows can be kept."
        ),
    ] = "none"
    watchdog: Annotated[
        Seconds, Key("A server that answers nothing for so long is ended.", ge=1, le=3600)
    ] = Seconds(30)  # fmt: skip
    drain: Annotated[Seconds, Key("How long a stop or swap waits for calls in hand.", ge=0, le=3600)] = (
        Seconds(10)
    )
    restart: Annotated[Restart, Key("What follows a crash.")] = Restart()
    readers: Annotated[Readers, Key("Of the store alone: processes that only read.")] = Readers()


class Keep(Table, frozen=True, kw_only=True):
    """`[keep]`: for how long the kernel's own rows are kept, after what they tell of was over."""

    events: Annotated[Seconds, Key("What happened to the node.", ge=0)] = YEAR
    refusals: Annotated[Seconds, Key("What was refused in earlier boots.", ge=0)] = YEAR
    crashes: Annotated[Seconds, Key("Crashes, with the last log lines.", ge=0)] = YEAR
    swaps: Annotated[Seconds, Key("Swaps, done or refused.", ge=0)] = YEAR
    processes: Annotated[
        Seconds, Key("Processes that have ended, and what was said before one was started.", ge=0)
    ] = YEAR
    channels: Annotated[Seconds, Key("Channels that were closed.", ge=0)] = YEAR
    attachments: Annotated[Seconds, Key("Programs that have detached.", ge=0)] = YEAR
    sessions: Annotated[Seconds, Key("Session capabilities of earlier boots.", ge=0)] = YEAR
    history: Annotated[
        Seconds,
        Key(
            "How long the kernel's rows can be read as of a moment (`--at`): what was replaced or deleted before is gone.",
            ge=0,
        ),
    ] = YEAR


class KeyspaceSpec(Table, frozen=True, kw_only=True):
    """`[keyspace.NAME]`: a state unit."""

    retention: Annotated[
        Seconds | None,
        Key(
            "How long a version is kept after it was replaced: the keyspace can be read as of any moment that is younger; "
            "unset: for ever.",
            ge=0,
        ),
    ] = None
    versions: Annotated[
        int | None,
        Key(
            "How many versions of a key are kept at most, the newest; unset: all.",
            ge=1,
            le=1 << 31,
        ),
    ] = None
    private: Annotated[
        bool, Key("Whether its values are sealed by their server; then the image has a `[server.keys]`.")
    ] = False


class SliceSpec(Table, frozen=True, kw_only=True):
    """`[slice.NAME]`: what its servers may use, together."""

    cpu_weight: Annotated[int, Key("Share of the processor under load; 100 is usual.", ge=1, le=10000)] = 100
    cpu_quota: Annotated[
        float | None, Key("Processors at most, such as 1.5; unset: all.", ge=0.01, le=4096)
    ] = None  # fmt: skip
    memory: Annotated[
        Size | None, Key("Bytes of memory at most; unset: the host's.", ge=4 << 20, le=1 << 50)
    ] = None  # fmt: skip
    pids: Annotated[
        int | None, Key("Threads and processes at most; unset: the host's.", ge=1, le=1 << 22)
    ] = None
    io_class: Annotated[
        Literal["real-time", "best-effort", "idle"], Key("I/O scheduling class.")
    ] = "best-effort"  # fmt: skip
    io_weight: Annotated[int, Key("Share of the disk within the class; 100 is usual.", ge=1, le=10000)] = 100
    device_memory: Annotated[
        Size | None, Key("Bytes of accelerators' memory leased at once, at most; unset: the devices'.", ge=0, le=1 << 50)
    ] = None  # fmt: skip
    device_time: Annotated[
        float | None, Key("Share of an accelerator's time; written into leases.", ge=0, le=1)
    ] = None  # fmt: skip
    priority: Annotated[
        int, Key("Who goes first when not all can; waiting on a lower one is a weakening.", ge=0, le=9)
    ] = 5  # fmt: skip


class Account(Table, frozen=True, kw_only=True):
    """`[account.NAME]`: what its servers, and programs that attach under it, may hold of the kernel's, together.
    `operators` is the account of those who attach without an entry."""

    channels: Annotated[int, Key("Channels.", ge=1, le=65536)] = 256
    capabilities: Annotated[int, Key("Capabilities.", ge=1, le=1 << 24)] = 65536
    buffers: Annotated[Size, Key("Bytes of granted buffers.", ge=0, le=1 << 50)] = Size(256 << 20)
    descriptors: Annotated[int, Key("File descriptors that the kernel keeps for them.", ge=8, le=1 << 20)] = (
        1024
    )
    pending: Annotated[int, Key("Calls in hand at one server, the kernel or another.", ge=1, le=65536)] = 4096


class May(Table, frozen=True, kw_only=True):
    """An element of `attach.may`: one capability on a server that whoever attaches receives."""

    server: Annotated[str, Key("A `[server.NAME]` of this image.")]
    rights: Annotated[tuple[str, ...], Key("Of the interface's rights, and `delegate`.")]
    interface: Annotated[str, Key("The interface's name; empty: the server's only one.")] = ""


class MayRead(Table, frozen=True, kw_only=True):
    """An element of `attach.may`: one keyspace that whoever attaches receives; `atoll sql` sees it and what servers publish
    of it."""

    keyspace: Annotated[
        str,
        Key("A `[keyspace.NAME]` of this image, or one that the node itself writes: `kernel`, `kernel/log`."),
    ]
    rights: Annotated[tuple[str, ...], Key("`read`, and `history` to read what was: `atoll sql` needs both.")]


class Attach(Table, frozen=True, kw_only=True):
    """`[[attach]]`: who may attach from outside, and to what. Exactly one of `uid`, `group`, `any`; the first
    entry that fits decides. Root and the user who booted the node are operators without an entry."""

    may: Annotated[tuple[May | MayRead, ...], Key("Capabilities it receives; `[]` for none.")]
    uid: Annotated[Uids | None, Key("A user id, or a range of them.")] = None
    group: Annotated[str, Key("A group's name.")] = ""
    any: Annotated[bool, Key("Every local user.")] = False
    operator: Annotated[bool, Key("It may do all that the kernel's interface offers.")] = False
    account: Annotated[str, Key("The `[account.NAME]` charged; empty: the node's.")] = ""


class Image(Table, frozen=True, kw_only=True):
    """An image file, whole."""

    image: Annotated[About, Key("What this image is.")]
    server: Annotated[dict[str, Server], Key("The servers, by name.")]
    node: Annotated[Node, Key("What holds for every server that does not say otherwise.")] = Node()
    keep: Annotated[Keep, Key("For how long the kernel's own rows are kept.")] = Keep()
    keyspace: Annotated[dict[str, KeyspaceSpec], Key("State units, by name.")] = {}
    slice: Annotated[dict[str, SliceSpec], Key("Compute slices, by name.")] = {}
    account: Annotated[dict[str, Account], Key("Accounts, by name.")] = {}
    attach: Annotated[tuple[Attach, ...], Key("Who may attach from outside.")] = ()

    def package(self, name: str) -> str:
        """The package of server `name`: an installed server's name, or a path relative to the image."""
        return self.server[name].package or name

    def level(self, name: str) -> str:
        return self.server[name].level or self.node.level

    def slice_of(self, name: str) -> str:
        """The slice of server `name`; empty: none."""
        return self.server[name].slice or self.node.slice

    def account_of(self, name: str) -> str:
        """The account of server `name`; empty: the built-in one, `Account()`."""
        return self.server[name].account or self.node.account

    def limits(self, account: str) -> Account:
        return self.account.get(account, Account())

    def priority(self, name: str) -> int:
        """The priority that server `name` runs at: its slice's, or the usual one."""
        return self.slice.get(self.slice_of(name), SliceSpec()).priority
