"""The attach socket under attack: nobody gets in by it who is not let in, or as somebody else."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.ipc.attach import SOCKET, Unwelcome
from atoll.ipc.attach import Node as Attached
from atoll.ipc.system import control
from atoll.microkernel.gate import GREETED_MOST
from tests.kit.groups import control_groups
from tests.microkernel.children import planned
from tests.microkernel.nodes import RealNode

PACKAGES = Path(__file__).parent / "packages"
sys.path.insert(0, str(PACKAGES))

from hostile.interface import Hostile  # noqa: E402

ROOT = os.geteuid() == 0
GROUPS = control_groups()
root_only = pytest.mark.skipif(not ROOT, reason="needs root: it takes another user id")

IMAGE = """
[image]
name = "besieged"

[node]
level = "process"

[server.state]
needs = {{}}

[server.hostile]
package = "{packages}/hostile"
level = "{level}"
needs = {{ out = {{ folder = "out" }} }}
{hostile}
{more}
"""
NO_UID = 'drop = [{ mechanism = "own-uid", reason = "so that its user id does not give it away" }]'
ENTRIES = """
[[attach]]
uid = 4242
may = [{ server = "hostile", rights = ["do"] }]
[[attach]]
uid = 4244
may = [{ server = "hostile", rights = [] }]
"""
WITHOUT_PEERPIDFD = """
import runpy, sys
from atoll.microkernel import peers
peers.SO_PEERPIDFD = 0x7fff  # what a kernel before 6.5 makes of it: no such option
sys.argv[0] = "atoll.microkernel"
runpy.run_module("atoll.microkernel", run_name="__main__", alter_sys=True)
"""


class OldHost(RealNode):
    """A node whose kernel runs on a host that cannot give a pidfd of who connected."""

    def command(self, *more: str) -> list[str]:
        python, _, _, *rest = super().command(*more)
        return [python, "-c", WITHOUT_PEERPIDFD, *rest]


class WithoutGroups(RealNode):
    """A node whose kernel finds no control groups: in its mount namespace they are covered."""

    INSIDE: tuple[str, ...] = (
        "unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"', "sh",
    )  # fmt: skip

    def command(self, *more: str) -> list[str]:
        return [*self.INSIDE, *super().command(*more)]


class OfAUser(WithoutGroups):
    """A node that an ordinary user boots: in a user namespace that calls its user 1000."""

    INSIDE = (*WithoutGroups.INSIDE, "unshare", "--user", "--map-user=1000")


@contextmanager
def besieged(
    level: str = "process", *, hostile: str = "", more: str = "", kind: type[RealNode] = RealNode
) -> Iterator[RealNode]:
    """A node with a hostile server, in a folder that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="atoll-escape-") as folder:
        os.chmod(folder, 0o755)
        node = kind(Path(folder), IMAGE.format(packages=PACKAGES, level=level, hostile=hostile, more=more))
        node.boot()
        try:
            yield node
        finally:
            if node.kernel is not None:
                assert node.stop() == 0, "\n".join(node.said)


def skip_without(level: str) -> None:
    plan = planned(level)
    if plan.missing:
        pytest.skip(f"level {level} is not possible here: {'; '.join(map(str, plan.missing))}")


@pytest.mark.parametrize("level", ["process", "seccomp", "sandbox"])
@pytest.mark.parametrize("hostile", ["", NO_UID], ids=["own-uid", "no-uid"])
def test_a_server_does_not_get_in(level: str, hostile: str) -> None:
    """Also where it runs as whoever booted: it is known by its process, before its user."""
    if hostile and not ROOT:
        pytest.skip("without root no server has a user id of its own to do without")
    skip_without(level)
    with besieged(level, hostile=hostile) as node, node.attach() as attached:
        said = attached.open("hostile", Hostile).attach.now(str(node.folder))
        assert not said.startswith("in"), said
        if "may not attach" in said:
            (refused,) = [row for row in attached.kernel.refused.now("hostile") if row.by == "attach"]
            assert "may not attach" in refused.what


def what_it_left_behind_says(node: RealNode, attached: Attached, *, ends: bool = False) -> str:
    """What comes of it when a grandchild of the hostile server attaches, whose server is dead. `ends`: a control group has
    it end before the server is started again, maybe before it could say anything."""
    assert attached.open("hostile", Hostile).leave_behind.now(str(node.folder)) == "left"
    pid = next(row.pid for row in attached.kernel.ps.now() if row.server == "hostile")
    os.kill(pid, signal.SIGKILL)
    said = node.folder / "data" / "hostile" / "out" / "said"
    over = False
    while not said.exists() and not over:
        over = ends and any(row.restarts for row in attached.kernel.ps.now() if row.server == "hostile")
        time.sleep(0)
    return said.read_text() if said.exists() else ""


@pytest.mark.parametrize("level", ["process", "seccomp"])
@pytest.mark.parametrize("hostile", ["", NO_UID], ids=["own-uid", "no-uid"])
def test_what_a_server_left_behind_does_not_get_in(level: str, hostile: str) -> None:
    """A grandchild that outlived its server: its user id gives it away, or its control group. Without either a server
    at `process` does get in (below): that is what boot says, and docs/limits.md."""
    if hostile and not ROOT:
        pytest.skip("without root no server has a user id of its own to do without")
    skip_without(level)
    with besieged(level, hostile=hostile) as node, node.attach() as attached:
        if level != "process":
            left = attached.open("hostile", Hostile).leave_behind.now(str(node.folder))
            assert left.startswith("stopped"), left
            return
        said = what_it_left_behind_says(node, attached, ends=GROUPS)
        assert said.startswith("in") is not (GROUPS or ROOT), said


@root_only
@pytest.mark.parametrize("kind", [WithoutGroups, OfAUser])
@pytest.mark.parametrize("hostile", ["", NO_UID], ids=["own-uid", "no-uid"])
def test_where_nothing_gives_it_away_what_a_server_left_behind_gets_in(
    kind: type[WithoutGroups], hostile: str
) -> None:
    """No control group, and the user id of whoever booted, who is an operator. Boot says so; and only there: what root
    boots has a user id of its own, or nobody's, and neither is let in."""
    if subprocess.run([*kind.INSIDE, "true"], check=False, capture_output=True).returncode:
        pytest.skip(f"the host does not let root run {' '.join(kind.INSIDE[:2])}")
    with besieged(hostile=hostile, kind=kind, more=ENTRIES) as node, node.attach() as attached:
        said = what_it_left_behind_says(node, attached)
        warned = any(line.startswith("weakened: node: attach check: ") for line in node.said)
        assert (said.startswith("in"), warned) == (kind is OfAUser,) * 2, (said, node.said)
        if kind is WithoutGroups:
            assert ("no [[attach]] that fits" if hostile else "is a server's") in said


AS_ANOTHER = """
import os, sys
sys.path.insert(0, {packages!r})
from atoll.ipc.attach import connect  # while the way to it is open
from hostile.interface import Hostile
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
try:
    with connect({node!r}) as attached:
        print("in", [given.server for given in attached.welcome.given], attached.welcome.operator)
        print("called", attached.open("hostile", Hostile).attach.now(""))
        print(attached.kernel.ps.now())
except Exception as error:
    print(type(error).__name__, error)
"""


def as_another(node: RealNode, uid: int) -> list[str]:
    """What a program of another user prints that attaches."""
    script = AS_ANOTHER.format(uid=uid, packages=str(PACKAGES), node=str(node.folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


@root_only
def test_another_user_is_let_in_only_by_an_entry_of_the_image() -> None:
    with besieged() as closed:
        assert as_another(closed, 4242)[0].startswith("NotAllowed")
    with besieged(more=ENTRIES) as node:
        first, second, third = as_another(node, 4242)
        assert first == "in ['hostile'] False"
        assert second.startswith("called")
        assert "NotAllowed" in third and "observe" in third, "only an operator sees what the node is"
        first, second = as_another(node, 4244)
        assert first == "in ['hostile'] False"
        assert "NotAllowed" in second and "'do'" in second
        (said,) = as_another(node, 4243)
        assert "user id 4243 may not attach" in said
        with node.attach() as attached:
            uid = next(row.uid for row in attached.kernel.ps.now() if row.server == "hostile")
            (said,) = as_another(node, uid)
            assert "is a server's" in said
            whose = {row.server: row.what for row in attached.kernel.refused.now() if row.by == "attach"}
        assert "no [[attach]] that fits" in whose["uid 4243"]
        assert "is a server's" in whose["hostile"]


def test_a_child_that_keeps_the_socket_of_a_dead_program_is_not_that_program() -> None:
    with besieged() as node, node.attach() as observer:
        left, right = socket.socketpair()
        first = os.fork()
        if not first:
            left.close()
            attached = node.attach()
            if os.fork():
                os._exit(0)
            right.send(str(attached.welcome.attachment).encode())
            right.recv(1)
            os._exit(0)
        right.close()
        os.waitpid(first, 0)
        number = int(left.recv(100))
        while number in {row.number for row in observer.kernel.attachments.now()}:
            pass
        left.close()


def test_an_old_host_lets_in_who_shows_that_it_lives() -> None:
    with besieged(kind=OldHost) as node, node.attach() as attached:
        assert next(row.pid for row in attached.kernel.attachments.now()) == os.getpid()


LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def may_choose_numbers() -> bool:
    """Whether this user may say which number the next process gets."""
    try:
        LAST_PID.write_text(LAST_PID.read_text())
    except OSError:
        return False
    return True


@pytest.mark.skipif(not may_choose_numbers(), reason="needs root: it chooses the next process's number")
def test_on_an_old_host_nobody_gets_in_under_a_number_that_was_used_again() -> None:
    """A program connects, leaves its socket to another one, and ends; its number goes to an innocent one. What /proc
    says of that number is the innocent's, and would be believed of whoever has the socket."""
    with besieged(kind=OldHost) as node:
        end, innocent = inherited(node)
        try:
            end.send(control.encode(control.Hello(name="impostor")))
            challenge = control.to_process.decode(end.recv(65536))
            assert isinstance(challenge, control.Prove)
            end.send(control.encode(control.Proof(challenge=challenge.challenge)))
            answer = control.to_process.decode(end.recv(65536))
            assert isinstance(answer, control.Unwelcome)
            assert "still the same process" in answer.sentence
        finally:
            end.close()
            innocent.kill()
            innocent.wait()


def inherited(node: RealNode) -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    """A socket on which a program connected that has ended, and the program that has its number now. The kernel sees neither
    before both are there."""
    assert node.kernel is not None
    while True:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        node.kernel.send_signal(signal.SIGSTOP)
        try:
            first = os.fork()
            if not first:
                end.connect(str(node.folder / SOCKET))
                os._exit(0)
            os.waitpid(first, 0)
            innocent = again(first)
        finally:
            node.kernel.send_signal(signal.SIGCONT)
        if innocent is not None:
            return end, innocent
        end.close()


def again(pid: int) -> "subprocess.Popen[bytes] | None":
    """A program that has the number of one that ended; None: another one was given it, and may have it for long."""
    while True:
        LAST_PID.write_text(str(pid - 1))
        made = subprocess.Popen(["/bin/sleep", "infinity"])
        if made.pid == pid:
            return made
        made.kill()
        made.wait()
        if Path(f"/proc/{pid}").exists():
            return None


@pytest.mark.skipif(not may_choose_numbers(), reason="needs root: it chooses the next process's number")
def test_a_number_that_a_stranger_was_given_meanwhile_is_not_waited_for() -> None:
    """Beside other tests, which start processes too: one of them once had it for as long as a test may take."""
    with subprocess.Popen(["/bin/sleep", "infinity"]) as stranger:
        try:
            assert again(stranger.pid) is None
        finally:
            stranger.kill()


def test_who_does_not_go_on_keeps_only_his_own_kind_out() -> None:
    """Programs that connect and say nothing hold descriptors of the kernel's: so many of one user, and no more."""
    with besieged() as node:
        silent = []
        try:
            for _ in range(GREETED_MOST):
                end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                end.connect(str(node.folder / SOCKET))
                silent.append(end)
            with pytest.raises(Unwelcome, match="on their way in already"):
                node.attach()
        finally:
            for end in silent:
                end.close()
        while True:
            try:
                node.attach().close()
                return
            except Unwelcome:
                continue
