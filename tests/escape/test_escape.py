"""Each attack at each level: stopped where the threat page claims it, shown as possible where it does not."""

import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from atoll.microkernel.protection import Confinement, probe
from atoll.microkernel.protection.host import NEW_HOSTNAME, NEW_MOUNTS
from atoll.microkernel.slices import Limits, choose
from atoll.native import segments
from tests.microkernel.children import forge, heard, planned, start, told, unwatch

host = probe()
ROOT = os.geteuid() == 0

# attack: the lowest level that stops it, for root and for an ordinary user; None: no level does
CLAIMS = {
    "read_file": ("process", "sandbox"),
    "write_file": ("process", "sandbox"),
    "list_folder": ("process", "sandbox"),
    "open_socket": ("seccomp", "seccomp"),
    "connect": ("seccomp", "seccomp"),
    "abstract_socket": ("seccomp", "seccomp"),
    "send_signal": ("process", "seccomp"),
    "trace": ("process", "seccomp"),
    "read_memory": ("process", "sandbox"),
    "see": ("sandbox", "sandbox"),
    "mount": ("process", "process"),
    "load_module": ("process", "process"),
    "exhaust_descriptors": ("process", "process"),
    "new_user_namespace": ("seccomp", "seccomp"),
    "rename_host": ("process", "process"),
    "become_root": ("process", "process"),
    "raise_limit": ("process", "process"),
    "execute": ("seccomp", "seccomp"),
}
LEVELS = ("process", "seccomp", "sandbox")
APART = "/mnt"
"""Covered, so that what is mounted beside it stays in the victim's own view."""
GIVEN = 6
DESCRIPTORS_MOST = 4097
"""One more than level `process` lets a server have."""


@pytest.fixture
def secret():
    """A file of the user's that no server was given. Not below pytest's folders, which other tests' nodes are below,
    too, and which are closed to other users."""
    with tempfile.TemporaryDirectory(prefix="atoll-escape-") as folder:
        path = Path(folder, "secret")
        path.write_text("of the user")
        path.chmod(0o600)
        yield path


@pytest.fixture
def slices(request):
    if request.param == "none":
        yield None
        return
    made = choose(f"escape{os.getpid()}")
    if made.kind == "none":
        pytest.skip(made.lacks[0])
    yield made
    made.leave()


@pytest.fixture
def bystander():
    """An ordinary program of the user's. It may end up traced, and so stopped: it is not the tests that are
    attacked."""
    with subprocess.Popen(["/bin/sleep", "infinity"]) as process:
        yield process
        process.kill()


def targets(secret, listening, abstract):
    """What each attack is aimed at; those not named attack the bystander."""
    return {
        "read_file": str(secret),
        "write_file": str(secret),
        "list_folder": str(secret.parent),
        "connect": str(listening.getsockname()[1]),
        "abstract_socket": abstract.getsockname()[1:].decode(),
        "exhaust_descriptors": str(DESCRIPTORS_MOST),
    }


@pytest.mark.parametrize("level", LEVELS)
async def test_each_attack_is_stopped_exactly_where_claimed(level, secret, bystander):
    """What a level does not claim is shown to be possible, so that the threat page promises neither too
    much nor too little."""
    plan = planned(level)
    if plan.missing:
        pytest.skip(f"level {level} is not possible here: {'; '.join(map(str, plan.missing))}")
    secret.parent.chmod(0o700)
    claimed = {
        attack: LEVELS.index(level) >= LEVELS.index(from_[0 if ROOT else 1])
        for attack, from_ in CLAIMS.items()
    }
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("")  # the kernel picks an abstract name
        abstract.listen()
        aimed = targets(secret, listening, abstract)
        said = {}
        async with forge() as made:
            for attack in CLAIMS:
                target = aimed.get(attack, str(bystander.pid))
                said[attack], ended = await told(made, plan.confinement, "attempt", attack, target)
                assert ended.clean, (attack, ended, said[attack])
    assert {attack: text.startswith("stopped") for attack, text in said.items()} == claimed, said


@pytest.mark.skipif(not ROOT, reason="an ordinary user may do none of it, whatever the level")
@pytest.mark.parametrize(
    "attack", ["mount", "load_module", "rename_host", "become_root", "exhaust_descriptors"]
)
async def test_what_every_level_stops_is_possible_without_one(attack):
    """Else nothing would tell that the attack is one."""
    apart = Confinement(name="victim", namespaces=NEW_MOUNTS | NEW_HOSTNAME, covers=(APART,))
    async with forge() as made:
        said, ended = await told(made, apart, "attempt", attack, str(DESCRIPTORS_MOST))
    if attack == "load_module" and "not implemented" in said:
        pytest.skip("this kernel loads no modules")
    assert (said, ended.clean) == ("done", True)


def grant(sealed):
    """A page that the kernel writes, as a descriptor to read it by; sealed as a read-only grant is, or open."""
    memory = os.memfd_create("grant", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 4096)
    os.fchmod(memory, 0o666)
    if sealed:
        segments.seal(memory, segments.SEALS["readonly"])
    reading = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(memory)
    return reading


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "open"])
async def test_no_level_is_what_keeps_a_grant_from_being_written_its_seals_are(level, sealed):
    plan = planned(level)
    if plan.missing:
        pytest.skip(f"level {level} is not possible here: {'; '.join(map(str, plan.missing))}")
    reading = grant(sealed)
    async with forge() as made:
        process, read = await start(
            made, plan.confinement, "attempt", "write_grant", str(GIVEN), more={GIVEN: reading}
        )
        unwatch(process)
        said = await heard(read)
        assert (await process.wait()).clean, said
        process.close()
    written = os.pread(reading, 4, 0) == b"mine"
    os.close(reading)
    assert (said.startswith("stopped"), written) == (sealed, not sealed), said


@pytest.mark.skipif(not ROOT, reason="servers of one user have no users of their own to be kept apart by")
@pytest.mark.parametrize("attack", ["send_signal", "trace", "read_memory"])
async def test_servers_with_own_users_are_kept_apart(attack):
    """A server cannot signal or look into another server, already at level `process`."""
    async with forge() as made:
        other, read = await start(made, planned("process", uid=710_001).confinement, "wait")
        said, _ = await told(made, planned("process").confinement, "attempt", attack, str(other.pid))
        os.close(read)
        other.kill()
        await other.wait()
        other.close()
    assert said.startswith("stopped")


@pytest.mark.parametrize("level", ["process", "seccomp"])
async def test_without_own_users_only_the_sandbox_keeps_files_apart(level, secret):
    """What the threat page admits: two servers that run as one user can read each other's files below
    `sandbox`."""
    uid = 65534 if ROOT else os.geteuid()
    os.chown(secret, uid, -1)
    secret.parent.chmod(0o755)
    drop = {"own-uid": "the test needs one shared user"} if ROOT else {}
    async with forge() as made:
        said, _ = await told(made, planned(level, drop=drop).confinement, "attempt", "read_file", str(secret))
        boxed = planned("sandbox", drop=drop)
        if not boxed.missing:
            inside, _ = await told(made, boxed.confinement, "attempt", "read_file", str(secret))
            assert inside.startswith("stopped")
    assert said == "done"


SLICES = pytest.mark.parametrize("slices", ["slice", "none"], indirect=True)
"""In a slice that bounds it, and in none."""


async def ended_in(slices, limits, level, attack, target):
    """What a victim at `level` said, how it ended, and how many of its slice were killed for memory."""
    plan = planned(level)
    if plan.missing:
        pytest.skip(f"level {level} is not possible here: {'; '.join(map(str, plan.missing))}")
    joined = []
    if slices is not None:
        group = slices.group(attack)
        if said := group.limit(limits):
            pytest.skip("; ".join(said))
        joined = group.open()
    async with forge() as made:
        process, read = await start(made, plan.confinement, "attempt", attack, target, groups=joined)
        unwatch(process)
        said = await heard(read)
        ended = await process.wait()
        process.close()
    for descriptor in joined:
        os.close(descriptor)
    killed = 0
    if slices is not None:
        killed = group.killed_for_memory()
        assert await slices.clean() == []
    return said, ended, killed


@SLICES
@pytest.mark.parametrize("level", LEVELS)
async def test_threads_are_bounded_by_the_slice_and_by_no_level(slices, level):
    said, ended, _ = await ended_in(slices, Limits(pids=16), level, "exhaust_threads", "64")
    assert ended.clean
    assert said.startswith("done" if slices is None else "stopped"), said


@SLICES
@pytest.mark.parametrize("level", LEVELS)
async def test_memory_is_bounded_by_the_slice_and_by_no_level(slices, level):
    attack = "exhaust_memory", str(256 << 20)
    said, ended, killed = await ended_in(slices, Limits(memory=64 << 20), level, *attack)
    if slices is None:
        assert (said, ended.clean) == ("done", True)
    else:
        assert (said, ended.signal, killed) == ("", 9, 1)
