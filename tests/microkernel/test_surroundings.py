"""Hosts that keep namespaces from a node: Ubuntu's rule for ordinary users, told of by its files; Docker's, by the filter
and the capabilities that it gives a container's root."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from atoll.microkernel import doctor
from atoll.microkernel.doctor import Diagnosis
from atoll.microkernel.protection import Host, probe
from atoll.microkernel.protection.host import interpreter_paths, outermost
from atoll.microkernel.protection.surroundings import APPARMOR_RULE, look

from .nodes import PACKAGES, RealNode, interface

Counter = interface("counter", "Counter")

FREE = msgspec.structs.replace(probe(), users="", mounts="", processes="", network="", ipc="", hostname="")
CLOSED = msgspec.structs.replace(FREE, mounts="mounting its root failed: Permission denied")


def host_of(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def said(host: Host, root: bool, folder: Path) -> str:
    found = doctor.around(msgspec.structs.replace(host, root=root), look(folder))
    return found[0].detail if found else ""


UBUNTU = {f"proc/sys/{APPARMOR_RULE.replace('.', '/')}": "1\n"}
SOME_CONTAINERS = {"docker": {".dockerenv": ""}, "podman": {"run/.containerenv": ""},
                   "lxc": {"run/systemd/container": "lxc\n"}}  # fmt: skip


def test_ubuntus_rule_is_named_to_an_ordinary_user_and_to_nobody_else(tmp_path: Path) -> None:
    folder = host_of(tmp_path, UBUNTU)
    assert f"sysctl {APPARMOR_RULE} is 1" in said(CLOSED, False, folder)
    assert said(CLOSED, True, folder) == ""
    assert said(FREE, False, folder) == "", "an AppArmor profile may let this Python through"
    host_of(tmp_path, dict.fromkeys(UBUNTU, "0\n"))
    assert said(CLOSED, False, folder) == ""


@pytest.mark.parametrize("kind", SOME_CONTAINERS)
@pytest.mark.parametrize("root", [True, False])
def test_a_container_is_named_where_it_refuses(tmp_path: Path, kind: str, root: bool) -> None:
    folder = host_of(tmp_path, SOME_CONTAINERS[kind])
    assert said(CLOSED, root, folder).startswith(f"this is a {kind} container")
    assert said(FREE, root, folder) == ""
    assert said(CLOSED, root, tmp_path / "elsewhere") == ""


DOCKER_KEEPS = (
    "chown", "dac_override", "fsetid", "fowner", "mknod", "net_raw", "setgid", "setuid", "setfcap", "setpcap",
    "net_bind_service", "sys_chroot", "kill",
)  # fmt: skip
AS_DOCKER = """
import errno, os, sys
import pyseccomp as s
table = s.SyscallFilter(s.ALLOW)
for call in ("mount", "umount2", "move_mount", "fsmount", "open_tree", "unshare", "setns", "pivot_root", "keyctl",
             "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd"):
    table.add_rule(s.ERRNO(errno.EPERM), call)
for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    table.add_rule(s.ERRNO(errno.EPERM), "clone", s.Arg(0, s.MASKED_EQ, bit, bit))
table.add_rule(s.ERRNO(errno.ENOSYS), "clone3")
table.load()
os.execv(sys.executable, [sys.executable, "-m", "atoll.microkernel", *sys.argv[1:]])
"""
"""What moby's default profile refuses a container's root of what a node asks for (github.com/moby/profiles,
seccomp/default.json): mounts, namespaces, keyrings."""


SHOWN = """
set -eu
kept=/mnt; mount -t tmpfs tmpfs $kept
number=0
for path in {needed}; do
    number=$((number + 1)); mkdir $kept/$number; mount --rbind $path $kept/$number
done
for folder in {closed}; do mount -t tmpfs -o mode=755 tmpfs $folder; done
number=0
for path in {needed}; do
    number=$((number + 1)); mkdir -p $path; mount --rbind $kept/$number $path
done
exec "$@"
"""
"""A container's Python lies where everybody may read it: whatever is closed on the way to this one is covered by folders
that are open."""


def docker_command(*words: str) -> list[str]:
    host = probe()
    used = outermost({sys.base_prefix, *interpreter_paths()})
    needed = [path for path in used if any(Path(path).is_relative_to(closed) for closed in host.closed)]
    shown = SHOWN.format(needed=" ".join(needed), closed=" ".join(host.closed))
    caps = ",".join(["-all", *(f"+{name}" for name in DOCKER_KEEPS)])
    return ["unshare", "--mount", "sh", "-c", shown, "sh", "setpriv", f"--bounding-set={caps}",
            f"--inh-caps={caps}", sys.executable, "-c", AS_DOCKER, *words]  # fmt: skip


class InDocker(RealNode):
    def command(self, *more: str) -> list[str]:
        _, _, _, *rest = super().command(*more)
        return docker_command(*rest)


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root, and setpriv to give up most of it",
)

IMAGE = """
[image]
name = "contained"
[keyspace.counter]
[server.state]
level = "process"
needs = {{}}
[server.counter]
package = "{packages}/counter"
level = "{level}"
needs = {{ rows = {{ keyspace = "counter", rights = ["read", "write"] }} }}
"""


@needs_root
def test_the_doctor_says_what_dockers_root_can_have() -> None:
    done = subprocess.run(docker_command("doctor", "--json"), capture_output=True, text=True, check=False)
    found = msgspec.json.decode(done.stdout, type=Diagnosis)
    assert found.root
    verdicts = {each.what: each for each in found.findings}
    assert verdicts["level process"].verdict != "missing"
    assert verdicts["level seccomp"].verdict != "missing"
    assert "namespaces may not be made here: not permitted (a container" in verdicts["level sandbox"].detail


@pytest.fixture
def folder() -> Iterator[Path]:
    """Every user can reach it, as in a container."""
    with tempfile.TemporaryDirectory(prefix="atoll-docker-") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@needs_root
@pytest.mark.parametrize(
    ("asked", "got", "flags"),
    [("process", "process", ()), ("seccomp", "seccomp", ()), ("sandbox", "seccomp", ("--degrade",))],
)
def test_a_node_in_docker_boots_at_the_lower_levels(
    folder: Path, asked: str, got: str, flags: tuple[str, ...]
) -> None:
    node = InDocker(folder, IMAGE.format(packages=PACKAGES, level=asked))
    node.boot(*flags)
    try:
        with node.attach() as attached:
            assert attached.open("counter", Counter).add.now("x") == 1
            assert next(row for row in attached.kernel.ps.now() if row.server == "counter").level == got
    finally:
        assert node.stop() == 0


@needs_root
def test_a_sandbox_in_docker_is_refused_by_name(folder: Path) -> None:
    node = InDocker(folder, IMAGE.format(packages=PACKAGES, level="sandbox"))
    with pytest.raises(AssertionError, match=r"counter cannot run at level sandbox: .*a container"):
        node.boot()
