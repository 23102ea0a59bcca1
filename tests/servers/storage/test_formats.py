"""The two formats on disk: what was written is read, and any flipped byte is found and named."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.servers.storage.blobfile import CHUNK, Writer, chunks, prove, read_footer
from atoll.servers.storage.interface import BlobRef, Corrupt, blob_hash
from atoll.servers.storage.pack import Place, read_record, read_table, write_pack

SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 77]


def content_of(size: int) -> bytes:
    return (b"atoll" * (size // 5 + 1))[:size] if size < CHUNK else os.urandom(size)


def write(path: Path, content: bytes, step: int = 50_000) -> bytes:
    writer = Writer(path)
    for start in range(0, len(content), step):
        writer.write(content[start : start + step])
    footer = writer.seal()
    assert (footer.hash, footer.size) == (BlobRef.of(content).hash, len(content))
    return footer.hash


def read(path: Path, address: bytes, start: int = 0, end: int | None = None) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        footer = read_footer(descriptor, address)
        return b"".join(chunks(descriptor, footer, start, footer.size if end is None else end))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [7_001, CHUNK, 10 * CHUNK])
def test_what_was_written_is_read(tmp_path: Path, size: int, step: int) -> None:
    content = content_of(size)
    address = write(tmp_path / "blob", content, step)
    assert read(tmp_path / "blob", address) == content
    descriptor = os.open(tmp_path / "blob", os.O_RDONLY)
    assert prove(descriptor, address) == size
    os.close(descriptor)


@given(st.integers(0, 2 * CHUNK + 10), st.integers(0, 2 * CHUNK + 10), st.integers(1, 2 * CHUNK + 10))
@settings(max_examples=60, deadline=None)
def test_any_range_is_read(tmp_path_factory: pytest.TempPathFactory, a: int, b: int, size: int) -> None:
    path = tmp_path_factory.mktemp("range") / "blob"
    content = content_of(size)
    address = write(path, content)
    start, end = min(a, b, size), min(max(a, b), size)
    assert read(path, address, start, end) == content[start:end]


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_any_flipped_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("rot") / "blob"
    content = content_of(data.draw(st.sampled_from(SIZES)))
    address = write(path, content)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with pytest.raises(Corrupt) as found:
        read(path, address)
    assert found.value.hash == address
    if place < len(raw) - 64:
        assert found.value.offset == place // (CHUNK + 16) * CHUNK


def test_a_range_is_read_although_another_chunk_rotted(tmp_path: Path) -> None:
    content = os.urandom(3 * CHUNK)
    address = write(tmp_path / "blob", content)
    raw = bytearray((tmp_path / "blob").read_bytes())
    raw[CHUNK + 16 + 5] ^= 1
    (tmp_path / "blob").write_bytes(raw)
    assert read(tmp_path / "blob", address, 0, CHUNK) == content[:CHUNK]
    assert read(tmp_path / "blob", address, 2 * CHUNK, 3 * CHUNK) == content[2 * CHUNK :]
    with pytest.raises(Corrupt, match=f"at offset {CHUNK}:"):
        read(tmp_path / "blob", address)


def test_swapped_chunks_and_cut_files_are_found(tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK)
    address = write(tmp_path / "blob", content)
    raw = (tmp_path / "blob").read_bytes()
    stride = CHUNK + 16
    (tmp_path / "swapped").write_bytes(raw[stride : 2 * stride] + raw[:stride] + raw[2 * stride :])
    (tmp_path / "cut").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("swapped", "cut", "empty"):
        with pytest.raises(Corrupt):
            read(tmp_path / name, address)
    with pytest.raises(Corrupt):
        read(tmp_path / "blob", blob_hash(b"another").digest())


def readable(descriptor: int, rows: list[tuple[bytes, int, int]]) -> Iterator[tuple[bytes, bytes]]:
    for address, offset, length in rows:
        try:
            yield address, read_record(descriptor, address, Place(0, offset, length))
        except Corrupt:
            continue


def test_records_are_found_behind_zeros(tmp_path: Path) -> None:
    held = {BlobRef.of(content).hash: content for content in (b"one", bytes(1000), b"two", b"")}
    rows = write_pack(tmp_path / "pack", held.items())
    raw = bytearray((tmp_path / "pack").read_bytes())
    start = rows[0][1] - 36
    for gap in (1, 31, 32, 33, 8 * 1024 * 1024):
        (tmp_path / "zeros").write_bytes(bytes(32 + gap) + raw[start:] + bytes(gap))
        descriptor = os.open(tmp_path / "zeros", os.O_RDONLY)
        try:
            table = read_table(descriptor)
            assert table.rebuilt
            assert dict(readable(descriptor, table.rows)) == held
        finally:
            os.close(descriptor)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=40), st.data())
@settings(max_examples=80, deadline=None)
def test_a_pack_with_a_rotten_byte_loses_at_most_one_blob(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("pack") / "pack"
    held = {BlobRef.of(content).hash: content for content in contents}
    rows = write_pack(path, held.items())
    assert [row[0] for row in rows] == list(held)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        table = read_table(descriptor)
        found = dict(readable(descriptor, table.rows))
    finally:
        os.close(descriptor)
    assert all(held[address] == content for address, content in found.items())
    assert len(found) >= len(held) - 1
