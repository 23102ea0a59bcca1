"""A node in a service of an ordinary user's, which has a control group of its own: its slices hold. Needs a user's systemd,
and is run in the machine of `make test-vm`."""

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from atoll.microkernel.doctor import TRIAL, Diagnosis
from atoll.microkernel.slices import hierarchy
from tests.microkernel.nodes import IMAGE, PACKAGES, STUBBORN, RealNode, groups_of, wait_for_end
from tests.microkernel.test_many import bomb

SERVICE = ["systemd-run", "--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes"]

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 or not Path(os.environ.get("XDG_RUNTIME_DIR", "/none"), "bus").exists(),
    reason="needs an ordinary user with a systemd of their own: `make test-vm` has one",
)


class Service(RealNode):
    def command(self, *more: str) -> list[str]:
        return [*SERVICE, *super().command(*more)]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, IMAGE.format(level="sandbox", packages=PACKAGES, counter="", more=STUBBORN))


def test_the_doctor_says_that_processors_memory_and_processes_are_bounded(service: Service) -> None:
    words = [*service.command()[: len(SERVICE) + 3], "doctor", "--json"]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = msgspec.json.decode(said, type=Diagnosis)
    (slices,) = [each for each in found.findings if each.what.startswith("slices")]
    assert slices.verdict == "partly"
    assert [
        said for said in ("cpu", "memory", "pids", "io") if f"the {said} controller" in slices.detail
    ] == ["io"]
    assert hierarchy.left_by(TRIAL) == []


def test_a_fork_bomb_stays_in_its_slice(service: Service) -> None:
    service.image.write_text(
        service.image.read_text().replace("[server.stubborn]\n", '[server.stubborn]\nlevel = "process"\n')
    )
    service.boot()
    bomb(service)
    assert service.stop() == 0
    assert service.processes() == []
    assert groups_of(service) == []


def test_a_killed_kernel_leaves_no_process_and_no_group_after_the_next_boot(service: Service) -> None:
    service.boot()
    processes = service.processes()
    service.kill()
    for pid in processes:
        wait_for_end(pid)
    service.boot()
    assert service.stop() == 0
    assert service.processes() == []
    assert groups_of(service) == []
