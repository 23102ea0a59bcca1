"""Commands on private keyspaces: purge, and `atoll keys show`, `rotate`, `unlock`."""

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from atoll.ipc.attach import connect
from atoll.ipc.errors import BadRequest
from atoll.ipc.system.keys import SERVER, KeyringRow, Keys, Purge

from . import printing, tpm
from .options import Json, Node, keyspace_names
from .when import clock

PASSPHRASE_MOST: Final = 4096
KEPT: Final = Path("data") / SERVER
"""Where the folders of the server of keys lie in a node's."""

Given = Annotated[
    int,
    typer.Option(
        "--passphrase-fd",
        metavar="N",
        help="Read the passphrase from this descriptor, to its end or the first line's.",
        show_default="ask for it",
    ),
]


Chip = Annotated[
    Path,
    typer.Option(
        "--tpm",
        metavar="PATH",
        help="The TPM 2 that the root key is made by, where the image says so: a device, or an emulator's socket.",
    ),
]


def purge(
    subject: Annotated[
        str,
        typer.Argument(
            help="Whom it is about: the name that its server gives; `-`: the first line of stdin."
        ),
    ],
    keyspace: Annotated[
        str,
        typer.Option(
            "--keyspace",
            metavar="NAME",
            help="Only in this private keyspace.",
            autocompletion=keyspace_names,
            show_default="all of them",
        ),
    ] = "",
    chip: Chip = tpm.DEVICE,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Make all that a subject ever said unreadable, in rows, their past and every backup. It cannot be undone."""
    subject = sys.stdin.readline().rstrip("\n") if subject == "-" else subject
    with connect(node=node or None) as attached:
        keys = attached.open(SERVER, Keys, ["observe", "purge", "admin"])
        done = keys.purge.now(subject, keyspace)
        row = keys.keyring.now()
        if row.root == "tpm":
            renew(keys, chip, row.place or attached.name)
    printing.answer(done, purged(subject, done), as_json)


def purged(subject: str, done: Purge) -> str:
    if not done.keyspaces:
        return "no private keyspace was ever opened on this node: there was nothing to purge"
    spaces = "1 private keyspace" if done.keyspaces == 1 else f"{done.keyspaces} private keyspaces"
    how = "had been purged before" if done.repeated else f"is purged, number {done.number}"
    told = f"{subject} {how}, in {spaces}"
    if done.holding:
        names = ", ".join(done.holding)
        told += f"; not yet said that the key is gone from memory: {names} (`atoll restart` ends that)"
    return told


def show(node: Node = "", as_json: Json = False) -> None:
    """Print how the keyring stands: where its root key is, by whose word servers are given keys."""
    with connect(node=node or None) as attached:
        row = attached.open(SERVER, Keys, ["observe"]).keyring.now()
    printing.answer(row, stands(row), as_json)


def rotate(
    seeds: Annotated[
        bool,
        typer.Option("--seeds", help="New seeds as well, by which is sealed what is written from now on."),
    ] = False,
    passphrase: Given = -1,
    chip: Chip = tpm.DEVICE,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Seal the keyring under a new root key; a new passphrase is asked for where it is made of one."""
    with connect(node=node or None) as attached:
        keys = attached.open(SERVER, Keys, ["observe", "admin"])
        row = keys.keyring.now()
        if row.root == "tpm":
            row = renew(keys, chip, row.place or attached.name, seeds)
        else:
            row = keys.rotate.now(asked(passphrase, again=True) if row.root == "passphrase" else "", seeds)
    printing.answer(row, stands(row), as_json)


def renew(keys: Keys, chip: Path, place: str, seeds: bool = False) -> KeyringRow:
    """A root key of a new secret of the TPM's. Whenever it is cut short, one of the two that are there opens the ring."""
    with tpm.opened(chip, place) as held:
        secret = held.add()
        row = keys.rotate.now(secret, seeds)
        held.keep_only(secret)
    return row


def copy(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.", show_default=False)],
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Copy the keyring and its root key as they are at one moment, also while purges go on."""
    with connect(node=node or None) as attached:
        copied = written(attached.folder / KEPT, folder)
    printing.answer(copied, f"{folder}: {', '.join(copied)}", as_json)


def written(kept: Path, folder: Path) -> list[str]:
    """Copy the files of a keyring. Raises `BadRequest`."""
    try:
        found = at_one_moment(kept)
        folder.mkdir(mode=0o700)
        for name, content in found.items():
            (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        got = f"{error.filename} ({error.strerror})"
        raise BadRequest("FOLDER", "a new folder, and a keyring that this user may read", got) from None
    return sorted(found)


def at_one_moment(kept: Path) -> dict[str, bytes]:
    """The files of a keyring. Each of them is replaced as a whole and never comes to be what it was before: those that are
    read twice, all of them and all of them again, and are the same, were there together."""
    last: dict[str, bytes] = {}
    while True:
        paths = sorted(path for path in kept.rglob("*") if path.is_file() and path.suffix != ".new")
        found = {str(path.relative_to(kept)): path.read_bytes() for path in paths}
        if found == last:
            return found
        last = found


def unlock(passphrase: Given = -1, chip: Chip = tpm.DEVICE, node: Node = "", as_json: Json = False) -> None:
    """Open a keyring whose root key is made of a passphrase, or of a secret in the TPM; the first one makes it."""
    with connect(node=node or None) as attached:
        keys = attached.open(SERVER, Keys, ["observe", "admin"])
        row = keys.keyring.now()
        if row.root == "tpm":
            row = unlock_by(keys, chip, row.place or attached.name, row)
        else:
            row = keys.unlock.now(asked(passphrase, again=not row.size))
    printing.answer(row, stands(row), as_json)


def unlock_by(keys: Keys, chip: Path, place: str, row: KeyringRow) -> KeyringRow:
    """By the secret of the TPM's that fits: there are two where a change of it was cut short."""
    with tpm.opened(chip, place) as held:
        secrets = held.secrets() or ([] if row.size else [held.add()])
        for secret in secrets:
            try:
                row = keys.unlock.now(secret)
            except BadRequest:
                continue
            if not row.locked:  # a keyring that is away is opened by none, and refuses none
                held.keep_only(secret)
            return row
    raise BadRequest("--tpm", "the TPM that has the root key of this keyring", f"{chip}, which has not")


def asked(descriptor: int, *, again: bool) -> str:
    """A passphrase, by the descriptor or from the terminal: never by an argument or the environment, which others can
    read."""
    if descriptor >= 0:
        try:
            with open(descriptor, "rb") as file:
                read = file.read(PASSPHRASE_MOST)
        except OSError as error:
            raise BadRequest(
                "--passphrase-fd",
                "a descriptor that can be read",
                f"{descriptor} ({os.strerror(error.errno or 0)})",
            ) from None
        return read.decode(errors="replace").partition("\n")[0]
    if not sys.stdin.isatty():
        raise BadRequest("the passphrase", "a terminal to ask for it, or --passphrase-fd", "neither")
    word = getpass.getpass("passphrase: ")
    if again and getpass.getpass("the same again: ") != word:
        raise BadRequest("the passphrase", "the same twice", "two others")
    return word


def stands(row: KeyringRow) -> str:
    state = f"not open: {row.locked}" if row.locked else f"open, {printing.size(row.size)}"
    lines = [
        f"keyring: {state}",
        f"root key: {WHERE[row.root]}",
        f"servers are what they are by {row.attestation}",
        f"memory with keys: {row.swappable or 'locked, and never swapped'}",
    ]
    if not row.locked:
        lines.insert(
            1, f"{row.keyspaces} private keyspaces, {row.purges} purges, root key of {clock(row.rotated)}"
        )
    return "\n".join(lines)


WHERE: Final = {
    "file": "a file of mode 0600 in the node's folder, apart from the store",
    "passphrase": "made of a passphrase, which nobody keeps",
    "tpm": "in the machine's TPM",
}
