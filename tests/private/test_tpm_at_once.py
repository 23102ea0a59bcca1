"""Whatever people do to the root key at a TPM, two at once, or while the keyring is away: the secret that opens it is not
given up."""

import fcntl
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from atoll.ipc import testing
from atoll.ipc.errors import BadRequest
from atoll.ipc.system.keys import KeyringRow, Keys
from atoll.servers.keys.server import Server, Settings
from atoll.servers.shell import keyring, tpm

from .test_server import folders
from .test_tpm import powered
from .test_tpm import pytestmark as needs_swtpm

pytestmark = needs_swtpm


@contextmanager
def shared(chip: Path, end: Path) -> Iterator[Path]:
    """A TPM for several at once, command by command, as the host's resource manager gives it."""
    one_by_one = threading.Lock()
    with tpm.opened(chip, "node") as held, socket.socket(socket.AF_UNIX) as listening:

        def serve(client: socket.socket) -> None:
            with client:
                while command := client.recv(4096):
                    with one_by_one:
                        answer = held._line.exchange(command)
                    client.sendall(answer)

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        listening.bind(str(end))
        listening.listen()
        accepting = threading.Thread(target=accept)
        accepting.start()
        yield end
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()


class Between:
    """A capability on `keys`: something happens between an unlocking and what its caller does next."""

    def __init__(self, keys: Keys, happens: Callable[[], None]) -> None:
        self._keys = keys
        self._happens = happens

    @property
    def unlock(self) -> "Between":
        return self

    def now(self, passphrase: str) -> KeyringRow:
        row = self._keys.unlock.now(passphrase)
        self._happens()
        return row


def waits_for_a_lock() -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in line and f" {os.getpid()} " in line for line in lines)


def test_who_waits_at_an_emulator_is_not_connected(tmp_path: Path) -> None:
    """It hears one program at a time. Who was connected first and locked later waited for the other, as that did for it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "tpm"))
        listening.listen()
        lock = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)

        def come() -> None:
            with tpm.opened(tmp_path / "tpm", "node"):
                pass

        coming = threading.Thread(target=come)
        coming.start()
        while not waits_for_a_lock():
            pass
        connected, _, _ = select.select([listening], [], [], 0)
        os.close(lock)
        coming.join()
    assert not connected


def test_a_root_key_that_is_renewed_while_somebody_unlocks(tmp_path: Path) -> None:
    """Who unlocked gave up the other secret, which by then was the one: nobody could open the keyring any more."""
    (tmp_path / "chip").mkdir()
    with (
        powered(tmp_path / "chip") as alone,
        shared(alone, tmp_path / "tpm") as chip,
        testing.running(Server, config=Settings(root="tpm"), needs=folders(tmp_path)) as running,
    ):
        keys = running.client(Keys)
        row = keys.keyring.now()
        keyring.unlock_by(keys, chip, row.place, row)
        renewing = threading.Thread(target=keyring.renew, args=(keys, chip, row.place))

        def renew() -> None:
            renewing.start()
            while renewing.is_alive() and not waits_for_a_lock():
                pass

        keyring.unlock_by(cast(Keys, cast(Any, Between(keys, renew))), chip, row.place, keys.keyring.now())
        renewing.join()
        with tpm.opened(chip, row.place) as held:
            (secret,) = held.secrets()
        assert not keys.unlock.now(secret).locked
        with pytest.raises(BadRequest, match="got another"):
            keys.unlock.now("not " + secret)


def test_unlocking_while_the_keyring_is_away_gives_up_no_secret(tmp_path: Path) -> None:
    """Any secret fits where there is none: of two, as a change that was cut short leaves, the first one was kept."""
    (tmp_path / "chip").mkdir()
    by_tpm = Settings(root="tpm")
    with powered(tmp_path / "chip") as chip:
        with testing.running(Server, config=by_tpm, needs=folders(tmp_path)) as running:
            keys = running.client(Keys)
            row = keys.keyring.now()
            keyring.unlock_by(keys, chip, row.place, row)
            keyring.renew(keys, chip, row.place)
            with tpm.opened(chip, row.place) as held:
                held.add()
            running.kill()
        kept = tmp_path / "keyring" / "keyring"
        kept.rename(tmp_path / "away")
        with testing.running(Server, config=by_tpm, needs=folders(tmp_path)) as running:
            keys = running.client(Keys)
            away = keys.keyring.now()
            for _ in range(2):
                with tpm.opened(chip, row.place) as held:
                    assert len(held.secrets()) == 2
                told = keyring.unlock_by(keys, chip, row.place, away)
                assert "there is none, and there was one" in told.locked
            (tmp_path / "away").rename(kept)
            assert not keyring.unlock_by(keys, chip, row.place, keys.keyring.now()).locked
