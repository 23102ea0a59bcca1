"""Both ends of channels and the kernel as threads of one process, under ThreadSanitizer (threads.c): no access of one is
unordered with another's, and what is taken out of the order is found."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .core import NATIVE

SOURCES = ("ring", "bulk", "table", "wait", "channel", "client", "loop", "told", "tape", "methods")
FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-tsan", "-fsanitize=thread")
SHORT = {"honest": 3000, "hostile": 25}
LONG = {"honest": 1_000_000, "hostile": 5000}

PLANTED = {
    "a record is made visible before it is there":
        ("ring.c", "store_release((uint64_t SHARED *)line, position + 1)",
         "store_relaxed((uint64_t SHARED *)line, position + 1)"),
    "room is given back before its bytes are out":
        ("ring.c", "store_release(&ring->consumed->position, ring->position)",
         "store_relaxed(&ring->consumed->position, ring->position)"),
    "the lock of the sending side orders nothing":
        ("channel.h", "store_release(&channel->sending, 0)", "store_relaxed(&channel->sending, 0)"),
}  # fmt: skip


def lacking() -> str:
    """Why ThreadSanitizer does not run here; empty if it does."""
    probe = ["gcc", "-fsanitize=thread", "-x", "c", "-", "-o", "/dev/null"]
    made = subprocess.run(
        probe, input="int main(void) { return 0; }", text=True, capture_output=True, check=False
    )
    return "" if made.returncode == 0 else f"gcc builds nothing with -fsanitize=thread: {made.stderr.strip()}"


WHY_NOT = lacking()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def build(folder: Path, name: str, *, native: Path = NATIVE) -> Path:
    made = folder / name
    made.mkdir()
    extra = ["-DATOLL_RACING_PEER"] if name == "hostile" else []

    def compiled(source: Path) -> Path:
        target = made / f"{source.stem}.o"
        subprocess.run(["gcc", *FLAGS, *extra, f"-I{native}", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        own = [Path(__file__).with_name("threads.c"), *(native / f"{source}.c" for source in SOURCES)]
        objects = list(pool.map(compiled, own))
    wrapped = ("-Wl,--wrap=mmap", "-Wl,--wrap=munmap", "-pthread")
    subprocess.run(["gcc", "-fsanitize=thread", *objects, *wrapped, "-o", made / "threads"], check=True)
    return made / "threads"


def run(program: Path, name: str, times: int) -> subprocess.CompletedProcess[str]:
    words = [
        "setarch",
        "-R",
        str(program),
        name,
        str(times),
    ]  # its shadow memory lies at addresses of its own
    return subprocess.run(words, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("name", SHORT)
def test_no_access_is_unordered_with_another(tmp_path: Path, name: str) -> None:
    ended = run(build(tmp_path, name), name, SHORT[name])
    assert ended.returncode == 0, ended.stderr
    assert "ThreadSanitizer" not in ended.stderr


@pytest.mark.soak
@pytest.mark.parametrize("name", LONG)
def test_no_access_is_unordered_for_long(tmp_path: Path, name: str) -> None:
    ended = run(build(tmp_path, name), name, LONG[name])
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "what",
    [
        what if place == 0 else pytest.param(what, marks=pytest.mark.soak)
        for place, what in enumerate(PLANTED)
    ],
)
def test_what_is_taken_out_of_the_order_is_found(tmp_path: Path, what: str) -> None:
    file, old, new = PLANTED[what]
    native = tmp_path / "native"
    for source in [*NATIVE.glob("*.[ch]"), *NATIVE.glob("interface/*.h")]:
        copy = native / source.relative_to(NATIVE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text()
        if source.name == file:
            assert old in text, f"{file} has changed: plant it elsewhere"
            text = text.replace(old, new)
        copy.write_text(text)
    ended = run(build(tmp_path, "honest", native=native), "honest", SHORT["honest"])
    print(ended.stderr, file=sys.stderr)
    assert "ThreadSanitizer: data race" in ended.stderr
