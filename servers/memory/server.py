"""The memory server: accounting (regions.py) joined to the memory itself (buffers.py).

Steps that move a region's memory (sealing it, giving it back) hold `_moving`, and look at the region again
once they have it. Everything else runs without a break from the look to the encoded reply.
"""

import hmac
import os
from collections import deque

import trio

from atoll.ipc.context import current
from atoll.ipc.errors import BadRequest, NotFound, QuotaExceeded
from atoll.ipc.serve import Config, Serves

from . import regions
from .buffers import Buffers, KernelBuffers, Mode
from .interface import Holding, Memory, NotShared, Region, Share, Statistics
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
        self._keys: dict[int, dict[bytes, bool]] = {}
        """Per shared region, the keys that open it, and whether for writing."""
        self._moving = trio.Lock()
        self._ended: deque[int] = deque()
        """Regions whose memory is to be given back by `run`."""
        self._work = trio.Event()
        self._reclaimed = self._refused = 0

    def buffers(self) -> Buffers:
        """What makes the memory: a test of this server without a kernel gives another."""
        return KernelBuffers()

    async def start(self) -> None:
        config = self.config
        # A number that a client kept from before a crash must not name another region now.
        first = int.from_bytes(os.urandom(6), "big") + 1
        self._regions = Regions(Limits(config.pool, config.per_client, config.regions_per_client), first)
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
        async with self._moving:
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
            handle = await self._buffers.make(region.size)
        except BaseException:
            if region.number in self._regions.regions:
                self._regions.leave(region.number, client)
                self._ended.append(region.number)
                self._work.set()
            raise
        if region.number not in self._regions.regions:  # its owner died meanwhile
            await self._buffers.release(handle)
            raise _not_yours(region.number)
        self._handles[region.number] = handle
        return self._told(region)

    @Memory.map.serve
    async def map(self, region: int) -> Region:
        return self._told(self._regions.find(region, current().client))

    @Memory.seal.serve
    async def seal(self, region: int) -> Region:
        async with self._moving:
            found = self._owned(region)
            if not found.sealed:
                old = self._handle(region)
                self._handles[region] = new = await self._buffers.seal(old)
                if region in self._regions.regions:  # else its last holder died meanwhile
                    self._regions.seal(region)
                if new != old:
                    await self._buffers.release(old)
        return self._told(self._regions.find(region, current().client))

    @Memory.share.serve
    def share(self, region: int, writable: bool = False) -> Share:
        found = self._owned(region)
        found.shared = True
        keys = self._keys.setdefault(region, {})
        for key, writes in keys.items():
            if writes is writable:
                return Share(region, key)
        key = current().new_id()
        keys[key] = writable
        return Share(region, key)

    @Memory.open.serve
    async def open(self, share: Share) -> Region:
        shared = self._regions.regions.get(share.region)
        keys = self._keys.get(share.region, {})
        writable = next((keys[key] for key in keys if hmac.compare_digest(key, share.key)), None)
        if shared is None or writable is None:
            raise NotShared(region=share.region)
        try:
            found = self._regions.join(share.region, current().client, writable and not shared.sealed)
        except QuotaExceeded:
            self._refused += 1
            raise
        return self._told(found)

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

    def _told(self, found: regions.Region) -> Region:
        """A region as the caller may have it."""
        writes = current().client in found.writers
        mode: Mode = "immutable" if found.sealed else "writable" if writes else "readonly"
        return Region(found.number, found.size, self._buffers.view(self._handle(found.number), mode))

    def _handle(self, number: int) -> int:
        """Raises NotFound for a region whose memory is still being made: its number was guessed."""
        handle = self._handles.get(number)
        if handle is None:
            raise _not_yours(number)
        return handle


def _not_yours(number: int) -> NotFound:
    return NotFound("region of yours", str(number))
