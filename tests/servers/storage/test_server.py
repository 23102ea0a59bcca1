"""The storage server as its clients see it, on real files."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.ipc.errors import BadRequest, NotAllowed
from atoll.ipc.proxy import bind, transport_of
from atoll.servers.storage.blobfile import CHUNK
from atoll.servers.storage.interface import BlobRef, Corrupt, NoSuchBlob, Storage, WrongContent
from atoll.servers.storage.pack import LARGEST
from atoll.servers.storage.server import Server, Settings

NEVER = Settings(grace=3600.0, collect_every=0.0)
GRACE = NEVER.grace


def pieces(content: bytes, size: int = 100_000) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def read(storage: Storage, hash: bytes, after: int = 0, until: int = -1) -> bytes:
    return b"".join(piece.data for piece in storage.get.now(hash, after, until))


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x40]))


@pytest.fixture
def start(serve: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda config=NEVER: serve(Server, folder=tmp_path, config=config)


@pytest.mark.parametrize("size", [0, 1, LARGEST, LARGEST + 1, 10 * CHUNK + 3, 5_000_000])
def test_what_was_put_is_got_in_whole_and_in_part(start: Callable[..., Any], size: int) -> None:
    storage: Storage = start().client()
    content = os.urandom(size)
    ref = storage.put.now(pieces(content))
    assert ref == BlobRef.of(content)
    assert read(storage, ref.hash) == content
    assert read(storage, ref.hash, size // 3, size // 2) == content[size // 3 : size // 2]
    stat = storage.stat.now(ref.hash)
    assert (stat.size, stat.packed) == (size, size <= LARGEST)
    assert storage.put.now(pieces(content, 77_777)) == ref
    assert (storage.statistics.now().puts, storage.statistics.now().duplicates) == (1, 1)


def test_small_blobs_go_in_together_and_survive_a_restart(start: Callable[..., Any]) -> None:
    served = start()
    storage: Storage = served.client()
    contents = [f"review {number}".encode() for number in range(500)]
    refs = storage.put_many.now(contents)
    assert refs == [BlobRef.of(content) for content in contents]
    assert storage.statistics.now().syncs == 1
    large = storage.put.now(pieces(b"x" * 200_000))
    served.kill()
    again: Storage = start().client()
    assert again.get_many.now([ref.hash for ref in refs]) == contents
    assert read(again, large.hash) == b"x" * 200_000
    assert again.verify.now().damaged == []


def test_outstanding_puts_share_an_fsync(start: Callable[..., Any]) -> None:
    storage: Storage = start().client()
    futures = [storage.put_many.start([f"text {number}".encode()]) for number in range(200)]
    refs = [future.result() for future in futures]
    assert len({ref[0].hash for ref in refs}) == 200
    assert storage.statistics.now().syncs < 100


def test_an_announced_hash_is_checked(start: Callable[..., Any]) -> None:
    storage: Storage = start().client()
    for size in (10, 200_000):
        content = os.urandom(size)
        with pytest.raises(WrongContent, match="nothing was kept"):
            storage.put.now(pieces(content), BlobRef.of(b"other").hash)
        with pytest.raises(NoSuchBlob):
            storage.stat.now(BlobRef.of(content).hash)
        assert storage.put.now(pieces(content), BlobRef.of(content).hash) == BlobRef.of(content)


def test_wrong_calls_are_refused_with_a_sentence(start: Callable[..., Any]) -> None:
    storage: Storage = start().client()
    with pytest.raises(BadRequest, match=r"blobs\[1\]: expected a blob of 65536 bytes at most"):
        storage.put_many.now([b"", bytes(LARGEST + 1)])
    ref = storage.put.now(pieces(bytes(LARGEST + 1)))
    with pytest.raises(BadRequest, match=r"hashes\[0\]: expected a blob of 65536 bytes at most"):
        storage.get_many.now([ref.hash])
    missing = BlobRef.of(b"never put").hash
    with pytest.raises(NoSuchBlob, match=r"\(number 1 of those asked for\)"):
        storage.refer.now([ref.hash, missing], "owner", "name")
    assert storage.references.now("owner") == []
    with pytest.raises(NoSuchBlob):
        read(storage, missing)


@pytest.mark.parametrize("size", [500, 300_000])
def test_bit_rot_is_named_and_a_new_put_mends_it(
    start: Callable[..., Any], tmp_path: Path, size: int
) -> None:
    served = start()
    storage: Storage = served.client()
    content = os.urandom(size)
    ref = storage.put.now(pieces(content))
    if size <= LARGEST:
        flip(next((tmp_path / "packs").iterdir()), 32 + 44 + 36 + 100)
        offset = 0
    else:
        flip(served.server._blobs.path(ref.hash), 2 * (CHUNK + 16) + 9)
        offset = 2 * CHUNK
    with pytest.raises(Corrupt, match=f"{ref.hash.hex()} is damaged on disk at offset {offset}") as found:
        read(storage, ref.hash)
    assert (found.value.hash, found.value.offset) == (ref.hash, offset)
    assert [(each.hash, each.offset) for each in storage.verify.now().damaged] == [(ref.hash, offset)]
    assert storage.statistics.now().damaged == 1
    assert storage.put.now(pieces(content)) == ref
    assert read(storage, ref.hash) == content
    assert (storage.verify.now().damaged, storage.statistics.now().damaged) == ([], 0)
    served.stop()
    assert read(start().client(), ref.hash) == content


def test_collection_takes_what_nobody_refers_to(start: Callable[..., Any]) -> None:
    served = start()
    storage: Storage = served.client()
    kept = [storage.put.now(pieces(os.urandom(size))) for size in (100, 200_000)]
    storage.refer.now([ref.hash for ref in kept], "test", "kept")
    lost = [storage.put.now(pieces(os.urandom(size))) for size in (100, 200_000)]
    served.advance(GRACE + 1)
    assert storage.collect.now().blobs == 2
    for ref in kept:
        assert len(read(storage, ref.hash)) == ref.size
    for ref in lost:
        with pytest.raises(NoSuchBlob):
            read(storage, ref.hash)
    assert storage.release.now("test", "kept")
    assert not storage.release.now("test", "kept")
    assert storage.collect.now().blobs == 0, "the grace begins anew at the release"
    served.advance(GRACE + 1)
    assert storage.collect.now().blobs == 2
    assert storage.verify.now().blobs == 0


def test_the_grace_spares_what_was_just_put(start: Callable[..., Any]) -> None:
    storage: Storage = start().client()
    ref = storage.put.now([b"small"])
    assert 0 < storage.stat.now(ref.hash).spared <= 3600
    assert storage.collect.now() == storage.collect.now()
    assert (storage.collect.now().blobs, storage.collect.now().spared) == (0, 1)


def test_one_badge_cannot_release_what_another_holds(start: Callable[..., Any]) -> None:
    served = start()
    one, other = served.client(badge=1), served.client(badge=2)
    ref = one.put.now([b"mine"])
    one.refer.now([ref.hash], "owner", "a/b")
    assert one.references.now("owner") == ["a/b"]
    assert other.references.now("owner") == []
    assert not other.release.now("owner", "a/b")
    served.advance(GRACE + 1)
    assert other.collect.now().blobs == 0
    assert one.get_many.now([ref.hash]) == [b"mine"]


def test_many_small_packs_are_put_together(start: Callable[..., Any], tmp_path: Path) -> None:
    storage: Storage = start().client()
    refs = [storage.put.now([f"text {number}".encode()]) for number in range(30)]
    assert len(list((tmp_path / "packs").iterdir())) == 30
    storage.collect.now()
    assert len(list((tmp_path / "packs").iterdir())) == 1
    assert storage.get_many.now([refs[7].hash]) == [b"text 7"]
    assert storage.verify.now().blobs == 30


def test_rights_are_needed(start: Callable[..., Any]) -> None:
    served = start()
    whole = transport_of(served.client())
    reader = type(whole)(served.host, Storage, held=frozenset({"read"}))  # type: ignore[call-arg]
    with pytest.raises(NotAllowed, match="'maintain'"):
        bind(Storage, reader).collect.now()
    with pytest.raises(NotAllowed, match="'write'"):
        bind(Storage, reader).put_many.now([b""])


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 9)),
        st.tuples(st.just("refer"), st.integers(0, 9)),
        st.tuples(st.just("release"), st.integers(0, 9)),
        st.tuples(st.just("collect"), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([1, 3599, 3601])),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=25,
)


@given(OPERATIONS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_calls_sent_without_waiting_lose_no_referenced_blob(
    serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]]
) -> None:
    """Everything outstanding at once: whatever is referred to at the end is there and whole."""
    folder = tmp_path_factory.mktemp("blobs")
    served = serve(Server, folder=folder, config=NEVER)
    storage: Storage = served.client(badge=5)
    contents = {number: bytes([number]) * (10 if number % 2 else 70_000) for number in range(10)}
    refs = {number: BlobRef.of(content) for number, content in contents.items()}
    names = set(storage.references.now("o"))
    for name in names:
        storage.release.now("o", name)
    for kind, number in operations:
        match kind:
            case "put" if number % 2:
                storage.put_many.start([contents[number]])
            case "put":
                storage.put.now([contents[number]])
            case "refer":
                storage.refer.start([refs[number].hash], "o", str(number))
            case "release":
                storage.release.start("o", str(number))
            case "collect":
                storage.collect.start()
            case "wait":
                served.advance(number)
            case "restart":
                served.kill()
                served = serve(Server, folder=folder, config=NEVER)
                storage = served.client(badge=5)
    storage.collect.now()
    for name in storage.references.now("o"):
        assert read(storage, refs[int(name)].hash) == contents[int(name)]
    assert storage.verify.now().damaged == []
    served.stop()
