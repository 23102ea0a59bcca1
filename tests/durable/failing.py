"""A store that fails at chosen calls."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from atoll.ipc.bound import bind, transport_of
from atoll.ipc.errors import AtollError
from atoll.ipc.faults import FaultyTransport
from atoll.ipc.future import RawFuture
from atoll.ipc.method import MethodSpec
from atoll.ipc.system.state import State
from atoll.ipc.transport import Options, RawReply, RawStream


class _Planned(NamedTuple):
    method: str
    about: bytes
    error: AtollError | None
    """None: it is held back."""
    taken: bool
    """Whether the store has it all the same."""
    held: list[Callable[[], None]]


class Failing(FaultyTransport):
    """In front of a capability of the store's; `state` is the proxy that goes through it."""

    def __init__(self, state: State) -> None:
        super().__init__(transport_of(state))
        self.state = bind(State, self)
        self._planned: list[_Planned] = []
        self.opened: list[bytes] = []
        """Arguments of each stream that was opened. Who meets what is there, and then watches, has met it by then."""

    @property
    def all_met(self) -> bool:
        """Whether each call came that was to fail or to be held back."""
        return not self._planned

    def fail(self, method: str, error: AtollError, *, about: bytes = b"", taken: bool = False) -> None:
        """The next call of the method that has `about` in its message ends with the error. `taken`: the store has done
        it all the same."""
        self._planned.append(_Planned(f"State.{method}", about, error, taken, []))

    def hold(self, method: str, *, about: bytes = b"", taken: bool = True) -> list[Callable[[], None]]:
        """The reply to the next call of the method that has `about` in its message arrives when what is then in the list is
        called. Not `taken`: so does the call at the store."""
        held: list[Callable[[], None]] = []
        self._planned.append(_Planned(f"State.{method}", about, None, taken, held))
        return held

    def _next(self, method: MethodSpec, payload: bytes) -> _Planned | None:
        for each in self._planned:
            if each.method == method.label and each.about in bytes(payload):
                self._planned.remove(each)
                return each
        return None

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        planned = self._next(method, payload)
        if planned is None:
            return self.inner.start(method, payload, options)
        future = RawFuture()
        if planned.error is None and not planned.taken:

            def go_on() -> None:
                reply = self.inner.start(method, payload, options)
                reply.add_done_callback(lambda: future.complete(reply.result()))

            planned.held.append(go_on)
        elif planned.error is None:
            reply = self.inner.start(method, payload, options)
            planned.held.append(lambda: future.complete(reply.result()))
        elif planned.taken:
            self.inner.start(method, payload, options).add_done_callback(partial(future.fail, planned.error))
        else:
            future.fail(planned.error)
        return future

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        planned = self._next(method, payload)
        if planned is not None and planned.error is not None:
            raise planned.error
        self.inner.cast(method, payload, options)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream:
        planned = self._next(method, payload)
        if planned is not None and planned.error is not None:
            raise planned.error
        self.opened.append(bytes(payload))
        return self.inner.open(method, payload, options)
