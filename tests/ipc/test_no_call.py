"""Whose call is in hand where a server's loop does what no call of the moment asks of it. (Raw cffi.)"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from atoll.ipc import Deferred, Interface, Serves, call, stream
from atoll.ipc.context import current_or_none
from atoll.ipc.errors import WouldBlock
from atoll.ipc.participation import when
from atoll.native import Kind
from tests.adversary.attack import Attacker, Record
from tests.kit.memory import Memory
from tests.kit.played import played, proxy_of_played
from tests.kit.serving import serving
from tests.native.suite import Target


class Asks(Interface):
    @call("use")
    def whose(self) -> str:
        """Whose call is in hand when the reply to what this one asked for is in."""

    @call("use")
    def block(self) -> str:
        """What becomes of a blocking call that is made then."""

    @call("use")
    def asked(self) -> int:
        """How many calls have asked for something."""

    @call("use")
    def idle(self) -> list[str]:
        """Whose call was in hand each time the server was idle."""


class AsksServer(Serves[Asks]):
    def __init__(self) -> None:
        self._idle: list[str] = []
        self._asked = 0

    def idle(self) -> None:
        self._idle.append(_in_hand())

    @Asks.whose.serve
    def whose(self) -> Deferred[str]:
        done: Deferred[str] = Deferred()
        when(lambda: proxy_of_played(Target).double.start(1), lambda _: done.complete(_in_hand()), done.fail)
        self._asked += 1
        return done

    @Asks.block.serve
    def block(self) -> Deferred[str]:
        done: Deferred[str] = Deferred()

        def told(_: Any) -> None:
            try:
                proxy_of_played(Target).double.now(2)
            except WouldBlock as refusal:
                done.complete(str(refusal))

        when(lambda: proxy_of_played(Target).double.start(1), told, done.fail)
        self._asked += 1
        return done

    @Asks.asked.serve
    def asked(self) -> int:
        return self._asked

    @Asks.idle.serve
    def idle_calls(self) -> list[str]:
        return self._idle


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _in_hand() -> str:
    call = current_or_none()
    return "none" if call is None else call.method


def answer(memory: Memory) -> None:
    payload = msgspec.msgpack.encode(2)
    attacker = Attacker(memory, server=True)
    attacker.write(Record(0, kind=Kind.REPLY, length=len(payload)), payload)


def test_a_reply_comes_to_no_call_of_another_client() -> None:
    """It had that one's badge, rights and deadline: what was called on with failed when that had passed."""
    with serving(AsksServer, clients=2) as served, played(served) as memory:
        asking, other = served.proxies
        whose = asking.whose.start()
        while not other.asked.now():
            pass
        answer(memory)
        assert whose.result() == "none"


def test_what_a_reply_calls_for_blocks_no_loop() -> None:
    with serving(AsksServer, clients=2) as served, played(served) as memory:
        asking, other = served.proxies
        refused = asking.block.start()
        while not other.asked.now():
            pass
        answer(memory)
        assert "made the blocking call Target.double.now" in refused.result()


def test_a_server_is_idle_for_no_call() -> None:
    with serving(AsksServer) as served:
        while len(found := served.proxies[0].idle.now()) < 3:
            pass
        assert set(found) == {"none"}


class Ends(Interface):
    @stream("use")
    def told(self, path: str) -> int:
        """Writes to that file whose call is in hand when this server ends."""

    @call("use")
    def waits(self) -> bool:
        """Whether `told` has come as far as it does before that."""

    @call("use")
    def end(self) -> None: ...


class EndsServer(Serves[Ends]):
    def __init__(self) -> None:
        self._ends = trio.Event()

    @Ends.told.serve
    async def told(self, path: str) -> AsyncIterator[int]:
        await self._ends.wait()
        _write(path, _in_hand())
        yield 1

    @Ends.waits.serve
    def waits(self) -> bool:
        return bool(self._ends.statistics().tasks_waiting)

    @Ends.end.serve
    def end(self) -> None:
        self._ends.set()
        raise SystemExit("it has to")


def test_what_still_runs_when_a_handler_ends_its_server_runs_for_its_own_call(tmp_path: Path) -> None:
    """It ran with the badge and the rights of whoever made that call: a watch at a store whose disk had failed began for
    the kernel, and told a client of everybody's rows."""
    found = tmp_path / "found"
    found.touch()
    with serving(EndsServer, clients=2) as served:
        watching, ending = served.proxies
        watching.told.now(str(found))
        while not ending.waits.now():
            pass
        ending.end.start()
        while not found.read_text():
            pass
        assert found.read_text() == "Ends.told"
