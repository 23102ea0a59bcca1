"""Commands that copy a node and bring it back: backup, restore; and the proof of a backup.

Who owns what is copied copies it: the store its rows, `storage` its blobs, the kernel its versions. Each is a process of
its own, since the shell knows of other servers no more than their interfaces. Here is the order in which they run, and the
lock on the folder that is written, a backup's or a new node's, which they inherit: one that outlives the command keeps it.

The order is what makes a backup whole. Blobs come before the rows that name them, so that one which is collected
afterwards is there, and once more behind them, for those that came meanwhile; what the manifest says, it says last.
"""

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeVar

import msgspec
import typer

from atoll.ipc.attach import NoSuchNode, base_folder, connect, folder_of
from atoll.ipc.errors import BadRequest, NodeDown
from atoll.ipc.folders import sync_folder
from atoll.ipc.system.keys import SERVER as KEYS
from atoll.ipc.system.state import State

from . import exits, jobs, printing
from .options import At, Json, Node
from .when import clock, moment

MANIFEST: Final = "manifest"
"""By which a backup's folder is known."""
OURS: Final = frozenset({MANIFEST, "rows", "blobs", "versions", "manifest.new"})
"""All that may lie in a backup's folder."""
STORE: Final = Path("data") / "state"
FILE: Final = "data.mdb"

KEYRING: Final = Path("keyring") / "keyring"

STATE: Final = ("atoll.servers.state.backup",)
STORAGE: Final = ("atoll.servers.storage.backup",)
"""Who copies what."""
NAMES: Final = {exits.TRY_AGAIN: "NoRoom", exits.FINDINGS: "BackupDamaged"}
"""What goes wrong, by exit code."""

T = TypeVar("T")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the backup.")]


class Stopped(Exception):
    """A part of the work came to nothing; the sentence is the part's own."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.name = NAMES.get(code, "BackupRefused")


class Span(msgspec.Struct, frozen=True):
    """Revisions that a backup covers, and their times in ns."""

    first: int
    last: int
    began: int
    ended: int


class Took(msgspec.Struct, frozen=True):
    """What the store's part says of a backup."""

    node: str
    after: int
    upto: int
    time: int
    revisions: int
    size: int
    covers: list[Span]


class Kept(msgspec.Struct, frozen=True):
    """What the kernel's part says."""

    node: str
    versions: int


class Described(msgspec.Struct, frozen=True):
    node: str
    covers: list[Span]


class Copied(msgspec.Struct, frozen=True):
    """What `storage`'s part says."""

    blobs: int
    bytes: int
    damaged: list[str]
    left_out: list[str]


class Restored(msgspec.Struct, frozen=True):
    node: str
    image: str
    revision: int
    time: int
    boot: int
    revisions: int
    versions: int


class Verified(msgspec.Struct, frozen=True):
    node: str
    segments: int
    size: int
    covers: list[Span]
    revisions: int
    versions: int
    breaches: list[str]


class Report(msgspec.Struct, frozen=True):
    """What `atoll backup` did."""

    node: str
    folder: str
    revision: int
    time: int
    revisions: int
    size: int
    blobs: int
    blob_bytes: int
    versions: int
    covers: list[Span]
    damaged: list[str]
    left_out: list[str]


def is_one(folder: Path) -> bool:
    """Whether a folder holds a backup."""
    return (folder / MANIFEST).is_file()


class Part:
    """A process that does a part of the work, a step for each line that it is given."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def step(self, kind: type[T], line: str = "") -> T:
        """What a step comes to. Raises `Stopped`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and says why
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._answer(kind, self._process.stdout.readline())

    def whole(self, kind: type[T], stdin: str = "") -> T:
        """What all of it comes to. Raises `Stopped`."""
        told, error = self._process.communicate(stdin)
        if self._process.returncode:
            self._fail(error)
        return msgspec.json.decode(told or "null", type=kind)

    def _answer(self, kind: type[T], line: str) -> T:
        if not line:
            assert self._process.stderr is not None
            self._process.wait()
            self._fail(self._process.stderr.read())
        return msgspec.json.decode(line, type=kind)

    def _fail(self, error: str) -> NoReturn:
        told = error.strip()
        if "Traceback" in told or not told:
            raise RuntimeError(f"a part of it ended with {self._process.returncode}: {told}")
        raise Stopped(self._process.returncode, told.splitlines()[-1].removeprefix("atoll: "))


@contextmanager
def working(lock: int, *words: str) -> Iterator[Part]:
    """A part at work: it has the lock, too, and does not outlive the command's own end."""
    with subprocess.Popen(
        jobs.python(*words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[lock],
    ) as process:
        try:
            yield Part(process)
        except BaseException:
            process.kill()
            raise


def part(kind: type[T], lock: int, *words: str, stdin: str = "") -> T:
    """What a part of the work comes to that has but one step. Raises `Stopped`."""
    with working(lock, *words) as process:
        return process.whole(kind, stdin)


@contextmanager
def locked(folder: Path, kind: int = fcntl.LOCK_EX) -> Iterator[int]:
    """The lock on a folder, which is the folder's own: one that cannot be written can be locked, too. Raises `Stopped`
    where somebody else has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Stopped(
                exits.TRY_AGAIN, f"another backup or restore is at work on {folder}: wait until it has ended"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def backup(folder: Folder, node: Node = "", as_json: Json = False) -> None:
    """Copy a node, running or stopped, into a folder; from the second time on only what is new."""
    home, runs = place(node)
    folder = folder.absolute()
    _make(folder, home)
    with locked(folder) as lock:
        source = ["--node", str(home)] if runs else ["--store", str(home / STORE)]
        with (
            working(lock, *STATE, "take", str(folder), *source) as rows,
            working(lock, *STORAGE, "take", str(home / "data"), str(folder / "blobs")) as blobs,
        ):
            kept = part(Kept, lock, "atoll.microkernel", "keep", str(home), str(folder))
            first = blobs.step(Copied)
            rows.step(Took, kept.node)
            second = blobs.step(Copied)
            took = rows.step(Took)
    report = Report(
        node=kept.node,
        folder=str(folder),
        revision=took.upto,
        time=took.time,
        revisions=took.revisions,
        size=took.size,
        blobs=first.blobs + second.blobs,
        blob_bytes=first.bytes + second.bytes,
        versions=kept.versions,
        covers=took.covers,
        damaged=second.damaged,
        left_out=second.left_out,
    )
    printing.answer(report, _told(report), as_json)
    if report.damaged:
        raise typer.Exit(exits.FINDINGS)


def place(node: str) -> tuple[Path, bool]:
    """The folder of the node that is meant, and whether it runs: then this user is one who may copy its store."""
    home = folder_of(node or None).absolute()
    try:
        with connect(str(home), name="atoll backup") as attached:
            attached.open("state", State, ["backup"])
            return home, True
    except NoSuchNode:
        raise
    except NodeDown:
        if not (home / STORE / FILE).exists():
            raise
        return home, False


def _make(folder: Path, home: Path) -> None:
    """The folder of a backup: a new one, or one that holds nothing else."""
    if folder == home or home in folder.parents:
        raise BadRequest("DIR", f"a folder outside of the node's own, {home}", str(folder))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        strangers = sorted({path.name for path in folder.iterdir()} - OURS)
    except OSError as error:
        raise BadRequest("DIR", "a folder that this user can write", f"{folder} ({error.strerror})") from None
    if strangers:
        raise BadRequest("DIR", "an empty folder, or a backup's", f"{folder}, which holds {strangers[0]}")


def _told(report: Report) -> str:
    told = (
        f"{report.node} is in {report.folder} as of revision {report.revision} ({clock(report.time)}): "
        f"{report.revisions} revisions more in {printing.size(report.size)}, {report.blobs} blobs "
        f"in {printing.size(report.blob_bytes)}, {report.versions} package versions"
    )
    lines = [told, f"covers {covers(report.covers)}"]
    lines += [f"damaged in the node, and not in the backup: {damage}" for damage in report.damaged]
    lines += [f"not in the backup: {name}, {left_out(name)}" for name in report.left_out]
    return "\n".join(lines)


def left_out(name: str) -> str:
    """Why a folder of a server's is not in a backup."""
    if Path(name).parts[0] == KEYS:
        return "on purpose: what opens private keyspaces is kept apart from them (`atoll restore --keyring`)"
    return "a folder of files that no revision goes with"


def covers(spans: list[Span]) -> str:
    """Ranges of revisions as people read them."""
    return ", ".join(f"revisions {span.first} to {span.last} (until {clock(span.ended)})" for span in spans)


def restore(
    folder: Folder,
    at: At = "",
    into: Annotated[
        str, typer.Option("--folder", help="The new node's folder.", show_default="by its name")
    ] = "",
    name: Annotated[
        str, typer.Option("--name", help="The new node's name.", show_default="the backed-up node's")
    ] = "",
    keyring: Annotated[
        Path | None,
        typer.Option(
            "--keyring",
            metavar="FOLDER",
            help="The newest `data/keys` of the node that was backed up; without it nothing private can be read.",
            show_default="none",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a node out of a backup, as of a moment; on this machine or another."""
    when = moment(at)
    if not is_one(folder):
        raise BadRequest("DIR", "the folder of a backup that was finished", f"{folder}, which holds none")
    if keyring is not None and not (keyring / KEYRING).is_file():
        raise BadRequest("--keyring", "a node's folder data/keys", f"{keyring}, which holds no {KEYRING}")
    folder = folder.absolute()
    with locked(folder, fcntl.LOCK_SH) as lock:
        node = part(Described, lock, *STATE, "describe", str(folder)).node
        home = Path(into).absolute() if into else base_folder() / (name or node)
        _refuse_a_node(home)
        fresh = home.with_name(f".{home.name}.restoring")
        fresh.mkdir(mode=0o755, parents=True, exist_ok=True)
        # What lies there is another's as long as the lock is: it must be had before anything goes.
        with locked(fresh) as own, _room_at(home):
            made = _build(folder, own, fresh, name or node, when)
            if keyring is not None:
                _copy_keyring(keyring, fresh / "data" / KEYS)
            fresh.rename(home)
            sync_folder(home.parent)
    image = home / "image.toml" if made.image else "IMAGE"
    called = f" --name {name}" if name else ""
    told = (
        f"{made.node} as of revision {made.revision} ({clock(made.time)}) is in {home}: {made.revisions} revisions, "
        f"{made.versions} versions, whole; boot it with `atoll boot {image} --folder {home}{called}`"
    )
    printing.answer({"folder": str(home)} | msgspec.structs.asdict(made), told, as_json)


def _refuse_a_node(home: Path) -> None:
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        holds = "a node" if (home / "journal").exists() else "files"
        raise BadRequest("--folder", "a folder that is new or empty", f"{home}, which holds {holds}")


@contextmanager
def _room_at(home: Path) -> Iterator[None]:
    """What is built beside the new home goes if it does not get there; a full disk is one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sentence = (
            f"the disk that holds {home} is full: nothing was restored; free room there, and run it again"
        )
        raise Stopped(exits.TRY_AGAIN, sentence) from None
    finally:
        shutil.rmtree(home.with_name(f".{home.name}.restoring"), ignore_errors=True)


def _build(folder: Path, lock: int, home: Path, name: str, when: int | float | None) -> Restored:
    """The whole of a new node's folder, under a name at which nobody looks for one. `lock`: the one on that folder."""
    for left in home.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    (home / "data").mkdir(mode=0o755)
    at = (
        [] if when is None else ["--revision", str(when)] if isinstance(when, int) else ["--time", repr(when)]
    )
    made = part(Restored, lock, *STATE, "restore", str(folder), str(home / STORE), *at)
    part(Copied, lock, *STORAGE, "take", str(folder / "blobs"), str(home / "data"), stdin="\n")
    words = ["make-node", str(folder), str(home), "--name", name, "--epoch", str(made.boot)]
    part(type(None), lock, "atoll.microkernel", *words, stdin=made.image)
    sync_folder(home)
    return made


def _copy_keyring(source: Path, target: Path) -> None:
    """As private as it is there. Boot gives it to the server's user."""
    for place in (source, *sorted(path for path in source.rglob("*") if path.is_dir())):
        made = target / place.relative_to(source)
        made.mkdir(mode=0o700)
        for file in (path for path in place.iterdir() if path.is_file()):
            with open(os.open(made / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
                copy.write(file.read_bytes())
                copy.flush()
                os.fsync(copy.fileno())
        sync_folder(made)


def verify(folder: Path, as_json: bool) -> int:
    """Prove a backup; returns the exit code."""
    folder = folder.absolute()
    with locked(folder, fcntl.LOCK_SH) as lock:
        found = part(Verified, lock, *STATE, "verify", str(folder))
        blobs = part(list[str], lock, *STORAGE, "verify", str(folder / "blobs"))
    breaches = [*found.breaches, *blobs]
    if as_json:
        print(printing.json(msgspec.structs.replace(found, breaches=breaches)))
    else:
        for breach in breaches:
            print(breach)
        verdict = f"{len(breaches)} breaches" if breaches else "whole"
        print(
            f"a backup of {found.node}, {found.segments} segments in {printing.size(found.size)}, "
            f"{found.revisions} revisions, {found.versions} versions, covers {covers(found.covers)}: {verdict}"
        )
    return exits.FINDINGS if breaches else exits.OK
