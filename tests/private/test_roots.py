"""Root keys that come from outside: until they do, nothing private is read or written."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from atoll.ipc.attach import connect
from atoll.ipc.errors import Purged, Sealed
from atoll.ipc.system.keys import Keys
from atoll.servers.shell import exits, tpm
from tests.shell.conftest import PROGRAM, Shell, shell

from .nodes import diary, image
from .packages.diary.interface import Diary, Entry
from .test_node import home, kill
from .test_tpm import powered
from .test_tpm import pytestmark as needs_swtpm


@pytest.fixture
def person(request: pytest.FixtureRequest) -> Iterator[Shell]:
    """A node whose root key is of the kind that is asked for."""
    with shell() as running:
        (running.folder / "image.toml").write_text(image(config=f'root = "{request.param}"'))
        running.said("boot", "image.toml", "--folder", "node", "--detach")
        try:
            yield running
        finally:
            running.said("shutdown")


def sealed(person: Shell, why: str) -> None:
    with connect(str(home(person))) as node, pytest.raises(Sealed, match=why):
        diary(node).write.now("a", "ann", "too early")


def written(found: Diary) -> None:
    """As soon as its server has keys: it asks again by itself."""
    while True:
        try:
            found.write.now("a", "ann", "first")
        except Sealed:
            continue
        found.write.now("b", "bob", "second")
        return


def reads(found: Diary) -> bool:
    while True:
        try:
            return found.read.now("b") == Entry("bob", "second")
        except Sealed:
            continue


def by_passphrase(person: Shell, word: str, *command: str) -> tuple[int, str]:
    """A command that reads a passphrase from a descriptor."""
    reading, writing = os.pipe()
    os.write(writing, word.encode() + b"\nand what is not it")
    os.close(writing)
    try:
        done = subprocess.run(
            [str(PROGRAM), *command, "--passphrase-fd", str(reading)], env=person.environment, cwd=person.folder,
            pass_fds=[reading], capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(reading)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("person", ["passphrase"], indirect=True)
def test_a_passphrase(person: Shell) -> None:
    sealed(person, "made of a passphrase")
    assert "a terminal to ask for it, or --passphrase-fd" in person.refused(
        exits.WRONG_INPUT, "keys", "unlock"
    )
    code, told = by_passphrase(person, "open sesame", "keys", "unlock")
    assert code == exits.OK and "made of a passphrase" in told
    with connect(str(home(person))) as node:
        found = diary(node)
        written(found)
        kill(person, "keys")
        code, told = by_passphrase(person, "close sesame", "keys", "unlock")
        assert code == exits.WRONG_INPUT and "the one that the keyring was made with, got another" in told
        assert by_passphrase(person, "open sesame", "keys", "unlock")[0] == exits.OK
        assert by_passphrase(person, "another", "keys", "rotate")[0] == exits.OK
        kill(person, "keys")
        assert by_passphrase(person, "another", "keys", "unlock")[0] == exits.OK
        assert reads(found)


@needs_swtpm
@pytest.mark.parametrize("person", ["tpm"], indirect=True)
def test_a_secret_in_the_tpm(person: Shell) -> None:
    folder = person.folder / "chip"
    folder.mkdir()
    sealed(person, "a secret in the TPM")
    with powered(folder) as chip:
        assert "in the machine's TPM" in person.said("keys", "unlock", "--tpm", str(chip))
        with connect(str(home(person))) as node:
            written(diary(node))
            place = node.open("keys", Keys, ["observe"]).keyring.now().place
            with tpm.opened(chip, place) as held:
                (before,) = held.secrets()
            with tpm.opened(chip, place) as held:  # as if a change of the secret had been cut short
                held.add()
            person.said("keys", "unlock", "--tpm", str(chip))
            with tpm.opened(chip, place) as held:
                assert held.secrets() == [before]
            person.said("purge", "ann", "--tpm", str(chip))
            with tpm.opened(chip, place) as held:
                (after,) = held.secrets()
            assert after != before
            kill(person, "keys")
    with powered(folder) as chip, connect(str(home(person))) as node:
        person.said("keys", "unlock", "--tpm", str(chip))
        assert reads(diary(node))
        with pytest.raises(Purged):
            diary(node).read.now("a")
