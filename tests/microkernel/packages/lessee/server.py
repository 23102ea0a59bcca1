"""Leases device memory."""

from atoll.ipc.serve import Serves
from atoll.servers.gpu.interface import BeyondSlice, Gpu

from .interface import Lessee


class Server(Serves[Lessee]):
    gpu: Gpu

    def __init__(self) -> None:
        self._leases: list[int] = []

    @Lessee.take.serve
    async def take(self, memory: int) -> str:
        try:
            for lease in self._leases:
                await self.gpu.renew(lease, 60.0)
            made = await self.gpu.acquire("accelerator", memory)
        except BeyondSlice as error:
            return str(error)
        self._leases.append(made.id)
        time = "" if made.time is None else f", time {made.time}"
        return f"standing {made.standing}, within {' '.join(made.within)}{time}"
