"""What a badge may keep: by its references, by what it has put, and by what it has just let go."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll.ipc.errors import QuotaExceeded, TooLarge
from atoll.ipc.faults import Delay, FaultyTransport
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.runtime.describe import describe
from atoll.ipc.system.state import State
from atoll.servers.storage.interface import BlobRef, NoSuchBlob, Storage, WrongSize
from atoll.servers.storage.references import Reference
from atoll.servers.storage.server import Server, Settings

from ..unheard import Unheard

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


def test_small_blobs_put_side_by_side_share_the_quota(start: Callable[..., Any]) -> None:
    storage: Storage = start().client(badge=7)
    asked = [storage.put_many.start([os.urandom(60_000) for _ in range(10)]) for _ in range(8)]
    done = 0
    for each in asked:
        with suppress(QuotaExceeded):
            done += len(each.result())
    assert done == 10


def test_one_row_let_go_by_many_at_a_time_is_credited_once(start: Callable[..., Any]) -> None:
    storage: Storage = start().client(badge=7)
    ref = put(storage, 600_000)
    storage.refer.now([ref.hash], "o", "n")
    released = [storage.release.start("o", "n") for _ in range(16)]
    assert sum(each.result() for each in released) == 1
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 600_000)


def test_one_row_written_by_many_at_a_time_is_charged_as_it_ends(
    serve: Any, start: Callable[..., Any]
) -> None:
    served = start()
    storage: Storage = served.client(badge=7)
    refs = [put(storage, size) for size in (10, 5_000, 10_000, 20_000, 50_000)]
    for number in range(20):
        chosen = [refs[(number * at + at * at) % 5] for at in range(1, 9)]
        asked: list[Any] = [storage.refer.start([ref.hash], "o", "n") for ref in chosen]
        asked += [storage.release.start("o", "n"), storage.refer.start([refs[number % 5].hash], "o", "n")]
        for each in asked:
            each.result()
        served.advance(GRACE + 1)
    rows: Any = serve.keyspace("atoll.servers.storage.server.references", Reference)
    held = rows.state.range.now(b"").items
    left = QUOTA - sum(msgspec.msgpack.decode(item.value, type=Reference).size for item in held)
    put(storage, left)
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 1)


def test_what_rows_let_go_counts_until_its_grace_is_over(start: Callable[..., Any]) -> None:
    """Another let go under the same name takes nothing of it away, and neither does what comes in its place."""
    served = start()
    storage: Storage = served.client(badge=7)
    small = put(storage, 10)
    storage.refer.now([put(storage, 400_000).hash], "o", "n")
    storage.refer.now([put(storage, 400_000).hash, small.hash], "o", "n")
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 400_000)
    for _ in range(2):
        storage.release.now("o", "n")
        storage.refer.now([small.hash], "o", "n")
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 400_000)
    served.advance(GRACE + 1)
    put(storage, 900_000)


def test_a_row_of_which_nobody_heard_is_charged_for_until_it_is_written_again(
    serve: Any, tmp_path: Path
) -> None:
    rows = serve.keyspace("references", Reference)
    store = Unheard(transport_of(rows.state))
    served = serve(Server, folder=tmp_path, config=CONFIG, references=Keyspace(bind(State, store), Reference))
    storage: Storage = served.client(badge=7)
    ref, small = put(storage, 600_000), put(storage, 10)

    def lost(asked: Callable[[], Any]) -> None:
        store.method = "State.commit"
        store.done.clear()
        future = asked()
        assert store.done.wait(60)
        future.cancel()
        served.settle()

    lost(lambda: storage.refer.start([ref.hash], "o", "n"))
    assert storage.references.now("o") == ["n"]
    lost(lambda: storage.refer.start([small.hash], "o", "n"))
    served.advance(GRACE + 1)
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 600_000)
    lost(lambda: storage.release.start("o", "n"))
    with pytest.raises(QuotaExceeded, match=TOLD):
        put(storage, 600_000)
    storage.release.now("o", "n")
    served.advance(GRACE + 1)
    put(storage, QUOTA)


def test_a_refused_row_leaves_what_was_put_as_it_was(start: Callable[..., Any]) -> None:
    storage: Storage = start().client(badge=7)
    ref = put(storage, 600_000)
    for _ in range(3):
        with pytest.raises(TooLarge):
            storage.refer.now([ref.hash], "o", "n" * 600)
    put(storage, 400_000)
    storage.refer.now([ref.hash], "o", "n")


def test_a_blob_that_is_collected_while_its_badge_is_counted_is_not_referred_to(
    serve: Any, tmp_path: Path
) -> None:
    rows = serve.keyspace("references", Reference)
    store = FaultyTransport(transport_of(rows.state), Delay(at=1))
    served = serve(Server, folder=tmp_path, config=CONFIG, references=Keyspace(bind(State, store), Reference))
    ref = put(served.client(), 200_000)
    served.advance(GRACE + 1)
    referred = served.client(badge=7).refer.start([ref.hash], "o", "n")
    served.settle()
    assert served.client().collect.now().blobs == 1
    store.release()
    with pytest.raises(NoSuchBlob):
        referred.result()


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


def test_what_a_row_named_before_is_spared_though_nobody_heard_that_it_was_written(
    serve: Any, tmp_path: Path
) -> None:
    """Who is told nothing may refer to it again: the row may name it still."""
    rows = serve.keyspace("references", Reference)
    store = Unheard(transport_of(rows.state))
    served = serve(Server, folder=tmp_path, config=CONFIG, references=Keyspace(bind(State, store), Reference))
    storage: Storage = served.client(badge=7)
    before, after = put(storage, 600), put(storage, 10)
    storage.refer.now([before.hash], "o", "n")
    served.advance(GRACE + 1)
    store.method = "State.commit"
    replacing = storage.refer.start([after.hash], "o", "n")
    assert store.done.wait(60)
    replacing.cancel()
    served.settle()
    storage.collect.now()
    assert storage.refer.now([before.hash], "o", "n") > 0
