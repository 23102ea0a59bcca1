"""A method of an interface as data: what both sides, and every transport between them, know of it."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from .errors import Failure

LANES = {"control": 0, "normal": 1, "bulk": 2}
"""Classes of service, dearest first, and the lane of a channel each one uses."""

Service = Literal["control", "normal", "bulk"]
Kind = Literal["call", "stream", "upload"]


class Resume(NamedTuple):
    """How a broken stream goes on: argument number `argument` gets the last item's `field` (the item itself
    if empty)."""

    argument: int
    field: str


class MethodSpec(Struct, frozen=True, eq=False, kw_only=True):
    """A method of an interface as both sides know it."""

    interface: str
    name: str
    number: int
    right: str
    kind: Kind
    idempotent: bool
    once: bool
    local: bool
    service: Service
    lane: int
    arguments: type[Struct]
    keywords: frozenset[str]
    """Arguments that are given by keyword only."""
    result: Any
    """Of a call or an upload; NoneType for a stream."""
    item: Any
    """What a stream brings or an upload takes; None for a call."""
    position: Any
    resume: Resume | None
    failures: Mapping[int, type[Failure]]
    carries: bool
    """Its messages may hold capabilities or buffers."""

    @property
    def label(self) -> str:
        """As errors name it: `Counter.add`."""
        return f"{self.interface}.{self.name}"
