"""Durable methods: how an interface declares one, and how a client begins its workflows.

    class Ledger(Interface):
        @durable("write")
        def transfer(self, source: str, target: str, amount: int) -> Receipt: ...

    await ledger.transfer("a", "b", 3)                                  # begins a workflow, gives its result
    await ledger.transfer.begin(Start(id="order-17"), "a", "b", 3)      # begins it, and is over when it is durable
    await ledger.transfer.result("order-17")                            # waits for its result, now or next week

On the wire these are methods of their own, `transfer`, `transfer.begin`, `transfer.result` and `transfer.cancel`, which
need the same right. A workflow's id is the idempotency key of its beginning: to begin it again changes nothing.
"""

import inspect
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from msgspec import Struct

from atoll.ipc.interface import CallMethod, Interface
from atoll.ipc.method import Service
from atoll.ipc.proxy import BoundCall, bound_call

from .workflow import Workflow

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class Start(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a workflow is begun."""

    id: str = ""
    """What it is known by from now on; empty: an id is made for it."""
    queue: str = ""
    """A queue of the server's, which starts it when it may; empty: it starts at once."""
    priority: int = 0
    """In its queue the lowest number goes first, and of equal ones the first that came."""
    delay: float = 0.0
    """Seconds before which it is not started: ten years at most."""
    deduplicate: str = ""
    """While another workflow of the same object (badge) with this key has not ended in the queue, none is begun."""


class BoundDurable(BoundCall[P, R], Generic[P, R]):
    """A durable method of a proxy."""

    __slots__ = ("begin", "cancel", "result")

    def __init__(
        self,
        call: BoundCall[P, R],
        begin: BoundCall[Concatenate[Start, P], str],
        result: BoundCall[[str], R],
        cancel: BoundCall[[str], None],
    ) -> None:
        super().__init__(call.spec, call.now, call.wait, call.start, call.cast)
        self.begin = begin
        """Begins a workflow, durably, and gives its id."""
        self.result = result
        """Waits for the result of the workflow with that id."""
        self.cancel = cancel
        """Ends the workflow with that id where it is. One that has ended is no error."""


class DurableMethod(CallMethod[P, R]):
    """A call that is a workflow."""

    def __init__(self, function: Callable[..., Any], right: str, *, service: Service = "normal") -> None:
        super().__init__(function, right, once=True, service=service)
        name = function.__name__
        self.begin: CallMethod[Concatenate[Start, P], str] = CallMethod(
            _variant(function, f"{name}.begin", _after_self(function), {"return": str}),
            right,
            once=True,
            service=service,
        )
        self.result: CallMethod[[str], R] = CallMethod(
            _variant(function, f"{name}.result", _by_id(function), _result_of(function)),
            right,
            idempotent=True,
            service=service,
        )
        self.cancel: CallMethod[[str], None] = CallMethod(
            _variant(function, f"{name}.cancel", _by_id(function), {"return": None}),
            right,
            idempotent=True,
            service=service,
        )

    def __set_name__(self, owner: type[Interface], name: str) -> None:
        super().__set_name__(owner, name)
        for method in (self.begin, self.result, self.cancel):
            method.__set_name__(owner, method.name)
            setattr(owner, method.name, method)

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: Interface, owner: type[Any]) -> BoundDurable[P, R]: ...
    def __get__(self, instance: Interface | None, owner: type[Any]) -> Self | BoundDurable[P, R]:
        if instance is None:
            return self
        bound: BoundDurable[P, R] = BoundDurable(
            bound_call(self.spec, instance),
            bound_call(self.begin.spec, instance),
            bound_call(self.result.spec, instance),
            bound_call(self.cancel.spec, instance),
        )
        instance.__dict__[self.name] = bound
        return bound

    def serve(  # type: ignore[override]
        self, handler: Callable[Concatenate[S, Workflow, P], Awaitable[R]]
    ) -> Callable[Concatenate[S, Workflow, P], Awaitable[R]]:
        """Decorate the workflow in a server class: async, taking its `Workflow` first and then the method's
        arguments."""
        for method in (self, self.begin, self.result, self.cancel):
            method._mark(handler)
        return handler


def durable(
    right: str, *, service: Service = "normal"
) -> Callable[[Callable[Concatenate[Any, P], R]], DurableMethod[P, R]]:
    """A call that needs `right` and is a workflow: it goes on after a crash where it was, to its end."""

    def decorate(function: Callable[Concatenate[Any, P], R]) -> DurableMethod[P, R]:
        return DurableMethod(function, right, service=service)

    return decorate


def _after_self(function: Callable[..., Any]) -> list[inspect.Parameter]:
    own, *others = inspect.signature(function).parameters.values()
    start = inspect.Parameter("workflow", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Start)
    return [own, start, *others]


def _by_id(function: Callable[..., Any]) -> list[inspect.Parameter]:
    own = next(iter(inspect.signature(function).parameters.values()))
    return [own, inspect.Parameter("id", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str)]


def _result_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Its result type as an annotation, if it has one."""
    return {name: kind for name, kind in function.__annotations__.items() if name == "return"}


def _variant(
    function: Callable[..., Any], name: str, parameters: list[inspect.Parameter], result: dict[str, Any]
) -> Callable[..., Any]:
    """A signature made from another one. Its types are looked up where that one's are."""
    assert isinstance(function, FunctionType)
    made = FunctionType(function.__code__, function.__globals__, name)
    made.__module__ = function.__module__
    made.__qualname__ = f"{function.__qualname__.rpartition('.')[0]}.{name}"
    made.__doc__ = function.__doc__
    made.__annotations__ = {
        parameter.name: parameter.annotation
        for parameter in parameters
        if parameter.annotation is not inspect.Parameter.empty
    }
    made.__annotations__ |= result
    made.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return made
