"""A blob far larger than the memory that its way in and out may take, on a node that runs."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from atoll.ipc import connect
from atoll.servers.storage.interface import Storage, blob_hash

from ..booted import booted

IMAGE = """
[image]
name = "streams"
about = "Storage and its store, for a test"

[node]
level = "process"
account = "small"

[account.small]
channels = 16
capabilities = 256
buffers = "16MiB"
descriptors = 256
pending = 1024

[keyspace.references]

[server.state]
needs = {}

[server.storage.needs]
folder = { folder = "blobs" }
references = { keyspace = "references", rights = ["read", "write", "history"] }
"""
MIB = 1024 * 1024
PIECE = 64 * 1024
SHARE = 8
"""The server's memory may grow by this share of the blob, which it would not stay below if it held the blob."""


def peak(pid: int) -> int:
    """The most that the process ever had resident, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def sparse(size: int) -> Iterator[bytes]:
    """Zeros, with a number at each piece's beginning."""
    for number in range(size // PIECE):
        yield number.to_bytes(8, "little") + bytes(PIECE - 8)


@pytest.fixture
def carry(tmp_path: Path) -> Callable[[int], None]:
    def carried(size: int) -> None:
        image = tmp_path / "streams.toml"
        image.write_text(IMAGE)
        with booted(image, tmp_path / "n") as folder, connect(str(folder)) as node:
            (pid,) = (row.pid for row in node.kernel.ps.now() if row.server == "storage")
            storage = node.open("storage", Storage)
            storage.put.now(sparse(8 * PIECE))
            before = peak(pid)
            ref = storage.put.now(sparse(size))
            put = peak(pid)
            content = blob_hash()
            for piece in storage.get.now(ref.hash):
                content.update(piece.data)
            got = peak(pid)
            assert (ref.size, content.digest()) == (size, ref.hash)
            print(
                f"{size / MIB:.0f} MiB: {before / MIB:.1f}, put {put / MIB:.1f}, got {got / MIB:.1f} MiB resident"
            )
            assert got - before < size / SHARE

    return carried


def test_a_stream_takes_a_share_of_its_size(carry: Callable[[int], None]) -> None:
    carry(256 * MIB)


@pytest.mark.soak
def test_a_long_stream_takes_a_small_share_of_its_size(carry: Callable[[int], None]) -> None:
    carry(1024 * MIB)


UPLOAD = """
import sys
from itertools import repeat
from atoll.ipc import connect
from atoll.servers.storage.interface import Storage
with connect(sys.argv[1]) as node:
    node.open("storage", Storage).put.now(repeat(bytes(65536)))
"""


def test_an_upload_whose_client_dies_leaves_nothing(tmp_path: Path) -> None:
    image = tmp_path / "streams.toml"
    image.write_text(IMAGE)
    with booted(image, tmp_path / "n") as folder, connect(str(folder)) as node:
        storage = node.open("storage", Storage)

        def written() -> int:
            """Bytes half written, once storage has answered what it was asked before."""
            storage.statistics.now()
            for path in folder.rglob("tmp/*/*"):
                with suppress(FileNotFoundError):
                    return path.stat().st_size
            return 0

        with subprocess.Popen([sys.executable, "-c", UPLOAD, str(folder)]) as client:
            while written() < 10 * MIB:
                assert client.poll() is None
            client.kill()
        while written():
            pass
        assert storage.verify.now().blobs == 0
