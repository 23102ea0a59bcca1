"""What a careless or hostile client sends, and what a disk does: each ends in a sentence, and nothing is lost."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.errors import BadRequest, QuotaExceeded, TooLarge
from atoll.servers.storage import openings
from atoll.servers.storage.blobs import DESCRIPTORS
from atoll.servers.storage.interface import BlobRef, NoSuchBlob, Storage
from atoll.servers.storage.pack import LARGEST
from atoll.servers.storage.server import MOST_READ, Server, Settings

NEVER = Settings(grace=3600.0, collect_every=0.0)
ADDRESS = "an address of 32 bytes"


def pieces(content: bytes, size: int = 100_000) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def read(storage: Storage, hash: bytes, after: int = 0, until: int = -1) -> bytes:
    return b"".join(piece.data for piece in storage.get.now(hash, after, until))


@pytest.fixture
def start(serve: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda config=NEVER: serve(Server, folder=tmp_path, config=config)


@pytest.mark.parametrize("hash", [b"", b"\xab", b"x" * 31, b"x" * 33, b"x" * 4000], ids=len)
def test_what_is_no_address_is_refused(start: Callable[..., Any], hash: bytes) -> None:
    storage: Storage = start().client()
    got = f"expected {ADDRESS}, got {len(hash)} bytes"
    for ask in (
        lambda: read(storage, hash),
        lambda: storage.stat.now(hash),
        lambda: storage.get_many.now([hash]),
        lambda: storage.refer.now([hash], "o", "n"),
    ):
        with pytest.raises(BadRequest, match=got):
            ask()
    if hash:
        with pytest.raises(BadRequest, match=f"expected {ADDRESS} or nothing, got {len(hash)} bytes"):
            storage.put.now([b"content"], hash)


@pytest.mark.parametrize("size", [1000, 300_000])
def test_a_range_lies_within_the_blob(start: Callable[..., Any], size: int) -> None:
    storage: Storage = start().client()
    content = os.urandom(size)
    ref = storage.put.now(pieces(content))
    for after, until in ((-1, -1), (-size, 5), (-(2**62), -1)):
        with pytest.raises(BadRequest, match=rf"\$.after: expected 0 or more, got {after}"):
            read(storage, ref.hash, after, until)
    with pytest.raises(BadRequest, match=r"\$.until: expected 0 or more, or -1 for the end, got -2"):
        read(storage, ref.hash, 0, -2)
    assert read(storage, ref.hash, size, -1) == read(storage, ref.hash, 2**62) == b""
    assert read(storage, ref.hash, 5, 5) == read(storage, ref.hash, 9, 5) == b""
    assert read(storage, ref.hash, size - 1, 2**62) == content[-1:]


def test_asking_for_much_at_once_is_refused_before_it_is_read(start: Callable[..., Any]) -> None:
    """One address takes 34 bytes and its blob 64 KiB: a request must not be answered from two thousand times the memory."""
    storage: Storage = start().client()
    ref = storage.put.now([bytes(LARGEST)])
    count = MOST_READ // LARGEST
    assert len(storage.get_many.now([ref.hash] * count)) == count
    read_so_far = storage.statistics.now().read
    with pytest.raises(BadRequest, match=rf"expected blobs of {MOST_READ} bytes in all at most, got more"):
        storage.get_many.now([ref.hash] * 50_000)
    assert storage.statistics.now().read == read_so_far


def test_packs_hold_no_descriptor_each(start: Callable[..., Any]) -> None:
    """Small puts one after the other leave a pack each until they are collected: more than a process may open."""
    served = start()
    storage: Storage = served.client()
    before = len(os.listdir("/proc/self/fd"))
    refs = [storage.put.now([f"text {number}".encode()]) for number in range(DESCRIPTORS + 100)]
    assert len(os.listdir("/proc/self/fd")) <= before + DESCRIPTORS
    assert storage.get_many.now([ref.hash for ref in refs])[7] == b"text 7"
    served.kill()
    again: Storage = start().client()
    assert again.get_many.now([refs[0].hash, refs[-1].hash]) == [
        b"text 0",
        f"text {DESCRIPTORS + 99}".encode(),
    ]
    again.collect.now()
    assert again.statistics.now().packs == 1
    assert again.verify.now().blobs == DESCRIPTORS + 100


def test_what_was_in_a_pack_that_somebody_removed_is_named(start: Callable[..., Any], tmp_path: Path) -> None:
    """One that is not held open, as the first of many."""
    storage: Storage = start().client()
    refs = [storage.put.now([f"text {number}".encode()]) for number in range(DESCRIPTORS + 1)]
    first, *_ = sorted((tmp_path / "packs").iterdir())
    first.unlink()
    told = storage.verify.now()
    assert [each.hash for each in told.damaged] == [refs[0].hash]
    assert told.blobs == DESCRIPTORS + 1
    storage.put.now([b"text 0"])
    assert storage.verify.now().damaged == []


@pytest.mark.parametrize("size", [500, 300_000])
def test_a_put_of_what_rotted_unseen_mends_it(start: Callable[..., Any], tmp_path: Path, size: int) -> None:
    """A put is acknowledged only if its content can be read again, also where the blob was there already."""
    storage: Storage = start().client()
    content = os.urandom(size)
    ref = storage.put.now(pieces(content))
    path = next((tmp_path / "packs").iterdir()) if size <= LARGEST else next((tmp_path / "blobs").glob("*/*"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert storage.put.now(pieces(content)) == ref
    assert read(storage, ref.hash) == content
    assert storage.verify.now().damaged == []
    if size <= LARGEST:
        path.write_bytes(raw)
        assert storage.put_many.now([content]) == [ref]
        assert storage.get_many.now([ref.hash]) == [content]


@pytest.mark.parametrize("size", [500, 300_000])
@pytest.mark.parametrize("harm", ["cut", "emptied", "removed"])
def test_what_a_row_refers_to_and_is_gone_is_named(
    start: Callable[..., Any], tmp_path: Path, size: int, harm: str
) -> None:
    """A pack that lost its table no longer says what it held; the rows that need it do."""
    served = start()
    storage: Storage = served.client()
    ref = storage.put.now(pieces(os.urandom(size)))
    storage.refer.now([ref.hash], "owner", "name")
    served.stop()
    path = next((tmp_path / "packs").iterdir()) if size <= LARGEST else next((tmp_path / "blobs").glob("*/*"))
    match harm:
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "emptied":
            os.truncate(path, 0)
        case "removed":
            path.unlink()
    again: Storage = start().client()
    told = again.verify.now()
    assert [*told.missing, *(each.hash for each in told.damaged)] == [ref.hash]
    again.collect.now()
    assert again.verify.now().missing == told.missing


def test_files_that_are_no_blobs_are_left_alone(start: Callable[..., Any], tmp_path: Path) -> None:
    served = start()
    ref = served.client().put.now(pieces(bytes(100_000)))
    served.stop()
    path = next((tmp_path / "blobs").glob("*/*"))
    strangers = [
        tmp_path / "packs" / "README",
        tmp_path / "packs" / "00000001.bak",
        path.with_name("note"),
        path.parent.parent / ("00" if path.parent.name != "00" else "01") / path.name,
        tmp_path / "tmp" / "stray",
    ]
    for stranger in strangers:
        stranger.write_bytes(b"not ours")
    again = start()
    storage: Storage = again.client()
    assert storage.verify.now().blobs == 1
    again.advance(NEVER.grace + 1)
    assert storage.collect.now().blobs == 1
    with pytest.raises(NoSuchBlob):
        read(storage, ref.hash)
    assert all(stranger.read_bytes() == b"not ours" for stranger in strangers)


def test_a_pack_whose_table_rots_is_written_anew(start: Callable[..., Any], tmp_path: Path) -> None:
    storage: Storage = start().client()
    contents = [f"text {number}".encode() for number in range(9)]
    refs = storage.put_many.now(contents)
    path = next((tmp_path / "packs").iterdir())
    raw = bytearray(path.read_bytes())
    raw[40] ^= 1
    path.write_bytes(raw)
    assert storage.verify.now().damaged == []
    storage.collect.now()
    (anew,) = (tmp_path / "packs").iterdir()
    assert anew != path
    assert storage.get_many.now([ref.hash for ref in refs]) == contents


def test_an_upload_that_is_given_up_leaves_nothing(start: Callable[..., Any], tmp_path: Path) -> None:
    served = start()
    storage: Storage = served.client()

    def broken() -> Iterator[bytes]:
        yield from pieces(bytes(5_000_000))
        raise RuntimeError("the client stops here")

    with pytest.raises(RuntimeError):
        storage.put.now(broken())
    assert storage.put.now([b"after it"]) == BlobRef.of(b"after it")
    while list((tmp_path / "tmp").glob("*/*")):
        served.settle()  # a thread that writes for the upload ends first
    assert list((tmp_path / "blobs").glob("*/*")) == []


def test_names_are_listed_in_pages(start: Callable[..., Any]) -> None:
    storage: Storage = start().client()
    ref = storage.put.now([b"kept"])
    names = [f"n{number:03d}" for number in range(25)]
    for name in names:
        storage.refer.now([ref.hash], "owner", name)
    first = storage.references.now("owner", limit=10)
    assert first == names[:10]
    assert storage.references.now("owner", first[-1], 100) == names[10:]
    with pytest.raises(BadRequest, match=r"\$.limit: expected 1 to 1000, got 0"):
        storage.references.now("owner", limit=0)


def test_storage_outlives_a_store_that_does_not_answer_its_collection(
    start: Callable[..., Any], serve: Any
) -> None:
    served = start(Settings(grace=3600.0, collect_every=600.0))
    storage: Storage = served.client()
    ref = storage.put.now([b"kept"])
    serve.state.kill()
    served.advance(601.0)
    assert storage.get_many.now([ref.hash]) == [b"kept"]


def test_downloads_that_nobody_takes_leave_files_for_others(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 3
    monkeypatch.setattr(openings, "MOST", most)
    served = start()
    storage: Storage = served.client()
    content = os.urandom(40_000_000)
    ref = storage.put.now(pieces(content))
    begun = []
    for _ in range(most):
        stream = storage.get.now(ref.hash)
        assert next(iter(stream)).end > 0
        begun.append(stream)
    with pytest.raises(QuotaExceeded, match=f"has used its {most} of open blobs"):
        read(storage, ref.hash)
    with pytest.raises(QuotaExceeded, match=f"has used its {most} of open blobs"):
        storage.put.now(pieces(bytes(100_000)))
    assert storage.put.now([b"small"]) == BlobRef.of(b"small")
    assert read(served.client(), ref.hash) == content
    begun.pop().cancel()
    while True:  # a thread that reads for the stream ends first
        try:
            assert read(storage, ref.hash) == content
            break
        except QuotaExceeded:
            served.settle()


def test_a_reference_to_many_times_the_same_is_one(start: Callable[..., Any]) -> None:
    storage: Storage = start().client()
    ref = storage.put.now(pieces(os.urandom(100_000)))
    before = storage.statistics.now()
    storage.refer.now([ref.hash] * 100_000, "o", "n", [ref.size] * 100_000)
    assert storage.references.now("o") == ["n"]
    assert storage.statistics.now() == before


@pytest.mark.parametrize(("owner", "name"), [("", "n"), ("a/b", "n"), ("o", "")])
def test_a_reference_has_an_owner_and_a_name(start: Callable[..., Any], owner: str, name: str) -> None:
    with pytest.raises(BadRequest, match="expected an owner without `/`, and a name"):
        start().client().refer.now([], owner, name)


def test_a_name_that_no_key_holds_is_refused(start: Callable[..., Any]) -> None:
    storage: Storage = start().client()
    with pytest.raises(TooLarge):
        storage.refer.now([], "o", "n" * 1000)
    storage.refer.now([], "o", "\0\xff\U0010ffff")
    assert storage.references.now("o") == ["\0\xff\U0010ffff"]
    assert storage.release.now("o", "\0\xff\U0010ffff") is False, "it held nothing"


def test_a_lost_disk_is_told_in_a_reply_that_fits(start: Callable[..., Any], tmp_path: Path) -> None:
    served = start()
    storage: Storage = served.client()
    refs = storage.put_many.now([f"text {number}".encode() for number in range(3000)])
    storage.refer.now([ref.hash for ref in refs], "o", "n")
    (pack,) = (tmp_path / "packs").iterdir()
    served.stop()
    os.truncate(pack, pack.stat().st_size // 2)
    storage = start().client()
    told = storage.verify.now()
    assert len(told.damaged) == 1000
    assert (told.blobs, told.missing) == (3000, []) and 0 < told.further < 2000
    served.stop()
    pack.unlink()
    told = start().client().verify.now()
    assert (told.blobs, len(told.missing), told.further) == (0, 1000, 2000)
