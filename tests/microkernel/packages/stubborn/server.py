"""Does not want to end."""

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress

from atoll.ipc.serve import Serves

from .interface import Stubborn

_PR_SET_PDEATHSIG = 1


class Server(Serves[Stubborn]):
    @Stubborn.outlive.serve
    def outlive(self) -> int:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
        return os.getpid()

    @Stubborn.leave_child.serve
    def leave_child(self, program: bool) -> int:
        if program:
            return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.closerange(3, 256)
            while True:
                time.sleep(1000)
        return pid

    @Stubborn.bomb.serve
    def bomb(self) -> None:
        if os.fork() == 0:
            while True:
                with suppress(OSError):
                    os.fork()

    @Stubborn.hoard.serve
    def hoard(self) -> None:
        kept = []
        while True:
            kept.append(b"full" * (1 << 18))

    @Stubborn.stay.serve
    def stay(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1000)
