"""Two servers that call each other, round and round."""

from msgspec import Struct

from atoll.ipc.capability import Cap
from atoll.ipc.interface import Interface, call


class Box(Struct):
    """Capabilities wherever a value may stand."""

    label: str
    one: "Cap[Relay]"
    more: "list[Cap[Relay]]" = []
    named: "dict[str, Cap[Relay]]" = {}
    inner: "Box | None" = None


class Relay(Interface):
    @call("say", idempotent=True)
    def around(self, times: int) -> list[int]:
        """Through both servers, so many times; the trace id that each handler saw."""

    @call("say", idempotent=True)
    def service(self) -> str:
        """The class of service that this call has."""

    @call("say")
    def beyond(self) -> str:
        """The class that the other one sees if a better one is asked for."""

    @call("say")
    def many(self, times: int, depth: int) -> int:
        """So many rounds at once."""

    @call("say")
    def block(self) -> int:
        """A plain handler that blocks on the other server."""

    @call("say")
    def crunch(self, name: str) -> None:
        """A Python thread of that name computes from now on."""

    @call("say")
    def interval(self) -> float:
        """How long a thread may keep the interpreter, in seconds."""

    @call("say")
    def open_all(self, box: Box) -> int:
        """How many capabilities in there answer."""

    @call("say")
    def send(self) -> int:
        """Gives the other one a capability of its own objects."""

    @call("say")
    def pack(self) -> Box:
        """The capability on the other server, wherever a value may stand."""
