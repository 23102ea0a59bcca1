"""What cannot be stands in the kernel's own channel to the store: the node ends, and says why, instead of going on without a
store."""

import os
import signal
from pathlib import Path

import pytest

from atoll.ipc.errors import AtollError
from atoll.ipc.system.state import Write

from .nodes import RealNode, booted

PAGE, LINE = 4096, 64
LENGTH = 8
"""Where `struct header` has the payload's length (native/layout.h)."""


def shared(node: RealNode, channel: int) -> Path:
    """The memory of a channel, by way of the kernel's descriptor."""
    assert node.kernel is not None
    for entry in Path(f"/proc/{node.kernel.pid}/fd").iterdir():
        if os.readlink(entry).startswith(f"/memfd:channel {channel} "):
            return entry
    raise AssertionError(f"the kernel has no memory of channel {channel}")


def new_record(before: bytes, after: bytes) -> int:
    """Where the first record lies that was not there before; 0 if there is none."""
    if before[PAGE:] == after[PAGE:]:
        return 0
    lines = range(PAGE, len(after), LINE)
    return next(at for at in lines if after[at : at + LINE] != before[at : at + LINE])


def test_a_broken_channel_to_the_store_ends_the_node(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            rows = attached.keyspace("counter")
            kept = rows.commit.now([Write(key=b"kept", value=b"1")])
            own = next(row.channel for row in attached.kernel.channels.now("state") if row.client == "kernel")
            store = next(row.pid for row in attached.kernel.ps.now() if row.server == "state")
            memory = shared(node, own)
            os.kill(store, signal.SIGSTOP)
            before = memory.read_bytes()
            frozen = attached.kernel.freeze.start("counter")  # is a row, so the kernel calls the store
            while not (record := new_record(before, memory.read_bytes())):
                pass
            with memory.open("r+b", buffering=0) as file:
                file.seek(record + LENGTH)
                file.write(b"\xff\xff\xff\xff")
            os.kill(store, signal.SIGCONT)
            with pytest.raises(AtollError):
                frozen.result()
        assert node.kernel is not None
        said, _ = node.kernel.communicate()
        assert node.kernel.returncode != 0
        node.kernel = None
        assert "ended: the kernel's channel to state is gone" in said, said
        node.boot()
        with node.attach() as attached:
            found = attached.keyspace("counter").get.now(b"kept")
            assert found is not None and found.revision == kept.revision
