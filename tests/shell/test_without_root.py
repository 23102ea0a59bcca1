"""An ordinary user's node, on this host as it is and where no user namespaces may be made: what works, works; what
does not is one sentence.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.servers.shell import exits
from tests.shell.conftest import HOUSE, PROGRAM, Shell, shell

NOBODY = 65534
NEEDED = ("setpriv", "unshare", "nsenter")


class OtherUser(Shell):
    """A shell whose commands run as a user without privileges, in a user namespace where one is given."""

    namespace = ""

    def run(self, *words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        there = ["nsenter", f"--user={self.namespace}", "-S0", "-G0"] if self.namespace else []
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        return subprocess.run(
            [*there, *user, sys.executable, "-P", str(PROGRAM), *words],
            cwd=self.folder,
            env=self.environment | more,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def user() -> Iterator[OtherUser]:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; the other tests run without root as they are")
    if lacking := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"the host has no {', '.join(lacking)}")
    with shell() as ours:
        os.chown(ours.folder, NOBODY, NOBODY)
        theirs = OtherUser(ours.folder, ours.environment | {"PYTHONDONTWRITEBYTECODE": "1"})
        if theirs.run("doctor").returncode not in (exits.OK, exits.FINDINGS):
            pytest.skip("other users cannot read the interpreter or the code that runs this test")
        yield theirs


@pytest.fixture
def closed(user: OtherUser) -> Iterator[OtherUser]:
    """In a user namespace with the host's users, in which no further one may be made."""
    with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE) as keeper:
        inside = Path(f"/proc/{keeper.pid}/ns/user")
        while inside.readlink() == Path("/proc/self/ns/user").readlink():
            time.sleep(0)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{keeper.pid}/{name}").write_text("0 0 65536")
        none = "echo 0 > /proc/sys/user/max_user_namespaces"
        subprocess.run(["nsenter", f"--user={inside}", "-S0", "-G0", "sh", "-c", none], check=True)
        user.namespace = str(inside)
        yield user
        keeper.communicate()


def boot(user: OtherUser, *options: str) -> subprocess.CompletedProcess[str]:
    image = str(HOUSE / "images" / "minimal.toml")
    return user.run("boot", image, "--folder", "node", "--detach", *options)


def weakened(user: OtherUser, server: str) -> dict[str, str]:
    told = user.json("protection", "show", server)["weakenings"]
    return {weakening["mechanism"]: weakening["reason"] for weakening in told}


def test_every_level_boots_without_root(user: OtherUser) -> None:
    done = boot(user)
    assert done.returncode == exits.OK, done.stdout + done.stderr
    try:
        assert "weakened: state, storage: own-uid: only root can give users away" in done.stdout
        assert user.row("storage")["level"] == "sandbox"
        assert "only root" in weakened(user, "storage")["own-uid"]
        user.said("new", "server", "tally")
        user.said("load", "tally", "tally")
        assert user.said("call", "tally", "add", '["rain"]') == "1\n"
    finally:
        assert user.said("shutdown") == "minimal is down\n"
    assert user.said("check", "node").endswith(": whole\n")


def test_without_user_namespaces_a_sandbox_is_refused_or_degraded(closed: OtherUser) -> None:
    done = boot(closed)
    assert done.returncode == exits.WRONG_INPUT
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("atoll: storage cannot run at level sandbox: users, mounts, processes, ")
    assert sentence.count("namespaces may not be made here") == 1
    assert sentence.endswith("choose a lower level, or boot with --degrade")
    degraded = boot(closed, "--degrade")
    assert degraded.returncode == exits.OK, degraded.stdout + degraded.stderr
    try:
        assert "weakened: storage: level: seccomp stands in for sandbox (" in degraded.stdout
        told = closed.json("protection", "show", "storage")
        assert (told["wanted"], told["level"]) == ("sandbox", "seccomp")
        assert weakened(closed, "storage")["level"].startswith("seccomp stands in for sandbox")
        closed.said("new", "server", "tally")
        assert "--degrade" not in closed.refused(exits.DECLARED, "load", "tally", "tally")
        assert "at level seccomp" in closed.said("load", "tally", "tally", "--degrade")
    finally:
        assert closed.said("shutdown") == "minimal is down\n"
