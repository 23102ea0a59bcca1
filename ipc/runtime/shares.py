"""How much clients may have in hand at this server: each channel a share of its own, so that one client fills no other's,
and all channels of an account together what the image gives the account."""

from atoll.ipc.errors import AtollError, Overloaded, QuotaExceeded
from atoll.ipc.method import MethodSpec

IN_HAND_MOST = 1024
"""Calls in hand of one channel at most; more are `Overloaded`."""
UPLOADS_MOST = 64
"""Uploads among them: a window of items may queue here for each."""


class Payer:
    """An account. `limit` 0: none but its channels'."""

    __slots__ = ("account", "limit", "used")

    def __init__(self, account: str, limit: int) -> None:
        self.account = account
        self.limit = limit
        self.used = 0


class Client:
    """A channel. It may be gone while calls of it are in hand still."""

    __slots__ = ("payer", "uploads", "used")

    def __init__(self, payer: Payer) -> None:
        self.payer = payer
        self.used = 0
        self.uploads = 0


class Shares:
    """`full` holds whoever has all it may have: the loop refuses its next call before a handler runs, since what a handler
    has begun and answers later cannot be refused any more."""

    def __init__(self) -> None:
        self.full: set[Client | Payer] = set()
        self._clients: dict[int, Client] = {}
        self._payers: dict[str, Payer] = {}

    def admit(self, channel: int, account: str, limit: int) -> None:
        """A channel is served from now on; its account may have `limit` calls in hand here (0: no bound of its own)."""
        payer = self._payers.setdefault(account, Payer(account, limit))
        payer.limit = limit
        self._clients[channel] = Client(payer)

    def forget(self, channel: int) -> None:
        self._clients.pop(channel, None)

    def refusal(self, channel: int, label: str) -> AtollError | None:
        """Why a channel's next call is not taken; None: it is."""
        client = self._clients.get(channel)
        if client is None:
            return None
        if client in self.full:
            return Overloaded(label)
        payer = client.payer
        return QuotaExceeded(payer.account, "pending", payer.limit) if payer in self.full else None

    def take(self, channel: int, spec: MethodSpec) -> Client:
        """One more call in hand. Raises what `refusal` says."""
        refusal = self.refusal(channel, spec.label) if self.full else None
        if refusal is not None:
            raise refusal
        # A channel may be gone before its handler has said that it will answer later: that is counted for nobody.
        client = self._clients.get(channel) or Client(Payer("", 0))
        if spec.kind == "upload":
            if client.uploads >= UPLOADS_MOST:
                raise Overloaded(spec.label)
            client.uploads += 1
        payer = client.payer
        client.used += 1
        payer.used += 1
        if client.used >= IN_HAND_MOST:
            self.full.add(client)
        if payer.limit and payer.used >= payer.limit:
            self.full.add(payer)
        return client

    def give_back(self, client: Client, spec: MethodSpec) -> None:
        """A call is in hand no more."""
        client.uploads -= spec.kind == "upload"
        client.used -= 1
        client.payer.used -= 1
        if self.full:
            self.full.discard(client)
            self.full.discard(client.payer)
