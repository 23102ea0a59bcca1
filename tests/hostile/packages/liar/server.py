"""Lies to whoever asks. (Raw cffi.)"""

import gc

from atoll.ipc.context import current
from atoll.ipc.deferred import Deferred
from atoll.ipc.runtime.control_socket import ControlSocket
from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.serve import Serves
from atoll.ipc.system import control
from atoll.native import Kind, lib

from .interface import Liar

NORMAL = 1


class Server(Serves[Liar]):
    @Liar.lie.serve
    def lie(self) -> None:
        loop = next(found for found in gc.get_objects() if isinstance(found, ServeLoop))
        lib.atoll_loop_reply(loop.c, current().client, 1, NORMAL, Kind.CALL, b"", 0)

    @Liar.accuse.serve
    def accuse(self) -> Deferred[None]:
        self._say(control.Misbehaved(channel=current().client, check="nothing at all"))
        return Deferred()

    @Liar.babble.serve
    def babble(self) -> None:
        self._say(control.Hello(name="me"))

    @staticmethod
    def _say(message: control.Message) -> None:
        end = next(found for found in gc.get_objects() if isinstance(found, ControlSocket))
        end.socket.send(control.encode(message))
