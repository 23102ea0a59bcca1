"""Accounts: what the kernel holds on behalf of whom, and how much of it at most.

Everything that costs the kernel memory or descriptors is charged before it is made and released after it is
gone. Limits come from the image. Lowering a limit below what is in use refuses further charges and takes
nothing back.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from atoll.ipc.errors import QuotaExceeded

from .image import Account

Resource = Literal["channels", "capabilities", "buffers", "descriptors", "pending"]
RESOURCES: tuple[Resource, ...] = ("channels", "capabilities", "buffers", "descriptors", "pending")


class Ledger:
    """Limits and use of every account. An account without limits of its own has the built-in ones
    (`Account()`).
    """

    def __init__(self, limits: Mapping[str, Account] | None = None) -> None:
        self._limits = dict(limits or {})
        self._used: dict[str, dict[Resource, int]] = {}

    def set_limits(self, account: str, limits: Account) -> None:
        self._limits[account] = limits

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
