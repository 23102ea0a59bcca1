"""kill -9 in the middle of a put, at each step: a blob is whole afterwards or not there at all."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.servers.storage.blobs import Blobs, prove_file
from atoll.servers.storage.interface import BlobRef
from atoll.servers.storage.leases import Leases

LARGE = b"large" * 100_000
SMALL = [f"small {number}".encode() for number in range(50)]

CHILD = """
import sys
from pathlib import Path
from atoll.servers.storage.blobs import Blobs
from atoll.servers.storage.interface import BlobRef

def reached(step):
    print(step, flush=True)
    if step == sys.argv[2]:
        sys.stdin.read()  # killed here

large, small = b"large" * 100_000, [f"small {number}".encode() for number in range(50)]
blobs = Blobs(Path(sys.argv[1]))
blobs.open()
writer = blobs.writer()
reached("opened")
writer.write(large[:300_000])
reached("half written")
writer.write(large[300_000:])
footer = writer.seal()
reached("sealed")
blobs.install(writer.temporary, blobs.path(footer.hash))
reached("large installed")
held = [(BlobRef.of(each).hash, each) for each in small]
new = blobs.write_pack(blobs.temporary(), blobs.next_pack(), held)
reached("pack installed")
"""

STEPS = ["opened", "half written", "sealed", "large installed", "pack installed"]


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_leaves_whole_blobs_or_none(tmp_path: Path, step: str) -> None:
    arguments = [sys.executable, "-c", CHILD, str(tmp_path), step]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == step:
                break
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    blobs = Blobs(tmp_path)
    blobs.open()
    large = BlobRef.of(LARGE)
    assert blobs.has(large.hash) == (STEPS.index(step) >= STEPS.index("large installed"))
    if blobs.has(large.hash):
        assert prove_file(blobs.path(large.hash), large.hash) == large.size
    found = [blobs.small(BlobRef.of(content).hash) for content in SMALL]
    assert found == (SMALL if step == "pack installed" else [None] * len(SMALL))
    (workplace,) = (tmp_path / "tmp").iterdir()
    assert list(workplace.iterdir()) == [], "what the dead process was writing is removed"
    assert blobs.broken() == []
    blobs.close()


def test_a_living_process_keeps_what_it_is_writing(tmp_path: Path) -> None:
    """Two versions of a server during a swap."""
    one, two = Blobs(tmp_path), Blobs(tmp_path)
    one.open()
    writer = one.writer()
    writer.write(LARGE)
    two.open()
    footer = writer.seal()
    one.install(writer.temporary, one.path(footer.hash))
    assert two.has(footer.hash)
    rows = [(BlobRef.of(content).hash, content) for content in SMALL]
    new_one = one.write_pack(one.temporary(), one.next_pack(), rows)
    new_two = two.write_pack(two.temporary(), two.next_pack(), rows)
    assert new_one.number != new_two.number, "two processes never share a pack's number"
    for blobs, new in ((one, new_one), (two, new_two)):
        blobs.admit(new)
        blobs.close()


def test_leases_pins_and_the_grace() -> None:
    now = 0.0
    leases = Leases(lambda: now, 10.0)
    assert leases.left(b"a") == 10.0, "everything is spared for a grace after the start"
    now = 11.0
    assert not leases.spares(b"a")
    with leases.pinned([b"a"]), leases.pinned([b"a"]):
        now = 1000.0
        assert leases.left(b"a") == float("inf")
    assert leases.left(b"a") == 10.0
    now = 1005.0
    other = Leases(lambda: 0.0, 1.0)
    other.take_over(leases.hand_over())
    assert other.left(b"a") == 5.0
    now = 1011.0
    leases.forget_expired()
    assert leases.hand_over() == {}


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for the full disk: the write fails half-way with the same kind of error."""
    script = """
import resource, signal, sys
from pathlib import Path
from atoll.servers.storage.blobs import Blobs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
blobs = Blobs(Path(sys.argv[1]))
blobs.open()
writer = blobs.writer()
try:
    writer.write(bytes(300_000))
except OSError as error:
    writer.discard()
    print(type(error).__name__, list((Path(sys.argv[1]) / "tmp").glob("*/*")))
"""
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "OSError []\n"
