"""A store from before purges, beside the keyring that made them: the rows of all are there after the next start."""

from pathlib import Path

from atoll.ipc.naming import badge_number
from atoll.ipc.system.records import after
from atoll.servers.keys.keyring import Keyring, Made
from atoll.servers.keys.root import FileRoot
from atoll.servers.shell.rows import pages
from tests.microkernel.nodes import booted

from .nodes import image, keys

DIARY = badge_number("diary")
PURGES = 7000
"""Their rows fit no one message."""


def test_purges_that_the_store_knows_nothing_of_have_their_rows_however_many(tmp_path: Path) -> None:
    kept = tmp_path / "node" / "data" / "keys"
    for name in ("keyring", "root"):
        (kept / name).mkdir(parents=True)
    newest = Keyring(kept / "keyring", FileRoot(kept / "root"))
    newest.open(None, 1)
    newest.know(DIARY)
    purged = [Made(number, DIARY, number.to_bytes(16, "big"), 5) for number in range(2, PURGES + 2)]
    made = newest.purge_again(purged, PURGES + 1)  # one after the other, and the file is written once
    with booted(tmp_path, text=image("process")) as node, node.attach() as attached:
        assert keys(attached).keyring.now().purges == len(made)
        rows = attached.keyspace("keys", ["read"])
        found = [item.key for items in pages(rows, b"purge/", after(b"purge/")) for item in items]
    assert len(found) == len(made)
