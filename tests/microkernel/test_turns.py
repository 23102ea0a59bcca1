"""Short turns: of the store's writer and of nobody else in a node, and what is said where the host has none."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.microkernel import doctor
from atoll.microkernel.slices import turns
from atoll.microkernel.slices.turns import SHORT, lacking, shorten

from .test_readers import node_with_readers, with_reader

LENGTH = 5
"""Which of the attributes is the length of a turn."""
NICE = 3
CHILD = (
    "import subprocess, sys; input(); subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
)

had_here = pytest.mark.skipif(bool(lacking()), reason=lacking())


def length_of(pid: int) -> int:
    return turns._get(pid)[LENGTH]


@had_here
def test_a_process_has_them_with_all_that_it_starts_and_is_else_as_it_was() -> None:
    words = [sys.executable, "-c", CHILD]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        os.setpriority(os.PRIO_PROCESS, child.pid, 5)
        usual = turns._get(child.pid)
        assert shorten(child.pid) == ""
        found = turns._get(child.pid)
        assert found[LENGTH] == SHORT != usual[LENGTH]
        assert found[:LENGTH] == usual[:LENGTH] and found[NICE] == 5
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "1\n"
        (started,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert length_of(int(started)) == SHORT
        child.stdin.write("\n")


@had_here
def test_a_look_whether_they_can_be_had_changes_nothing() -> None:
    before = turns._get(0)
    assert lacking() == ""
    assert turns._get(0) == before


@had_here
def test_the_stores_writer_has_them_and_nobody_else(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        with_reader(me, me.keyspace("ledger"))
        lengths = {row.server: length_of(row.pid) for row in me.kernel.ps.now()}
    assert lengths.pop("state") == SHORT
    assert len(lengths) >= 2 and SHORT not in lengths.values()


@pytest.mark.parametrize("host", ["an older kernel", "another machine", "one that refuses"])
def test_where_there_are_none_a_sentence_says_so(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if host == "an older kernel":  # takes the length, and tells of none
        usual = struct.pack("=IIQiIQQQ", 48, 0, 0, 0, 0, 0, 0, 0)
        monkeypatch.setattr(turns, "_call", lambda which, pid, told, *_: setattr(told, "raw", usual))
    elif host == "another machine":
        monkeypatch.setattr(turns, "_NUMBERS", {})
    else:
        monkeypatch.setattr(turns, "_NUMBERS", {os.uname().machine: (-1, -1)})
    assert shorten(0) and lacking()
    (found,) = [each for each in doctor.diagnose().findings if "short turns" in each.what]
    assert found.verdict == "partly" and found.detail.startswith(lacking())
