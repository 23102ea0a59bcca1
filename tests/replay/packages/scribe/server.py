"""Writes one line in each way; with the same text, so that they can be told apart by their fields alone."""

import logging
import threading

import structlog

from atoll.ipc import Serves, current

from .interface import Scribe

LOG = structlog.get_logger()


class Server(Serves[Scribe]):
    @Scribe.write.serve
    def write(self, text: str) -> None:
        current().log.warning(text, by="call", count=1)
        logging.getLogger("scribe").warning("%s", text, extra={"by": "logging"})
        LOG.bind(by="structlog").warning(text, count=3, text="a field")
        try:
            raise ValueError(text)
        except ValueError:
            LOG.exception(text, by="exception")
        other = threading.Thread(target=logging.error, args=(text,), kwargs={"extra": {"by": "thread"}})
        other.start()
        other.join()
