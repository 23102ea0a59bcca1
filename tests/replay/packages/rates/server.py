"""Rates in memory: nothing of them outlives the process. One that is not fixed yet is waited for."""

import trio

from atoll.ipc import Serves

from .interface import Rates, Unknown


class Server(Serves[Rates]):
    def __init__(self) -> None:
        self.known_rates = {"eur": 2.0}
        self.fixed = trio.Event()
        self.awaited: set[str] = set()

    @Rates.rate.serve
    async def rate(self, currency: str) -> float:
        while currency not in self.known_rates:
            if not currency.startswith("later"):
                raise Unknown(currency)
            self.awaited.add(currency)
            await self.fixed.wait()
        return self.known_rates[currency]

    @Rates.fix.serve
    def fix(self, currency: str, rate: float) -> None:
        self.known_rates[currency] = rate
        self.fixed.set()
        self.fixed = trio.Event()

    @Rates.known.serve
    def known(self, currency: str) -> bool:
        return currency in self.known_rates

    @Rates.waited_for.serve
    def waited_for(self, currency: str) -> bool:
        return currency in self.awaited
