"""A server that leases device memory."""

from atoll.ipc.interface import Interface, call


class Lessee(Interface):
    @call("do")
    def take(self, memory: int) -> str:
        """Renew what it has, lease so many bytes more; says what the lease says, or why there is none."""
