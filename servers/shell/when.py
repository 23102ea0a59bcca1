"""`--at WHEN`: a moment as a person writes it, as the store takes it."""

import re
import time
from datetime import datetime

from atoll.ipc.errors import BadRequest

DIGITS = 18
"""Of a revision at most: what the store counts in has as many."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def moment(text: str, where: str = "--at") -> int | float | None:
    """A revision (int), a time (float, seconds since the epoch), or None for now. `where`: the option that it is given by.

    A time without an offset is local time. Raises `BadRequest` for anything else.
    """
    if not text:
        return None
    if text.isdecimal() and len(text) <= DIGITS:
        return int(text)
    if age := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])(?: ago)?", text):
        return time.time() - float(age[1]) * UNITS[age[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise BadRequest(
            where=where,
            expected="a revision (1234), a time (2026-05-01T12:00) or an age (10m)",
            got=repr(text),
        ) from None


def since(nanoseconds: int) -> str:
    """How long ago a time was, in two digits' worth of precision: `42s`, `3m`, `5h`, `9d`."""
    seconds = max(0.0, time.time() - nanoseconds / 1e9)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def clock(nanoseconds: int) -> str:
    """A time of day with milliseconds, local, with the date where it is not today's."""
    moment = datetime.fromtimestamp(nanoseconds / 1e9)
    form = "%H:%M:%S.%f" if moment.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S.%f"
    return moment.strftime(form)[:-3]
