"""A reply that is lost although what was asked for is done: what a caller that gave up, or was too late, leaves behind."""

import threading
from typing import Any

from atoll.ipc.faults import FaultyTransport
from atoll.ipc.future import RawFuture, RawReply
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import Options


class Unheard(FaultyTransport):
    """A way to a server on which the reply to the next call of a method is lost: what it asked for is done."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.method = ""
        self.done = threading.Event()

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        reply = super().start(method, payload, options)
        if method.label != self.method:
            return reply
        self.method = ""
        reply.add_done_callback(self.done.set)
        return RawFuture()
