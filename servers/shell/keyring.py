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
        if keys.keyring.now().root == "tpm":
            renew(keys, chip, attached.name)
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
        kind = keys.keyring.now().root
        if kind == "tpm":
            row = renew(keys, chip, attached.name, seeds)
        else:
            row = keys.rotate.now(asked(passphrase, again=True) if kind == "passphrase" else "", seeds)
    printing.answer(row, stands(row), as_json)


def renew(keys: Keys, chip: Path, node: str, seeds: bool = False) -> KeyringRow:
    """A root key of a new secret of the TPM's. Whenever it is cut short, one of the two that are there opens the ring."""
    with tpm.opened(chip, node) as held:
        secret = held.add()
        row = keys.rotate.now(secret, seeds)
        held.keep_only(secret)
    return row


def unlock(passphrase: Given = -1, chip: Chip = tpm.DEVICE, node: Node = "", as_json: Json = False) -> None:
    """Open a keyring whose root key is made of a passphrase, or of a secret in the TPM; the first one makes it."""
    with connect(node=node or None) as attached:
        keys = attached.open(SERVER, Keys, ["observe", "admin"])
        row = keys.keyring.now()
        if row.root == "tpm":
            row = unlock_by(keys, chip, attached.name, row)
        else:
            row = keys.unlock.now(asked(passphrase, again=not row.size))
    printing.answer(row, stands(row), as_json)


def unlock_by(keys: Keys, chip: Path, node: str, row: KeyringRow) -> KeyringRow:
    """By the secret of the TPM's that fits: there are two where a change of it was cut short."""
    with tpm.opened(chip, node) as held:
        secrets = held.secrets() or ([] if row.size else [held.add()])
        for secret in secrets:
            try:
                row = keys.unlock.now(secret)
            except BadRequest:
                continue
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
