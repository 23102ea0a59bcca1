"""Two interfaces, so that a binding has to say which."""

from atoll.ipc.interface import Interface, call


class Counter(Interface):
    @call("read", idempotent=True)
    def get(self, key: str) -> int: ...

    @call("write", once=True)
    def add(self, key: str, by: int = 1) -> int: ...


class Admin(Interface):
    @call("reset", once=True)
    def reset(self) -> None: ...
