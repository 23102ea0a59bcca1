"""What a server's code logs by `logging` and structlog becomes log lines with fields, as what it gives `call().log` does.

Lines that are written while a call is in hand bear its method and trace. structlog is not imported for this: it is told
where its events go if the server's package has imported it, and has not told it already.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from atoll.ipc import context, discretion

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes of every record; others are the caller's `extra`."""
_LEVELS = {"critical": "error", "exception": "error", "fatal": "error", "warn": "warning", "notset": "info"}
KNOWN = ("debug", "info", "warning", "error")


def tell(level: str, text: str, fields: dict[str, Any]) -> None:
    """One line, with what the call in hand adds."""
    name = _LEVELS.get(level.lower(), level.lower())
    call = context.current_or_none()
    log = context.Log() if call is None else call.log
    getattr(log, name if name in KNOWN else "info")(
        text, **{str(key): value for key, value in fields.items()}
    )


class Lines(logging.Handler):
    """The handler of the root logger."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, Any] = {name: value for name, value in vars(record).items() if name not in _OWN}
            fields["logger"] = record.name
            if record.exc_info and record.exc_info[1] is not None:
                fields["traceback"] = discretion.trace(record.exc_info[1])
            tell(record.levelname, record.getMessage(), fields)
        except Exception:  # as every handler: who logs must not fail over it
            self.handleError(record)


def listen() -> None:
    """Take what `logging` is given in this process, from level info on."""
    root = logging.getLogger()
    root.addHandler(Lines())
    root.setLevel(logging.INFO)


def listen_to_structlog() -> None:
    """Take structlog's events, if the package uses it and has set up nothing of its own."""
    structlog: Any = sys.modules.get("structlog")
    if structlog is None or structlog.is_configured():
        return

    def take(_: object, name: str, event: MutableMapping[str, Any]) -> None:
        error = event.pop("exc_info", None)
        if error is True or name == "exception":
            error = sys.exc_info()[1]
        if isinstance(error, tuple):
            error = error[1]
        if isinstance(error, BaseException):
            event["traceback"] = discretion.trace(error)
        tell(name, str(event.pop("event", "")), dict(event))
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, take],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=True,
    )
