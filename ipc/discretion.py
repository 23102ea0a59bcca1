"""What a process tells of an exception that nobody expected.

Its text may quote what was in hand. Where that is what people said in private, only its type is told, and where it was
raised: log lines are rows in the clear, and a caller's error may end in another's log.
"""

import sys
import threading
import traceback
from collections.abc import Iterator

_quiet = False


def keep() -> None:
    """Tell no text of any exception in this process, from now on."""
    global _quiet
    _quiet = True
    sys.unraisablehook = lambda told: print(trace(told.exc_value or told.exc_type()), file=sys.stderr)
    threading.excepthook = lambda told: print(trace(told.exc_value or told.exc_type()), file=sys.stderr)


def kept() -> bool:
    return _quiet


def told(error: BaseException) -> str:
    """In one line."""
    text = "" if _quiet else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def trace(error: BaseException) -> str:
    """With where it was raised."""
    return "".join(_silent(error) if _quiet else traceback.format_exception(error))


def _silent(error: BaseException) -> Iterator[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _silent(before)
        yield "\nand then:\n\n"
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _silent(each)
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__name__} (its text may be private, and is not told)\n"
