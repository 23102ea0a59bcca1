"""From the image's settings to an open store: the lock, the engine, the format."""

import errno
import fcntl
import os
from typing import Literal

import lmdb

from atoll.ipc.serve import Config

from .checkpoint import LOCK_FILE
from .engine import Engine
from .lmdb_engine import LmdbEngine
from .memory_engine import MemoryEngine
from .ownership import settle_format


class Settings(Config, frozen=True, kw_only=True):
    """What the kernel and the image say to the store. Sizes in bytes."""

    folder: str = ""
    """Where the store lies; unused by the memory engine."""
    boot: int = 0
    """The kernel's boot epoch: a writer of an earlier one cannot commit."""
    lock: int | None = None
    """Descriptor of the node's lock, the kernel's own open description: as long as this process lives, the
    lock is held."""
    role: Literal["writer", "reader"] = "writer"
    engine: Literal["lmdb", "memory"] = "lmdb"
    limit: int = 16 << 30
    reserve: int = 8 << 20
    """Kept back for the kernel and for keyspaces made with `reserved`."""
    grace: float = 600.0
    """Seconds for which everything can be read again, whatever a keyspace's retention says: who reads in pages, or follows
    the feed, is not overtaken by compaction."""
    remember: float = 86400.0
    """Seconds for which a commit id is known at least, where a keyspace's past is not kept for ever."""
    compact_every: float = 60.0
    """Seconds between two looks for what is no longer kept."""
    map_size: int = 64 << 30
    """Address space for the map. A process under RLIMIT_AS needs this much and some."""


class NotRegistered(Exception):
    """A reader cannot register: the writer would reuse pages that it still reads."""


class NotOwner(Exception):
    """The lock that was passed is not held: somebody else runs this store."""


class NotWritable(Exception):
    """The file system of a store that is to be written is read-only."""


def open_engine(settings: Settings) -> tuple[Engine, str]:
    """The engine, and a sentence on the format. Raises `NotOwner`, `NotRegistered`, `NotWritable`, `FormatRefused`, or what
    the medium raises."""
    reader = settings.role == "reader"
    # LMDB would go on without a lock file that it cannot write.
    if (
        reader
        and settings.engine == "lmdb"
        and not os.access(os.path.join(settings.folder, LOCK_FILE), os.W_OK)
    ):
        raise NotRegistered(
            f"{LOCK_FILE} in {settings.folder} cannot be written: a reader registers there; give it that file"
        )
    if settings.lock is not None:
        try:
            # The lock belongs to the open description, so taking it again through a duplicate succeeds, and
            # through another fails.
            fcntl.flock(settings.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotOwner(
                f"the lock of the store in {settings.folder} is held by another node: stop that one first"
            ) from None
    engine: Engine
    if settings.engine == "memory":
        engine = MemoryEngine(limit=settings.limit, reserve=settings.reserve)
    else:
        try:
            engine = LmdbEngine(
                settings.folder,
                limit=settings.limit,
                reserve=settings.reserve,
                map_size=settings.map_size,
                read_only=reader,
            )
        except (OSError, lmdb.Error) as error:
            if os.strerror(errno.EROFS) not in str(error):
                raise
            raise NotWritable(
                f"the store in {settings.folder} cannot be written ({os.strerror(errno.EROFS)}): mount it for writing, then "
                "boot again; if the system made it read-only, look at the disk first"
            ) from None
    try:
        return engine, settle_format(engine, read_only=reader)
    except BaseException:
        engine.close()
        raise
