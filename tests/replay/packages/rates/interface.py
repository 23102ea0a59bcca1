"""What a currency costs."""

from atoll.ipc import Failure, Interface, call


class Unknown(Failure):
    currency: str

    @property
    def message(self) -> str:
        return f"there is no rate for {self.currency!r}: ask for another currency"


class Rates(Interface):
    errors = (Unknown,)

    @call("read", idempotent=True)
    def rate(self, currency: str) -> float: ...

    @call("write", idempotent=True)
    def fix(self, currency: str, rate: float) -> None: ...

    @call("read", idempotent=True)
    def known(self, currency: str) -> bool: ...

    @call("read", idempotent=True)
    def waited_for(self, currency: str) -> bool: ...
