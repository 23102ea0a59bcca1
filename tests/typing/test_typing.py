"""What mypy and pyright see of the SDK: inferred types are revealed as stated, and wrong lines are errors.

The files in `samples/` are read by the checkers only. A line that ends in `# reveals: T` must reveal the
type T; one that ends in `# error` must be an error; no other line may be one.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = Path(__file__).parent / "samples"
REVEALS = re.compile(r"# reveals: (?P<type>.*)$")


def expected(sample: Path) -> tuple[dict[int, str], set[int]]:
    """The types to reveal and the lines that are errors, by line number."""
    reveals, faults = {}, set()
    for number, line in enumerate(sample.read_text().splitlines(), 1):
        if found := REVEALS.search(line):
            reveals[number] = found["type"]
        if line.endswith("# error"):
            faults.add(number)
    return reveals, faults


def plain(text: str) -> str:
    """A revealed type without the modules of its names, which the two checkers tell differently."""
    bare = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text).replace("CoroutineType", "Coroutine")
    return bare.removesuffix("?")


def by_mypy(sample: Path, folder: Path) -> tuple[dict[int, str], set[int]]:
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context",
            "--disable-error-code=empty-body", "--cache-dir", str(folder), "--config-file", "/dev/null",
            str(sample),
        ],
        env={"MYPYPATH": str(ROOT / ".types"), "PATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    reveals, faults = {}, set()
    for line in done.stdout.splitlines():
        found = re.match(r"(?P<file>.*?):(?P<line>\d+): (?P<kind>error|note): (?P<text>.*)", line)
        if found is None or Path(found["file"]).name != sample.name:
            continue
        told = re.match(r'Revealed type is "(.*)"$', found["text"])
        if told:
            reveals[int(found["line"])] = plain(told[1])
        elif found["kind"] == "error":
            faults.add(int(found["line"]))
    return reveals, faults


def by_pyright(sample: Path, folder: Path) -> tuple[dict[int, str], set[int]]:
    shutil.copy(sample, folder)
    config = {"extraPaths": [str(ROOT / ".types")], "pythonVersion": "3.11", "include": [sample.name]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright cannot run here: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    reveals, faults = {}, set()
    for told in json.loads(done.stdout)["generalDiagnostics"]:
        line = told["range"]["start"]["line"] + 1
        if told["severity"] == "information":
            found = re.match(r'Type of ".*" is "(.*)"$', told["message"], re.DOTALL)
            if found:
                reveals[line] = plain(found[1])
        elif told["severity"] == "error":
            faults.add(line)
    return reveals, faults


@pytest.mark.timeout(300)
@pytest.mark.parametrize("check", [by_mypy, by_pyright], ids=["mypy", "pyright"])
@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_checkers_infer_and_reject_as_wanted(sample: Path, check: object, tmp_path: Path) -> None:
    assert callable(check)
    reveals, faults = check(sample, tmp_path)
    wanted_reveals, wanted_faults = expected(sample)
    assert faults == wanted_faults
    assert reveals == wanted_reveals
