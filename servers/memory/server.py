"""The memory server: accounting (regions.py) joined to the memory itself (buffers.py)."""

import hmac
from collections import deque

import trio

from atoll.ipc.context import current
from atoll.ipc.errors import BadRequest, QuotaExceeded
from atoll.ipc.serve import Config, Serves

from . import regions
from .buffers import Buffers, Mode
from .interface import Holding, Memory, NotShared, Region, Share, Statistics
from .memfd import MemfdBuffers
from .regions import Limits, Regions


class Settings(Config, frozen=True, kw_only=True):
    pool: int = 256 * 1024 * 1024
    """Bytes of all regions together."""
    per_client: int = 64 * 1024 * 1024
    """Bytes that one client may hold, its own regions and those it opened."""
    regions_per_client: int = 1024


class Server(Serves[Memory]):
    config: Settings

    def __init__(self) -> None:
        self._handles: dict[int, int] = {}
        """Per region, its buffer."""
        self._keys: dict[int, bytes] = {}
        """Per shared region, the key that opens it."""
        self._ended: deque[int] = deque()
        """Regions whose memory is to be given back by `run`."""
        self._work = trio.Event()
        self._reclaimed = self._refused = 0

    def buffers(self) -> Buffers:
        """What makes the memory."""
        return MemfdBuffers()

    async def start(self) -> None:
        config = self.config
        self._regions = Regions(Limits(config.pool, config.per_client, config.regions_per_client))
        self._buffers = self.buffers()

    async def run(self) -> None:
        """Give back what dead clients held: their end is told by a plain call, which cannot wait."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._ended:
                await self._give_back(self._ended.popleft())

    async def stop(self) -> None:
        for handle in self._handles.values():
            await self._buffers.release(handle)
        self._handles.clear()

    def client_gone(self, client: int) -> None:
        """A client's channel closed: let go of all that it held."""
        ended = self._regions.client_gone(client)
        self._reclaimed += len(ended)
        self._ended.extend(region.number for region in ended)
        self._work.set()

    async def _give_back(self, number: int) -> None:
        self._keys.pop(number, None)
        handle = self._handles.pop(number, None)
        if handle is not None:
            await self._buffers.release(handle)
        self._regions.freed(number)

    @Memory.allocate.serve
    async def allocate(self, size: int) -> Region:
        if size <= 0:
            raise BadRequest("Memory.allocate, $.size", "a number of bytes above 0", str(size))
        client = current().client
        try:
            region = self._regions.reserve(client, size)
        except QuotaExceeded:
            self._refused += 1
            raise
        try:
            self._handles[region.number] = await self._buffers.make(region.size)
            return await self._region(region, "writable")
        except BaseException:
            if region.number in self._regions.regions:
                self._regions.leave(region.number, client)
                self._ended.append(region.number)
                self._work.set()
            raise

    @Memory.map.serve
    async def map(self, region: int) -> Region:
        client = current().client
        found = self._regions.find(region, client)
        return await self._region(found, "writable" if client == found.owner else "readonly")

    @Memory.seal.serve
    async def seal(self, region: int) -> Region:
        found = self._owned(region)
        if not found.sealed:
            found.sealed = True
            self._handles[region] = await self._buffers.seal(self._handles[region])
        return await self._region(found, "immutable")

    @Memory.share.serve
    def share(self, region: int) -> Share:
        found = self._owned(region)
        found.shared = True
        if region not in self._keys:
            self._keys[region] = current().new_id()
        return Share(region, self._keys[region])

    @Memory.open.serve
    async def open(self, share: Share) -> Region:
        key = self._keys.get(share.region, b"")
        if not key or not hmac.compare_digest(key, share.key):
            raise NotShared(region=share.region)
        try:
            found = self._regions.join(share.region, current().client)
        except QuotaExceeded:
            self._refused += 1
            raise
        return await self._region(found, "readonly")

    @Memory.release.serve
    async def release(self, region: int) -> bool:
        ended = self._regions.leave(region, current().client)
        if ended is not None:
            await self._give_back(region)
        return ended is not None

    @Memory.mine.serve
    def mine(self) -> list[Holding]:
        client = current().client
        return [
            Holding(each.number, each.size, each.owner == client, each.sealed, len(each.holders))
            for each in self._regions.regions.values()
            if client in each.holders
        ]

    @Memory.statistics.serve
    def statistics(self) -> Statistics:
        return Statistics(
            pool=self.config.pool,
            used=self._regions.used,
            regions=len(self._regions.regions),
            clients=len(self._regions.accounts),
            reclaimed=self._reclaimed,
            refused=self._refused,
        )

    def _owned(self, number: int) -> regions.Region:
        """Raises NotFound, BadRequest."""
        client = current().client
        found = self._regions.find(number, client)
        if found.owner != client:
            raise BadRequest("a region", "one that the caller owns", f"region {number}, which it only opened")
        return found

    async def _region(self, found: regions.Region, mode: Mode) -> Region:
        mode = "immutable" if found.sealed else mode
        return Region(found.number, found.size, await self._buffers.view(self._handles[found.number], mode))
