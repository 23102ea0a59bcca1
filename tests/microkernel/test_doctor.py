"""The doctor: every finding is a trial's, every failure a sentence, nothing is left behind."""

import gc
import os

import msgspec
import pytest

from atoll.microkernel import doctor
from atoll.microkernel.doctor import Diagnosis, Finding
from atoll.microkernel.protection import levels, probe
from atoll.microkernel.protection.plan import mechanisms
from atoll.microkernel.slices import hierarchy


def test_it_speaks_of_every_level_and_mechanism_and_leaves_nothing():
    gc.collect()  # what earlier tests left open
    open_before = len(os.listdir("/proc/self/fd"))
    found = doctor.diagnose()
    whats = [finding.what for finding in found.findings]
    assert {f"level {name}" for name in levels()} <= set(whats)
    for name in mechanisms():
        assert any(what.startswith(f"{name}: stops ") for what in whats)
    assert hierarchy.left_by(doctor.TRIAL) == []
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_what_does_not_work_has_a_reason():
    for finding in doctor.diagnose().findings:
        assert (finding.verdict == "works") == (finding.detail == "")


def test_it_says_what_of_its_keys_rests_on_no_hardware():
    """A file of mode 0600 and the kernel's word stand in for a TPM and for attestation: nobody takes them for these."""
    found = {finding.what: finding for finding in doctor.diagnose().findings}
    attested = found["attestation of servers (SEV-SNP, TDX)"]
    assert attested.verdict == "missing" and attested.detail.startswith("none: a software stand-in")
    tpm = found["TPM"]
    assert (tpm.verdict == "works") == os.path.exists("/dev/tpmrm0")
    assert tpm.verdict == "works" or "files of mode 0600, or are made of a passphrase" in tpm.detail


def test_text_and_json_say_the_same():
    found = doctor.diagnose()
    assert msgspec.json.decode(found.json(), type=Diagnosis) == found
    for finding in found.findings:
        assert finding.what in found.text()
        assert finding.detail in found.text()


@pytest.mark.parametrize(
    ("verdicts", "last"),
    [
        (("works", "partly", "missing"), "missing, and nothing stands in: level sandbox"),
        (("works", "works", "partly"), "every protection level can be had here"),
    ],
)
def test_its_last_line_says_what_nothing_stands_in_for(verdicts, last):
    found = [
        Finding(what=f"level {n}", verdict=v, needed=True) for n, v in zip(levels(), verdicts, strict=True)
    ]
    found.append(Finding(what="GPU", verdict="missing", detail="the CPU stands in"))
    diagnosis = Diagnosis(machine="m", kernel="6.1.0", root=False, findings=tuple(found))
    assert diagnosis.text().splitlines()[-1] == last
    assert [each.what for each in diagnosis.lacking] == ["level sandbox"] * last.startswith("missing")


def test_it_agrees_with_the_probe():
    found = doctor.diagnose()
    assert found.root == probe().root
    landlock = next(finding for finding in found.findings if finding.what.startswith("landlock"))
    assert (landlock.verdict == "missing") == (probe().landlock == 0)
