"""Refuses to start."""

from atoll.ipc.serve import Serves

from .interface import Sulky


class Server(Serves[Sulky]):
    async def start(self) -> None:
        raise ConnectionRefusedError("not today")

    @Sulky.pulse.serve
    def pulse(self) -> int:
        return 0
