"""The wheel: built once, installed into an empty virtual environment away from the checkout, and run
there.
"""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent.parent


def done(*command: str | Path, cwd: Path) -> str:
    """Run it; what it printed."""
    run = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 0, f"{command}: exit {run.returncode}\n{run.stdout}{run.stderr}"
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, without what git ignores: building there would leave `build/`."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    files = done("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=HOUSE).splitlines()
    for name in files:
        here, there = HOUSE / name, source / name
        if here.is_file() and not here.is_symlink():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(here.read_bytes())
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", folder)
    done(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    built = list(folder.glob("*.whl"))
    assert len(built) == 1
    return built[0]


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a virtual environment that holds the wheel and what it depends on, in the locked
    versions.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    lock = folder / "constraints.txt"
    pins = [
        line.split(" ")[0] for line in (HOUSE / "requirements.lock").read_text().splitlines() if "==" in line
    ]
    lock.write_text("\n".join(pins))
    done(programs / "python", "-m", "pip", "install", "--quiet", "-c", lock, wheel, cwd=folder)
    return programs


def test_one_wheel_for_every_python_from_3_11(wheel: Path) -> None:
    assert "-cp311-abi3-linux_" in wheel.name


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "atoll/native/_core.abi3.so" in names
    assert "atoll/servers/shell/templates/server.py.template" in names
    assert not [name for name in names if name.startswith("tests") or name.endswith((".c", ".h"))]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"atoll"}


def test_it_runs_away_from_the_checkout(elsewhere: Path) -> None:
    where = elsewhere.parent
    assert "Usage: atoll" in done(elsewhere / "atoll", "--help", cwd=where)
    found = done(
        elsewhere / "python", "-c", "import atoll.native._core as core; print(core.__file__)", cwd=where
    )
    assert found.startswith(str(where))


def test_doctor_runs_there(elsewhere: Path) -> None:
    where = elsewhere.parent
    assert "level sandbox" in done("sh", "-c", f"{elsewhere}/atoll doctor || test $? = 10", cwd=where)


def test_a_node_boots_there(elsewhere: Path, tmp_path: Path) -> None:
    """The image comes with the wheel: a person has no checkout."""
    home = f"env ATOLL_HOME={tmp_path} {elsewhere}/atoll"
    where = elsewhere.parent
    assert "minimal serves: boot 1" in done(*f"{home} boot minimal --detach --degrade".split(), cwd=where)
    try:
        assert "storage" in done(*f"{home} ps".split(), cwd=where)
    finally:
        assert done(*f"{home} shutdown".split(), cwd=where) == "minimal is down\n"
    assert done(*f"{home} check minimal".split(), cwd=where).endswith(": whole\n")


def test_a_server_is_written_and_tested_there(elsewhere: Path) -> None:
    where = elsewhere.parent
    done(elsewhere / "atoll", "new", "server", "gauge", cwd=where)
    program = """\
from atoll.ipc import testing
from gauge.server import Server
with testing.node(Server) as server:
    print(server.add.now("x"))
"""
    assert done(elsewhere / "python", "-c", program, cwd=where) == "1\n"
