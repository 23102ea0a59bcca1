"""A store that fails at chosen calls."""

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
    error: AtollError
    taken: bool


class Failing(FaultyTransport):
    """In front of a capability of the store's; `state` is the proxy that goes through it."""

    def __init__(self, state: State) -> None:
        super().__init__(transport_of(state))
        self.state = bind(State, self)
        self._planned: list[_Planned] = []

    def fail(self, method: str, error: AtollError, *, about: bytes = b"", taken: bool = False) -> None:
        """The next call of the method that has `about` in its message ends with the error. `taken`: the store has done
        it all the same."""
        self._planned.append(_Planned(f"State.{method}", about, error, taken))

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
        if planned.taken:
            self.inner.start(method, payload, options).add_done_callback(lambda: future.fail(planned.error))
        else:
            future.fail(planned.error)
        return future

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream:
        planned = self._next(method, payload)
        if planned is not None:
            raise planned.error
        return self.inner.open(method, payload, options)
