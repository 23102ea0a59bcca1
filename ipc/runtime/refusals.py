"""What a caller is told whose message was turned away, and which of a handler's errors turn one away, too."""

from atoll.ipc.errors import AtollError, BadRequest, NotAllowed, Revoked
from atoll.ipc.method import MethodSpec
from atoll.native import Refusal

WHY = {
    Refusal.SLOT: "slot",
    Refusal.CHANNEL: "channel",
    Refusal.GENERATION: "generation",
    Refusal.RIGHTS: "rights",
    Refusal.EXPIRED: "expired",
    Refusal.METHOD: "method",
    Refusal.SERVICE: "rights",
}
"""What it is called where it is recorded."""


def error_of(why: Refusal, number: int, spec: MethodSpec | None, held: frozenset[str]) -> AtollError:
    """What the check before a handler comes to. `number`: of the method; `spec`: None where there is none such."""
    label = spec.label if spec is not None else f"method {number:#010x}"
    if why == Refusal.RIGHTS and spec is not None:
        return NotAllowed(label, spec.right, tuple(sorted(held)))
    if why == Refusal.METHOD:
        return BadRequest(
            f"a call of {label}", "a method of the capability's interface", "one that it does not have"
        )
    if why == Refusal.SERVICE:
        return BadRequest(
            f"a call of {label}", "a class of service that the capability allows", "a better one"
        )
    return Revoked(label)


def refuses(error: AtollError, spec: MethodSpec) -> bool:
    """Whether a handler says by its error that its caller lacks a right: what another server did not allow the handler is no
    refusal of its caller."""
    return isinstance(error, NotAllowed) and error.method.startswith(f"{spec.interface}.")
