"""A reply that a plain handler completes later, mostly for many calls at once (a group commit).

A `Deferred` lives on one loop: whoever completes it does so on the thread of the server that returned it. It
costs a list entry, not a task. Reactions run at once, in the order in which they were added, inside
`complete` or `fail`.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

R = TypeVar("R")
S = TypeVar("S")

_PENDING: Any = object()


class Deferred(Generic[R]):
    """A result of type R that is not there yet."""

    __slots__ = ("_error", "_reactions", "_value")

    def __init__(self) -> None:
        self._value: R = _PENDING
        self._error: Exception | None = None
        self._reactions: list[tuple[Callable[[R], None], Callable[[Exception], None]]] | None = None

    @classmethod
    def resolved(cls, value: R) -> "Deferred[R]":
        """A Deferred that has its value already."""
        made = cls()
        made._value = value
        return made

    @classmethod
    def failed(cls, error: Exception) -> "Deferred[R]":
        """A Deferred that has failed already."""
        made = cls()
        made._error = error
        return made

    @property
    def done(self) -> bool:
        """Whether it was completed or has failed."""
        return self._value is not _PENDING or self._error is not None

    def complete(self, value: R) -> None:
        """Give the value. Completing twice is a bug of the server and raises RuntimeError."""
        if self.done:
            raise RuntimeError("this Deferred is done already: complete or fail it once")
        self._value = value
        reactions, self._reactions = self._reactions, None
        for succeed, _ in reactions or ():
            succeed(value)

    def fail(self, error: Exception) -> None:
        """End it with an error, which reaches the caller as if the handler had raised it."""
        if self.done:
            raise RuntimeError("this Deferred is done already: complete or fail it once")
        self._error = error
        reactions, self._reactions = self._reactions, None
        for _, failed in reactions or ():
            failed(error)

    def then(self, transform: Callable[[R], S]) -> "Deferred[S]":
        """A Deferred of the transformed value; an error, also one that `transform` raises, passes on."""
        following: Deferred[S] = Deferred()

        def succeed(value: R) -> None:
            try:
                result = transform(value)
            except Exception as error:
                following.fail(error)
            else:
                following.complete(result)

        self.react(succeed, following.fail)
        return following

    def react(self, succeed: Callable[[R], None], failed: Callable[[Exception], None]) -> None:
        """Have one of two functions called when it is done: at once if it is."""
        if self._error is not None:
            failed(self._error)
        elif self._value is not _PENDING:
            succeed(self._value)
        elif self._reactions is None:
            self._reactions = [(succeed, failed)]
        else:
            self._reactions.append((succeed, failed))

    def result(self) -> R:
        """The value, or the error raised; RuntimeError while it is neither."""
        if self._error is not None:
            raise self._error
        if self._value is _PENDING:
            raise RuntimeError("this Deferred is not done: use then() or react()")
        return self._value
