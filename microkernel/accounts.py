"""Accounts: what the kernel holds on behalf of whom, and how much of it at most.

Everything that costs the kernel memory or descriptors is charged before it is made and released after it is
gone. Limits come from the image. Lowering a limit below what is in use refuses further charges and takes
nothing back. Calls that are not answered (`pending`) are counted where they wait, in the loop of the server that
has them in hand (`atoll.ipc.runtime.shares`): the kernel tells each loop what the account may have there, and its
own endpoint is one of them.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from atoll.ipc.errors import QuotaExceeded

from .image import Account

Resource = Literal["channels", "capabilities", "buffers", "descriptors", "pending"]
RESOURCES: tuple[Resource, ...] = ("channels", "capabilities", "buffers", "descriptors", "pending")

Cost = Mapping[Resource, int]
"""What one thing of the kernel's takes, by resource."""
CHANNEL: Cost = {"channels": 1, "descriptors": 3}
"""Its memory, and both ends of its doorbell."""
ATTACHMENT: Cost = {"descriptors": 3}
"""Its notice, its control socket, a pidfd."""
PROCESS: Cost = {"descriptors": 6}
"""Those of an attachment, its status, and what it writes to standard output and error."""


def buffer(size: int) -> Cost:
    """What a buffer of so many bytes costs."""
    return {"buffers": size, "descriptors": 1}


class Ledger:
    """Limits and use of every account. An account without limits of its own has the built-in ones (`Account()`).
    `refused` is told of each charge that was not taken: account, resource, limit."""

    def __init__(
        self,
        limits: Mapping[str, Account] | None = None,
        refused: Callable[[str, Resource, int], None] = lambda account, resource, limit: None,
    ) -> None:
        self._limits = dict(limits or {})
        self.refused = refused
        self._used: dict[str, dict[Resource, int]] = {}

    def limit(self, account: str, resource: Resource) -> int:
        return int(getattr(self._limits.get(account, Account()), resource))

    def used(self, account: str, resource: Resource) -> int:
        return self._used.get(account, {}).get(resource, 0)

    def charge(self, account: str, resource: Resource, amount: int = 1, *, past_limit: bool = False) -> None:
        """Adds to what `account` uses; raises `QuotaExceeded`, with nothing charged, if that passes its
        limit. `past_limit`: for what was charged on an earlier boot and is only counted again."""
        if amount < 0:
            raise ValueError(f"a charge of {amount} {resource} to account {account!r}: release it instead")
        used, limit = self.used(account, resource), self.limit(account, resource)
        if used + amount > limit and not past_limit:
            self.refused(account, resource, limit)
            raise QuotaExceeded(account=account, resource=resource, limit=limit)
        self._used.setdefault(account, {})[resource] = used + amount

    def release(self, account: str, resource: Resource, amount: int = 1) -> None:
        """Takes from what `account` uses. More than was charged is a fault of the kernel: `ValueError`."""
        used = self.used(account, resource)
        if not 0 <= amount <= used:
            raise ValueError(
                f"release of {amount} {resource} of account {account!r}, of which {used} are charged"
            )
        if amount:
            self._used[account][resource] = used - amount

    def has_room(self, account: str, cost: Cost) -> bool:
        """Whether `charge_all` would take it now."""
        return all(
            self.used(account, resource) + amount <= self.limit(account, resource)
            for resource, amount in cost.items()
        )

    def charge_all(self, account: str, cost: Cost, *, past_limit: bool = False) -> None:
        """All of a cost, or, with `QuotaExceeded`, nothing of it."""
        charged: list[Resource] = []
        try:
            for resource, amount in cost.items():
                self.charge(account, resource, amount, past_limit=past_limit)
                charged.append(resource)
        except QuotaExceeded:
            for resource in charged:
                self.release(account, resource, cost[resource])
            raise

    def release_all(self, account: str, cost: Cost) -> None:
        for resource, amount in cost.items():
            self.release(account, resource, amount)

    def begin_anew(self) -> None:
        """Nothing is in use: for a boot, which counts again what is there."""
        self._used.clear()

    def usage(self) -> dict[str, dict[Resource, int]]:
        """What each account uses now; accounts and resources without use are left out."""
        return {
            account: {resource: amount for resource, amount in sorted(used.items()) if amount}
            for account, used in sorted(self._used.items())
            if any(used.values())
        }

    def limits(self) -> dict[str, dict[str, int]]:
        """The limits that the image sets, by account."""
        return {account: msgspec.structs.asdict(limits) for account, limits in sorted(self._limits.items())}
