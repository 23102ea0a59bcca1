"""The kernel's rows: one typed Struct a table, and keys that sort as their fields do.

All of the kernel's tables but log lines lie in one keyspace of the store. A key is the table's letter and the row's key
fields, encoded so that bytes compare as the fields do; so a range over a prefix of fields is a range of
bytes. Values are MessagePack maps: a field with a default may be added, an older row then reads with the
default.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec import Struct

KEYSPACE = "kernel"
"""The name of the kernel's keyspace. Roll-back refuses it."""
LOG = "kernel/log"
"""The name of the keyspace of log lines, which are not kept as long as what the others say."""


def written_by_the_node(keyspace: str) -> bool:
    """Whether a keyspace is the node's own record, which nobody else writes. No other has a `/` in its name."""
    return keyspace == KEYSPACE or "/" in keyspace


_LENGTH, _END = 8, b"\0\x01"
KeyPart = int | str | bytes


def encode_key(parts: Iterable[KeyPart]) -> bytes:
    """Bytes that compare as the fields do. Integers (0 to 2**64 - 1) are 8 bytes, big end first; texts end in
    00 01, and a 00 inside them is 00 FF, so that a text sorts before all it is a prefix of."""
    key = b""
    for part in parts:
        if isinstance(part, int):
            key += part.to_bytes(_LENGTH, "big")
        else:
            key += (part.encode() if isinstance(part, str) else part).replace(b"\0", b"\0\xff") + _END
    return key


def _text(part: bytes) -> str:
    """A text out of its part of a key."""
    return part.removesuffix(_END).replace(b"\0\xff", b"\0").decode()


def after(prefix: bytes) -> bytes:
    """The first key that is past all keys with `prefix`; empty: none is."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b""


class Row(Struct, frozen=True, kw_only=True):
    """Base of every table. `table` is its letter in keys, `key_fields` the fields that make its key."""

    table: ClassVar[bytes]
    key_fields: ClassVar[tuple[str, ...]]
    lies_in: ClassVar[str] = KEYSPACE
    """Its keyspace."""

    def key(self) -> bytes:
        return self.table + encode_key(getattr(self, name) for name in self.key_fields)

    @classmethod
    def key_of(cls, *parts: KeyPart) -> bytes:
        """The key of the row with these key fields, or with fewer the prefix of all rows that begin with
        them.
        """
        return cls.table + encode_key(parts)

    @classmethod
    def parts_of(cls, key: bytes) -> list[KeyPart]:
        """The key fields that a key is made of, whether or not its row is there. Raises ValueError for what is no key of
        this table."""
        types = {field.name: field.type for field in msgspec.structs.fields(cls)}
        parts, at = list[KeyPart](), len(cls.table)
        for name in cls.key_fields:
            end = at + _LENGTH if types[name] is int else key.find(_END, at) + len(_END)
            part = key[at:end]
            parts.append(int.from_bytes(part, "big") if types[name] is int else _text(part))
            at = end
        if cls.key_of(*parts) != key:
            raise ValueError(f"{key!r} is no key of {cls.__name__}")
        return parts

    def value(self) -> bytes:
        return msgspec.msgpack.encode(self)


AnyRow = TypeVar("AnyRow", bound=Row)


def decode(table: type[AnyRow], value: bytes | memoryview) -> AnyRow:
    """A row from its value. Raises `msgspec.ValidationError` for bytes that are no row of this table."""
    return msgspec.msgpack.decode(value, type=table)


# the tables -------------------------------------------------------------------------------------------------


class BootRow(Row, frozen=True, kw_only=True):
    """One boot of the node. The newest is the one that runs, or ran last."""

    table = b"b"
    key_fields = ("epoch",)
    epoch: int
    node: str
    started: int
    """Nanoseconds since the epoch, as all times in rows."""
    image: str
    """Hash of the image's text, see `ImageRow`."""
    kernel: str
    """The release that booted."""
    ended: int = 0
    """0: it runs, or died without saying so."""
    weakenings: tuple[str, ...] = ()


class ImageRow(Row, frozen=True, kw_only=True):
    """An image's text as booted."""

    table = b"i"
    key_fields = ("hash",)
    hash: str
    name: str
    file: str
    text: str


class VersionRow(Row, frozen=True, kw_only=True):
    """A package version in `versions/`."""

    table = b"v"
    key_fields = ("package", "hash")
    package: str
    hash: str
    added: int
    source: str
    interfaces: tuple[str, ...] = ()


class ServerRow(Row, frozen=True, kw_only=True):
    """A server as it should be: what a boot compares an image with, and a restart starts."""

    table = b"s"
    key_fields = ("server",)
    server: str
    package: str
    version: str
    level: str
    image: str
    """The image that named it; empty: loaded by a person."""
    stopped: bool = False
    """A person stopped it, and it stays so until one starts it."""
    add: tuple[str, ...] = ()
    drop: tuple[tuple[str, str], ...] = ()
    slice: str = ""
    account: str = ""
    start: str = "zygote"
    load: bytes = b""
    """Of a server that a person loaded: the `Load` it was loaded with, in MessagePack."""


class ConfigurationRow(Row, frozen=True, kw_only=True):
    """What a server's need is configured with, by image or load, since the row was written: one that says the same is not
    written again."""

    table = b"f"
    key_fields = ("server", "need")
    server: str
    need: str
    given: dict[str, Any]
    """What is not in it is as the version's type says."""


class ProcessRow(Row, frozen=True, kw_only=True):
    """A process that the kernel started."""

    table = b"p"
    key_fields = ("boot", "process")
    boot: int
    process: int
    server: str
    """As it is called in `atoll ps`: a reader of the store has a name of its own."""
    version: str
    pid: int
    started: int
    uid: int
    ended: int = 0
    exit: str = ""
    """How it ended, as a sentence."""


class CapabilityRow(Row, frozen=True, kw_only=True):
    """A lasting capability; see `capabilities.Capability`, whose fields these are, less the slot."""

    table = b"c"
    key_fields = ("id",)
    id: int
    parent: int
    holder: str
    server: str
    interface: str
    badge: int
    rights: tuple[str, ...]
    expiry: int = 0
    account: str = ""


class SessionRow(Row, frozen=True, kw_only=True):
    """Session capabilities that began or ended, recorded in batches: for the record only, no boot reads them
    back.
    """

    table = b"C"
    key_fields = ("boot", "sequence")
    boot: int
    sequence: int
    time: int
    began: tuple[CapabilityRow, ...] = ()
    ended: tuple[int, ...] = ()


class ChannelRow(Row, frozen=True, kw_only=True):
    """A channel and who is at its ends."""

    table = b"h"
    key_fields = ("boot", "channel")
    boot: int
    channel: int
    client: str
    server: str
    account: str
    opened: int
    closed: int = 0
    reason: str = ""


class AccountRow(Row, frozen=True, kw_only=True):
    """An account's limits in force."""

    table = b"a"
    key_fields = ("account",)
    account: str
    limits: dict[str, int]


class SliceRow(Row, frozen=True, kw_only=True):
    """A slice in force; its history is the record of who had what when."""

    table = b"l"
    key_fields = ("slice",)
    slice: str
    limits: dict[str, int | float | str | None]
    unenforced: tuple[str, ...] = ()
    """Limits this host cannot hold anyone to, as sentences."""
    by: str = ""
    """Who set it, where it was not the image."""


class ProtectionRow(Row, frozen=True, kw_only=True):
    """What protects a server now, and what does not."""

    table = b"o"
    key_fields = ("server",)
    server: str
    asked: str
    level: str
    mechanisms: tuple[str, ...]
    weakenings: tuple[tuple[str, str], ...] = ()
    """(what is missing, why)."""


class RefusalRow(Row, frozen=True, kw_only=True):
    """What someone was refused, coalesced per (who, what) with a count."""

    table = b"r"
    key_fields = ("boot", "who", "what")
    boot: int
    who: str
    what: str
    by: str
    """`capability`, `seccomp`, `landlock`, `quota`, `attach` or `kernel`."""
    first: int
    last: int
    count: int = 1


class EventRow(Row, frozen=True, kw_only=True):
    """Something that happened to the node which a person may ask about."""

    table = b"e"
    key_fields = ("boot", "sequence")
    boot: int
    sequence: int
    time: int
    kind: str
    who: str
    sentence: str
    fields: dict[str, str] = {}


class SwapRow(Row, frozen=True, kw_only=True):
    """A change of a server's version or level, done or refused."""

    table = b"w"
    key_fields = ("boot", "sequence")
    boot: int
    sequence: int
    server: str
    old: str
    new: str
    old_level: str
    new_level: str
    began: int
    ended: int
    done: bool
    sentence: str = ""
    """Why it was refused; empty: it was not."""


class CrashRow(Row, frozen=True, kw_only=True):
    """An end of a server's process that nobody asked for."""

    table = b"k"
    key_fields = ("server", "boot", "process")
    server: str
    boot: int
    process: int
    version: str
    time: int
    how: str
    again: int
    """Nanoseconds until the restart; 0: a crash loop, it stays down."""
    lines: tuple[str, ...] = ()
    """The last things that the server said."""


class IntentRow(Row, frozen=True, kw_only=True):
    """What the kernel is about to do outside the database; see `intents`."""

    table = b"n"
    key_fields = ("id",)
    id: int
    boot: int
    kind: str
    undo: bytes
    """The kind's own Struct, in MessagePack."""
    time: int
    outcome: str = ""


class LogRow(Row, frozen=True, kw_only=True):
    """One line a server wrote."""

    table = b"g"
    key_fields = ("server", "boot", "sequence")
    lies_in = LOG
    server: str
    boot: int
    sequence: int
    time: int
    level: str
    text: str
    fields: dict[str, str] = {}


class AttachmentRow(Row, frozen=True, kw_only=True):
    """Someone from outside who attached."""

    table = b"t"
    key_fields = ("boot", "attachment")
    boot: int
    attachment: int
    uid: int
    pid: int
    program: str
    operator: bool
    time: int
    ended: int = 0


class KeyspaceRow(Row, frozen=True, kw_only=True):
    """A keyspace and the badge under which the store knows it."""

    table = b"y"
    key_fields = ("keyspace",)
    keyspace: str
    badge: int
    retention: float | None = None
    versions: int | None = None


class NeedRow(Row, frozen=True, kw_only=True):
    """Which lasting capability a server's need is bound to, so that a boot finds it again."""

    table = b"d"
    key_fields = ("server", "need")
    server: str
    need: str
    capability: int


TABLES: tuple[type[Row], ...] = (
    BootRow,
    ImageRow,
    VersionRow,
    ServerRow,
    ConfigurationRow,
    ProcessRow,
    CapabilityRow,
    SessionRow,
    ChannelRow,
    AccountRow,
    SliceRow,
    ProtectionRow,
    RefusalRow,
    EventRow,
    SwapRow,
    CrashRow,
    IntentRow,
    LogRow,
    AttachmentRow,
    KeyspaceRow,
    NeedRow,
)

_BY_LETTER = {table.table: table for table in TABLES}


def table_of(key: bytes) -> type[Row]:
    """The table that a key of the kernel's keyspace is in. KeyError for one of a later release."""
    return _BY_LETTER[key[:1]]


def name_of(table: type[Row]) -> str:
    """A table as people call it: `process`, `capability`."""
    return table.__name__.removesuffix("Row").lower()
