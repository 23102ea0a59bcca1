"""Nothing that a client has the store write is taken for a record of the log, wherever in a segment it lies; and a log of
the version before, whose records bear no salt, is read as it is, once."""

import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from atoll.servers.state.engine import Table
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.write_ahead import encode, newest

from .test_damaged_log import begun, damage
from .test_log import OPEN, SMALL, one
from .test_power_cut import WRITER, after, cuts, folder, notes, orders

__all__ = ["folder", "orders"]  # fixtures

FORGE = """
import struct, zlib

def forged(generation, transaction, body=b"", salt=b""):
    first = struct.pack(">Q", generation) + salt + struct.pack(">Q", transaction)
    return struct.pack(">II", len(body), zlib.crc32(body, zlib.crc32(first))) + first + body
"""
FORGING = (
    OPEN
    + FORGE
    + """
from atoll.servers.state.engine import Table
engine = opened(sys.argv[1])
salts = b"", bytes(8)
fakes = [forged(g, t, salt=salt) for g in range(1, 4) for t in range(1, 40) for salt in salts]
for position in range(1, 6):
    batch = Batch()
    batch.put(Table.VALUES, position.to_bytes(12, "big"), b"".join(fakes))
    batch.append(position, b"e")
    engine.commit(batch)
os.kill(os.getpid(), 9)
"""
)
BEFORE = """
from atoll.servers.state import checkpoint
checkpoint.new_salt = bytes
"""
"""As the version of format 3 writes its log."""
KILLED_BEFORE = (
    OPEN
    + BEFORE
    + """
engine = opened(sys.argv[1])
for position in range(1, 6):
    batch = Batch()
    batch.append(position, b"e")
    engine.commit(batch)
os.kill(os.getpid(), 9)
"""
)


def run(program: str, store: Path) -> None:
    done = subprocess.run([sys.executable, "-c", program, str(store)], stderr=subprocess.PIPE, check=False)
    assert done.returncode == -9, done.stderr


def forged(generation: int, transaction: int, body: bytes, salt: bytes) -> bytes:
    first = struct.pack(">Q", generation) + salt + struct.pack(">Q", transaction)
    return struct.pack(">II", len(body), zlib.crc32(body, zlib.crc32(first))) + first + body


def events(engine: LmdbEngine) -> list[int]:
    with engine.snapshot() as snapshot:
        return [position for position, _ in snapshot.feed(0)]


def test_records_in_a_clients_value_do_not_make_a_log_look_damaged(tmp_path: Path) -> None:
    run(FORGING, tmp_path)
    engine = LmdbEngine(tmp_path, **SMALL)
    assert events(engine) == [1, 2, 3, 4, 5]
    engine.close()


@pytest.mark.parametrize("salt", [b"", bytes(8)])
@pytest.mark.parametrize("ahead", [1, 2])
def test_bytes_behind_the_end_of_a_log_are_no_record(tmp_path: Path, salt: bytes, ahead: int) -> None:
    """What an earlier use of the segment left there may be a client's: here exactly where the next record would lie."""
    run(FORGING, tmp_path)
    segment = begun(tmp_path)[0]
    head = segment.head()
    assert head is not None
    records = list(segment.records(head))
    end = head.start + sum(head.around + len(body) for _, body in records)
    batch = one(6)
    batch.put(Table.META, b"forged", b"!")
    with segment.path.open("r+b") as file:
        file.seek(end)
        file.write(forged(head.generation, records[-1][0] + ahead, encode(batch), salt))
    engine = LmdbEngine(tmp_path, **SMALL)
    assert events(engine) == [1, 2, 3, 4, 5]
    with engine.snapshot() as snapshot:
        assert snapshot.get(Table.META, b"forged") is None
    engine.close()


def test_no_two_segments_have_one_salt(tmp_path: Path) -> None:
    engine = LmdbEngine(tmp_path, **SMALL)
    for position in range(1, 4):
        engine.commit(one(position))
        engine.settle()
    heads = [head for segment in begun(tmp_path) if (head := segment.head()) is not None]
    engine.close()
    assert len({head.salt for head in heads}) == 3 and {len(head.salt) for head in heads} == {8}


def test_a_salt_that_is_damaged_is_refused(tmp_path: Path) -> None:
    run(FORGING, tmp_path)
    segment = begun(tmp_path)[0]
    for offset in range(28, 44):
        damage(segment.path, offset)
        assert segment.head() is None
        damage(segment.path, offset)
    assert segment.head() is not None


# the version before -----------------------------------------------------------------------------------------------


def test_a_killed_store_of_the_version_before_is_taken_up(tmp_path: Path) -> None:
    run(KILLED_BEFORE, tmp_path)
    found = newest(begun(tmp_path))
    assert found is not None and found[1].salt == b""
    engine = LmdbEngine(tmp_path, **SMALL)
    assert events(engine) == [1, 2, 3, 4, 5]
    found = newest(begun(tmp_path))
    assert found is not None and len(found[1].salt) == 8
    engine.commit(one(6))
    engine.close()


def test_a_head_that_the_version_before_began_over_one_with_a_salt_has_none(tmp_path: Path) -> None:
    """A swap that was taken back: that version writes its 28 bytes, and leaves the salt of another head behind them."""
    engine = LmdbEngine(tmp_path, **SMALL)
    segment = engine._log._segment
    head = segment.head()
    assert head is not None and head.salt
    left = os.pread(segment.descriptor, 16, 28)
    segment.begin(head._replace(generation=head.generation + 3, salt=b""))
    os.pwrite(segment.descriptor, left, 28)
    again = segment.head()
    engine.close()
    assert again is not None and (again.generation, again.salt) == (head.generation + 3, b"")


def test_after_a_power_failure_nothing_that_the_version_before_acknowledged_is_lost(
    orders: Path, folder: Path, tmp_path: Path
) -> None:
    program = WRITER.replace("folder, groups", BEFORE + "folder, groups", 1)
    assert program != WRITER
    written = notes(orders, program, str(tmp_path / "store"), "150", "")
    for image, last in cuts(written, 40, random.Random(7)):
        after(folder, image, last)
