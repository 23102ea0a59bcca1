"""The way into confinement: what a child could keep of the session that booted the node, and what happens when a step of
it fails. Nothing runs that is less protected than planned."""

import ctypes
import os
import platform
import secrets
import signal
import socket
import subprocess

import msgspec
import pytest

from atoll.microkernel.processes import CannotConfine, Exit, Process
from atoll.microkernel.protection import Bind, Confinement, Limit, probe
from atoll.microkernel.protection.confinement import IdMap, Landlock, NewRoot, PathRule
from atoll.microkernel.zygote import Spawn
from tests.microkernel.children import OUT, VICTIMS, forge, planned, told

ENTRIES = [
    ("process", "zygote"),
    ("process", "exec"),
    ("seccomp", "zygote"),
    ("sandbox", "zygote"),
    ("sandbox", "exec"),
]
"""Levels and starts: the ways in that differ."""
ROOT = os.geteuid() == 0
SHARED = 65534
host = probe()
libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY, KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(platform.machine(), (-1, -1))
JOIN_SESSION, SESSION_KEYRING = 1, -3


def possible(level, **fields):
    plan = planned(level, **fields)
    if plan.missing:
        pytest.skip(f"level {level} is not possible here: {'; '.join(map(str, plan.missing))}")
    return plan.confinement


# what is left behind --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o077])
async def test_what_a_server_writes_is_its_own_whatever_the_booting_session_had_set(mask):
    """And a session that makes only private files can boot a node: its servers reach what was made for them."""
    before = os.umask(mask)
    try:
        async with forge() as made:
            for level, start in ENTRIES:
                said, ended = await told(made, possible(level, start=start), "who")
                found = dict(line.split(":", 1) for line in said.splitlines())
                assert ended == Exit(0)
                assert found["Umask"].strip() == "0077", level
                for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                    assert set(found[capabilities].strip()) == {"0"}, (level, capabilities)
    finally:
        os.umask(before)


async def test_the_environment_that_the_node_was_booted_in_is_in_no_servers_memory(monkeypatch):
    """It may hold secrets of the user's. `unsetenv` in a clone would only forget where they lie."""
    monkeypatch.setenv("ATOLL_TEST_SECRET", secrets.token_hex(16))
    pattern = "ATOLL_TEST_SECRET=[0-9a-f]{32}"
    async with forge() as made:
        for level, start in ENTRIES:
            entered = possible(level, start=start)
            said = await told(made, entered, "attempt", "read_old_environment", pattern)
            assert said == ("stopped: nothing found", Exit(0)), level


@pytest.mark.skipif(KEYCTL < 0, reason="the numbers of the keyring calls are not known for this machine")
async def test_the_keys_of_the_booting_session_are_left_behind():
    """Whoever possesses a session keyring may read its keys, whatever its uid."""
    name = f"atoll:{secrets.token_hex(8)}"
    if libc.syscall(KEYCTL, JOIN_SESSION, None) < 0:
        pytest.skip(f"no keyrings here: {os.strerror(ctypes.get_errno())}")
    assert libc.syscall(ADD_KEY, b"user", name.encode(), b"a ticket", 8, SESSION_KEYRING) > 0
    async with forge() as made:
        for level, start in ENTRIES:
            said, ended = await told(made, possible(level, start=start), "attempt", "read_session_key", name)
            assert ended == Exit(0)
            assert said.startswith("stopped"), (level, said)


def test_a_namespace_added_to_a_lower_level_brings_no_capabilities_along():
    """Without root it is made inside a user namespace, whose maker has all of them there."""
    ordinary = msgspec.structs.replace(
        host, root=False, users="", network="", ipc="", hostname="", processes=""
    )
    from atoll.microkernel.protection import plan
    from tests.microkernel.children import subject

    for added in ("network", "ipc", "hostname", "processes"):
        made = plan("process", subject(uid=None), ordinary, add=(added,))
        assert made.confinement.ids is not None
        assert made.confinement.drop_capabilities, added


@pytest.mark.skipif(bool(host.filters), reason=f"no filters here: {host.filters}")
@pytest.mark.parametrize(("level", "killed"), [("process", True), ("seccomp", False), ("sandbox", False)])
async def test_a_filter_leaves_no_way_to_signal_by_descriptor(level, killed):
    """fcntl can have the kernel send any signal to a process of the same user (F_SETOWN, F_SETSIG, O_ASYNC)."""
    user = {"user": SHARED, "group": SHARED} if ROOT else {}
    drop = {"own-uid": "the test needs one shared user"} if ROOT else {}
    confinement = possible(level, drop=drop)
    with subprocess.Popen(["/bin/sleep", "infinity"], **user) as bystander:  # noqa: ASYNC220
        async with forge() as made:
            said, ended = await told(made, confinement, "attempt", "signal_by_descriptor", str(bystander.pid))
        bystander.terminate()  # the first of the two signals is the one that ends it
        assert ended == Exit(0)
        assert bystander.wait() == -(signal.SIGKILL if killed else signal.SIGTERM), said


@pytest.mark.skipif(bool(host.filters), reason=f"no filters here: {host.filters}")
@pytest.mark.parametrize("grants", [(), ("spawn",)])
async def test_a_filtered_server_cannot_unset_that_it_dies_with_the_kernel(grants):
    async with forge() as made:
        said, ended = await told(
            made, possible("seccomp", grants=grants), "attempt", "outlive_the_kernel", ""
        )
    assert ended == Exit(0)
    assert said.startswith("stopped"), said


# steps that fail ------------------------------------------------------------------------------------------------------

BARE = Confinement(name="victim", no_new_privileges=True)
NEW_MOUNTS, NEW_USERS = 0x0002_0000, 0x1000_0000
RETURN_ALLOW = (0x06).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")


def root(**fields):
    """On a root of its own; root needs no user namespace for that, and an ordinary user maps itself."""
    ids = (
        None
        if ROOT
        else IdMap(uid=f"{os.getuid()} {os.getuid()} 1\n", gid=f"{os.getgid()} {os.getgid()} 1\n")
    )
    flags = NEW_MOUNTS if ROOT else NEW_MOUNTS | NEW_USERS
    given = {"root": NewRoot(staging="/tmp", scratch=1 << 20, proc=None), **fields}
    return msgspec.structs.replace(BARE, namespaces=flags, ids=ids, **given)


WRONG = {
    "setting resource limits": msgspec.structs.replace(
        BARE, limits=(Limit(resource=7, soft=64, hard=64), Limit(resource=7, soft=65, hard=64))
    ),
    "mapping ids into the user namespace": msgspec.structs.replace(
        BARE, namespaces=NEW_USERS, ids=IdMap(uid="0 0 0\n", gid="0 0 0\n")
    ),
    "binding files into its root": root(binds=(Bind(source="/usr/lib"), Bind(source="/no/such/folder"))),
    "mounting its root": root(root=NewRoot(staging="/no/such/folder", scratch=1 << 20, proc=None)),
    "applying Landlock": msgspec.structs.replace(
        BARE,
        landlock=Landlock(files=4, network=0, scoped=0, rules=(PathRule(path="/usr", access=1 << 50),)),
    ),
    "loading the system-call filter": msgspec.structs.replace(BARE, filter=bytes(8)),
    "loading the system-call filter ": msgspec.structs.replace(BARE, filter=RETURN_ALLOW * 4097),
}


@pytest.mark.parametrize("step", WRONG)
async def test_a_step_that_fails_is_named_and_nothing_runs(step):
    if "Landlock" in step and not host.landlock:
        pytest.skip("no Landlock here")
    if "root" in step and host.mounts:
        pytest.skip(host.mounts)
    if "user namespace" in step and host.users:
        pytest.skip(host.users)
    async with forge() as made:
        with pytest.raises(CannotConfine) as caught:
            await told(made, WRONG[step], "who")
    assert caught.value.step == step.strip()


async def test_a_child_that_nobody_hears_does_not_run():
    """The kernel died, or has no room for the listener: a server without anyone who knows how it is confined."""
    read, write = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spawn = Spawn(
        number=1,
        confinement=BARE,
        entry="victims:who",
        arguments=(OUT,),
        path=(VICTIMS,),
        targets=(OUT,),
        marker="",
    )
    async with forge() as made:
        ours.close()
        with theirs:
            process: Process = await made._exchange(spawn, [theirs.fileno(), write])
        os.close(write)
        ended = await process.wait()
        process.close()
    assert os.read(read, 1000) == b""
    assert ended == Exit(125)
    os.close(read)


async def test_too_many_descriptors_are_refused_before_anything_is_made():
    read, write = os.pipe()
    async with forge() as made:
        with pytest.raises(CannotConfine) as caught:
            await made.spawn(
                BARE, descriptors=dict.fromkeys(range(5, 80), write), arguments=(), entry="victims:who"
            )
    assert caught.value.step == "handing over descriptors"
    os.close(read)
    os.close(write)
