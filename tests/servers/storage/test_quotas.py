"""What a badge may keep: by its references, by what it has put, and by what it has just let go."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.errors import QuotaExceeded
from atoll.ipc.runtime.describe import describe
from atoll.servers.storage.interface import BlobRef, Storage, WrongSize
from atoll.servers.storage.server import Server, Settings

GRACE = 3600.0
QUOTA = 1_000_000
CONFIG = Settings(grace=GRACE, collect_every=0.0, quota=QUOTA)
TOLD = r"account 'badge 7 in storage' has used its 1000000 of bytes"


@pytest.fixture
def start(serve: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda: serve(Server, folder=tmp_path, config=CONFIG)


def put(storage: Storage, size: int) -> BlobRef:
    content = os.urandom(size)
    return storage.put.now(content[at : at + 60_000] for at in range(0, size, 60_000))


def test_a_badge_puts_no_more_than_its_quota(start: Callable[..., Any], tmp_path: Path) -> None:
    served = start()
    storage: Storage = served.client(badge=7)
    put(storage, 700_000)
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 400_000)
    with pytest.raises(QuotaExceeded, match=TOLD):
        storage.put_many.now([os.urandom(60_000) for _ in range(6)])
    assert list((tmp_path / "tmp").glob("*/*")) == []
    put(storage, 200_000)
    put(served.client(badge=8), 900_000)
    put(served.client(), 3_000_000)
    served.advance(GRACE + 1)
    served.client().collect.now()
    put(storage, 900_000)


def test_what_is_referred_to_counts_once_and_over_a_restart(start: Callable[..., Any]) -> None:
    served = start()
    storage: Storage = served.client(badge=7)
    ref = put(storage, 600_000)
    storage.refer.now([ref.hash, ref.hash], "o", "n")
    put(storage, 300_000)
    served.advance(GRACE + 1)
    put(storage, 300_000)
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 200_000)
    served.kill()
    again = start()
    storage = again.client(badge=7)
    put(storage, 300_000)
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 200_000)
    with pytest.raises(QuotaExceeded, match=TOLD):
        storage.refer.now([ref.hash], "o", "the same once more")
    assert storage.references.now("o") == ["n"]


def test_letting_go_frees_after_the_grace_and_not_before(start: Callable[..., Any]) -> None:
    served = start()
    storage: Storage = served.client(badge=7)
    small = put(storage, 10)
    storage.refer.now([put(storage, 800_000).hash], "o", "replaced")
    storage.refer.now([small.hash], "o", "replaced")
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 800_000)
    served.advance(GRACE + 1)
    storage.refer.now([put(storage, 800_000).hash], "o", "released")
    storage.release.now("o", "released")
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 800_000)
    served.advance(GRACE + 1)
    put(storage, 800_000)


def test_a_reference_may_say_the_size_and_is_held_to_it(start: Callable[..., Any]) -> None:
    storage: Storage = start().client()
    refs = [put(storage, 10), put(storage, 100_000)]
    hashes = [ref.hash for ref in refs]
    storage.refer.now(hashes, "o", "n", [10, 100_000])
    told = rf"blob {hashes[1].hex()} \(number 1\) has 100000 bytes, expected 99999: nothing was changed"
    with pytest.raises(WrongSize, match=told):
        storage.refer.now(hashes, "o", "m", [10, 99_999])
    assert storage.references.now("o") == ["n"]


def test_uploads_side_by_side_share_the_quota(start: Callable[..., Any]) -> None:
    """Each alone would fit."""
    storage: Storage = start().client(badge=7)
    done: list[object] = []

    def other() -> Iterator[bytes]:
        yield bytes(200_000)
        done.append(put(storage, 500_000))
        for _ in range(8):
            yield os.urandom(200_000)

    with pytest.raises(QuotaExceeded, match=TOLD):
        storage.put.now(other())
    assert len(done) == 1
    put(storage, 400_000)


@pytest.mark.parametrize(
    ("name", "value", "expected", "found"),
    [
        ("quota", -1, "int >= 0", "-1"),
        ("collect_every", -1, "float >= 0.0", "-1"),
        ("grace", 0, "float > 0.0", "0"),
        ("grace", float("nan"), "float > 0.0", "nan"),
    ],
)
def test_a_wrong_setting_is_found_with_the_image(name: str, value: float, expected: str, found: str) -> None:
    fault = describe(Server, {"config": {name: value}}).config_faults["config"]
    assert (fault.path, fault.expected, fault.found) == ((name,), expected, found)
