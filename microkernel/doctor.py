"""What this host can do for a node, and what stands in for what it cannot. Every line is the result of a
trial."""

import os
import platform
import re
import shutil
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from .protection import Host, levels, probe
from .protection.level import Subject
from .protection.plan import plan, together
from .protection.process import may_lock
from .protection.surroundings import Surroundings, look
from .slices import choose, turns
from .slices.swap import devices

KERNEL_FLOOR = (6, 1)
TRIAL = "doctor"

Verdict = Literal["works", "partly", "missing"]


class Finding(Struct, frozen=True, kw_only=True):
    """One thing a host can do. `detail` says what stands in or what to do where it cannot."""

    what: str
    verdict: Verdict
    detail: str = ""
    needed: bool = False
    """Whether images need it: the kernel's age, a protection level."""


class Diagnosis(Struct, frozen=True, kw_only=True):
    machine: str
    kernel: str
    root: bool
    findings: tuple[Finding, ...]

    @property
    def lacking(self) -> list[Finding]:
        """What is missing that nothing stands in for: a node that needs it does not boot here."""
        return [found for found in self.findings if found.verdict == "missing" and found.needed]

    def json(self) -> bytes:
        return msgspec.json.encode(self)

    def text(self) -> str:
        """For a person: one line a finding, the reason beneath where there is one."""
        marks = {"works": "yes", "partly": "partly", "missing": "no"}
        who = "as root" if self.root else "not root"
        lines = [f"Linux {self.kernel} on {self.machine}, Python {platform.python_version()}, {who}"]
        for finding in self.findings:
            lines.append(f"  {marks[finding.verdict]:<7}{finding.what}")
            if finding.detail:
                lines.append(f"         {finding.detail}")
        lacking = ", ".join(finding.what for finding in self.lacking)
        lines.append(
            f"missing, and nothing stands in: {lacking}"
            if lacking
            else "every protection level can be had here"
        )
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Try everything. Takes some tens of milliseconds and leaves nothing behind."""
    host = probe()
    return Diagnosis(
        machine=platform.machine(),
        kernel=platform.release(),
        root=host.root,
        findings=(
            _kernel(),
            *_mechanisms(host),
            *_levels(host),
            *around(host, look()),
            *_interpreter(host),
            *_slices(),
            *_turns(),
            *_memory(),
            *_swap(),
            *_devices(),
        ),
    )


def _finding(what: str, why: str, partly: str = "", needed: bool = False) -> Finding:
    verdict: Verdict = "missing" if why else "partly" if partly else "works"
    return Finding(what=what, verdict=verdict, detail=why or partly, needed=needed)


def _kernel() -> Finding:
    release = platform.release()
    version = tuple(map(int, re.findall(r"\d+", release)[:2]))
    floor = ".".join(map(str, KERNEL_FLOOR))
    why = "" if version >= KERNEL_FLOOR else f"this is {release}: upgrade the kernel"
    return _finding(f"Linux {floor} or newer", why, needed=True)


def _mechanisms(host: Host) -> list[Finding]:
    found = []
    for level in levels().values():
        for mechanism in level.mechanisms:
            absence = mechanism.absent(host)
            missing = absence.reason if absence and absence.fatal else ""
            partly = mechanism.partial(host) if absence is None else absence.reason
            found.append(_finding(f"{mechanism.name}: stops {mechanism.stops}", missing, partly))
    return found


def _levels(host: Host) -> list[Finding]:
    found = []
    for name in levels():
        made = plan(name, Subject(name=TRIAL), host)
        missing = together(made.missing)
        found.append(_finding(f"level {name}", missing, together(made.weakenings), needed=True))
    return found


def around(host: Host, surroundings: Surroundings) -> list[Finding]:
    """What of the host's surroundings explains that namespaces were refused; none where they were not, or nothing does."""
    refused = any((host.users if not host.root else "", host.mounts, host.processes, host.network))
    said = surroundings.keeps_from(host.root, refused)
    return [_finding("surroundings that leave namespaces to this user", said)] if said else []


def _interpreter(host: Host) -> list[Finding]:
    if not host.closed or not host.root:
        return []
    where = ", ".join(host.closed)
    said = (
        f"{where} is closed to other users: servers see an empty folder there that holds only what they load"
    )
    return [_finding("an interpreter that servers with own users can read", "", said)]


def _slices() -> list[Finding]:
    slices = choose(TRIAL)
    slices.group(TRIAL)
    said = slices.leave()
    lacks = "; ".join((*slices.lacks, *said))
    missing = slices.kind == "none"
    return [_finding(f"slices (control groups: {slices.kind})", lacks if missing else "", lacks)]


def _turns() -> list[Finding]:
    why = turns.lacking()
    partly = f"{why}: it waits for a turn of whoever computes, some milliseconds" if why else ""
    return [_finding("a store that wakes at once beside those that compute (short turns)", "", partly)]


def _memory() -> list[Finding]:
    memory = os.memfd_create("trial", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.close(memory)
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    paging = Path("/dev/userfaultfd").exists() or Path("/proc/sys/vm/unprivileged_userfaultfd").exists()
    return [
        _finding("shared memory that can be sealed", ""),
        _finding(
            "paging in user space (userfaultfd)",
            "" if paging else "this kernel was built without userfaultfd",
        ),
        _finding(
            "shared memory file system",
            "" if free else "/dev/shm is not mounted or is full: other programs may miss it, Atoll does not",
        ),
    ]


def _swap() -> list[Finding]:
    """Servers with private keyspaces are kept from it by a lock, and where control groups can do that."""
    found = devices()
    partly = "locked it cannot be (RLIMIT_MEMLOCK, which this user may not raise)" + (
        f", and {', '.join(found)} takes it where control groups cannot keep it from there: encrypt it"
        if found
        else "; nothing takes swapped memory now"
    )
    return [_finding("memory of private keyspaces that stays in memory", "", "" if may_lock() else partly)]


def _devices() -> list[Finding]:
    gpu = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return [
        _finding("GPU", "" if gpu else "none: the CPU stands in behind the same interface"),
        _finding(
            "TPM",
            ""
            if Path("/dev/tpmrm0").exists()
            else "none: root keys of private keyspaces lie in files of mode 0600, "
            "or are made of a passphrase (`atoll keys show` says of which kind a node's is)",
        ),
        _finding(
            "attestation of servers (SEV-SNP, TDX)",
            "none: a software stand-in, the kernel's word, decides who is given keys of private keyspaces",
        ),
        _finding(
            "virtual machines (KVM)",
            "" if Path("/dev/kvm").exists() else "no /dev/kvm: nothing of this release needs one",
        ),
        _finding(
            "pictures of images (graphviz)",
            ""
            if shutil.which("dot")
            else "no `dot`: `image check --graph` draws text alone (apt-get install graphviz)",
        ),
    ]
