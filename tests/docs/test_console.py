"""The runner of the documentation's commands."""

import os
from pathlib import Path

import pytest

from tests.docs.console import Reader, Run, Write, fits, steps

PAGE = """\
# Page
```python pack/a.py
x = 1
```
```python
not written
```
```console
$ cat pack/a.py
x = 1
$ false
[exit 1]
```
"""


def test_a_page_becomes_steps() -> None:
    assert steps(PAGE) == [
        Write(3, "pack/a.py", "x = 1\n"),
        Run(9, "cat pack/a.py", ("x = 1",)),
        Run(11, "false", (), 1),
    ]


@pytest.mark.parametrize(
    ("expected", "printed", "alike"),
    [
        (("a", "...", "c"), ["a", "b", "b", "c"], True),
        (("a", "...", "c"), ["a", "c"], True),
        (("pid ...",), ["pid 12"], True),
        (("a  b",), ["a      b  "], True),
        (("a",), ["a", "b"], False),
        (("a", "..."), ["b"], False),
        ((), ["unexpected"], False),
        (("...",), [], True),
    ],
)
def test_what_is_printed_is_held_to_what_is_shown(
    expected: tuple[str, ...], printed: list[str], alike: bool
) -> None:
    assert fits(expected, printed) is alike


def test_steps_share_a_folder(tmp_path: Path) -> None:
    reader = Reader(tmp_path, dict(os.environ))
    for step in steps(PAGE):
        reader.perform(step)
    with pytest.raises(AssertionError, match="exit 0, not 3"):
        reader.perform(Run(1, "true", (), 3))


def test_the_next_command_finds_the_shell_that_one_left(tmp_path: Path) -> None:
    reader = Reader(tmp_path, dict(os.environ))
    reader.perform(Run(1, "mkdir there && cd there && export NAME='a b'; false", (), 1))
    reader.perform(Run(2, 'basename "$PWD"; echo "$NAME"', ("there", "a b")))


def test_output_without_a_command_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: output before the first command"):
        steps("```console\nlost\n```\n")
