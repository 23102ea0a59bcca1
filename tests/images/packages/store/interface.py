"""A store that keeps nothing: enough for an image to be checked against."""

from atoll.ipc.interface import Interface, call


class Store(Interface):
    @call("read", idempotent=True)
    def get(self, key: str) -> str: ...

    @call("write", once=True)
    def put(self, key: str, value: str) -> None: ...
