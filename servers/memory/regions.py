"""Who holds which region, and what is charged to whom: pure accounting, no memory.

A region is *open* (its writers write it; it dies with its owner, and whoever it was shared with then reads
zeros) or *sealed* (nobody writes it any more; it lives until its last holder lets go). Each holder is
charged the region's whole size, the owner from allocation and every other from the moment it opens the
region: so nobody's account grows by what another does, and the death of an owner moves no charge. The
pool is charged once a region, since all who hold it map the same memory. Sizes are bytes in whole pages.
"""

from dataclasses import dataclass, field

from atoll.ipc.errors import NotFound, QuotaExceeded

PAGE = 4096


def in_pages(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


@dataclass
class Region:
    number: int
    size: int
    owner: int
    sealed: bool = False
    holders: set[int] = field(default_factory=set)
    """Clients; the owner is one until it lets go."""
    writers: set[int] = field(default_factory=set)
    """Holders that may write it while it is open."""


@dataclass
class Account:
    used: int = 0
    regions: int = 0


@dataclass(frozen=True)
class Limits:
    pool: int
    """Bytes of all regions together."""
    client: int
    """Bytes charged to one client."""
    regions: int
    """Regions held by one client."""


class Regions:
    """One task at a time; invariants in `broken`."""

    def __init__(self, limits: Limits, first: int = 1) -> None:
        """`first`: the number of the first region."""
        self.limits = limits
        self.regions: dict[int, Region] = {}
        self.accounts: dict[int, Account] = {}
        self.used = 0
        """Bytes charged to the pool: the regions, and those of `dying`."""
        self.dying: dict[int, Region] = {}
        """Held by nobody, their memory not given back yet."""
        self._next = first

    def reserve(self, client: int, size: int) -> Region:
        """A new open region of `client`. Raises QuotaExceeded; then nothing has changed."""
        size = in_pages(size)
        self._afford(client, size)
        if self.used + size > self.limits.pool:
            raise QuotaExceeded("memory server", "bytes", self.limits.pool)
        region = Region(self._next, size, client)
        self._next += 1
        self.regions[region.number] = region
        self.used += size
        self._charge(region, client)
        region.writers.add(client)
        return region

    def adopt(self, region: Region) -> None:
        """Take over a region that stood before this process, with its holders: charged, whatever the limits are now."""
        holders, region.holders = region.holders, set()
        self.regions[region.number] = region
        self.used += region.size
        for client in holders:
            self._charge(region, client)

    def find(self, number: int, client: int) -> Region:
        """A region that `client` holds. Raises NotFound for any other, whether it exists or not."""
        region = self.regions.get(number)
        if region is None or client not in region.holders:
            raise NotFound("region of yours", str(number))
        return region

    def join(self, number: int, client: int, writing: bool = False) -> Region:
        """Make `client` a holder of a region. Raises QuotaExceeded, NotFound; then nothing has changed."""
        region = self.regions.get(number)
        if region is None:
            raise NotFound("shared region", str(number))
        if client not in region.holders:
            self._afford(client, region.size)
            self._charge(region, client)
        if writing:
            region.writers.add(client)
        return region

    def seal(self, number: int) -> None:
        """Its memory is immutable now."""
        region = self.regions[number]
        region.sealed = True
        region.writers.clear()

    def leave(self, number: int, client: int) -> Region | None:
        """`client` lets go; the region if that ended it (its memory is to be given back), else None."""
        region = self.find(number, client)
        region.holders.remove(client)
        region.writers.discard(client)
        self._credit(region, client)
        if region.holders and (region.sealed or client != region.owner):
            return None
        for holder in region.holders:
            self._credit(region, holder)
        region.holders.clear()
        self.dying[number] = self.regions.pop(number)
        return region

    def freed(self, number: int) -> None:
        """The memory of a region that `leave` ended is given back; only now may the pool hand it out
        again.
        """
        self.used -= self.dying.pop(number).size

    def client_gone(self, client: int) -> list[Region]:
        """Let go of all that a dead client held; the regions that this ended."""
        held = [region.number for region in self.regions.values() if client in region.holders]
        ended = [self.leave(number, client) for number in held]
        return [region for region in ended if region is not None]

    def _afford(self, client: int, size: int) -> None:
        account = self.accounts.get(client, Account())
        if account.used + size > self.limits.client:
            raise QuotaExceeded(f"client {client}", "bytes of memory", self.limits.client)
        if account.regions + 1 > self.limits.regions:
            raise QuotaExceeded(f"client {client}", "regions", self.limits.regions)

    def _charge(self, region: Region, client: int) -> None:
        region.holders.add(client)
        account = self.accounts.setdefault(client, Account())
        account.used += region.size
        account.regions += 1

    def _credit(self, region: Region, client: int) -> None:
        account = self.accounts[client]
        account.used -= region.size
        account.regions -= 1
        if not account.regions:
            del self.accounts[client]

    def broken(self) -> list[str]:
        """Sentences about what should never be true."""
        wrong: list[str] = []
        if self.used != sum(region.size for each in (self.regions, self.dying) for region in each.values()):
            wrong.append("the pool's charge is not the sum of the regions")
        if self.used > self.limits.pool:
            wrong.append("the pool is over its limit")
        for region in self.regions.values():
            if not region.holders:
                wrong.append(f"region {region.number} has no holder")
            if not region.sealed and region.owner not in region.holders:
                wrong.append(f"open region {region.number} outlived its owner")
            if not region.writers <= region.holders or (region.sealed and region.writers):
                wrong.append(f"region {region.number} has writers that it cannot have")
            if region.size % PAGE:
                wrong.append(f"region {region.number} is not in whole pages")
        for client, account in self.accounts.items():
            held = [region for region in self.regions.values() if client in region.holders]
            if account.used != sum(region.size for region in held) or account.regions != len(held):
                wrong.append(f"client {client} is not charged for exactly what it holds")
            if account.used > self.limits.client or account.regions > self.limits.regions:
                wrong.append(f"client {client} is over its quota")
        return wrong
