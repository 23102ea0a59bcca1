"""A debugger on this process's terminal, that stops where a handler begins. Imported only where somebody wants it."""

import pdb
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Debugger(pdb.Pdb):
    """It takes lines: what edits lines asks more of a terminal than the sandbox lets it."""

    def __init__(self) -> None:
        super().__init__(stdin=sys.stdin, stdout=sys.stdout, nosigint=True, readrc=False)
        self.use_rawinput = False
        self.prompt = "(replay) "
        self._there = False

    def user_line(self, frame: FrameType) -> None:
        if not self._there:
            self._there = True
            self.clear_all_breaks()  # the one that brought us here
        super().user_line(frame)


@contextmanager
def stopping_at(handler: Callable[..., Any]) -> Iterator[None]:
    """While it is called: stop before its first step."""
    code: Any = handler.__func__.__code__  # type: ignore[attr-defined]
    lines = (line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno)
    debugger = _Debugger()
    debugger.reset()
    debugger.set_break(debugger.canonic(code.co_filename), next(lines, code.co_firstlineno))
    debugger.botframe = sys._getframe()
    debugger.set_continue()
    sys.settrace(debugger.trace_dispatch)
    try:
        yield
    finally:
        sys.settrace(None)
