"""The watchdog: ends a server that stops answering, and tells that apart from a server that was kept from running.

Every round it looks at each process's status and pings it, but for one that sleeps in its loop: to wake those is most of
what an idle node would do, so they are pinged every few rounds. A Python thread that keeps the interpreter from the loop is
named. A process shows life by answering, or by turns of its loop.
Time that the kernel itself did not get (a suspended host, a loaded machine) counts for nobody; neither does the time of
a frozen server, nor of one that wanted a CPU and had none.
"""

from __future__ import annotations

import trio

from atoll.ipc.system import control

from .events import Events
from .image_check import STORE
from .node import Node
from .parties import Serving
from .readers import Readers
from .server import Server
from .usage import runnable, usage

ROUND = 1.0
LATE = 0.5
"""Seconds by which a round may come late before it counts as stolen."""
STARVED = 0.05
"""Share of a round's time on a CPU below which a process that is runnable was kept from running."""
ASLEEP = 0.02
"""Seconds of CPU in a round up to which a process whose loop sleeps is asleep as a whole."""
ASLEEP_ROUNDS = 5
"""Rounds after which one that sleeps is pinged all the same: it may have been stopped in its sleep."""
NAME_MOST, NAMED_MOST = 100, 16
"""Characters of a busy thread's name, and threads of one process that are named."""


class Watch:
    """What the watchdog knows of one process."""

    def __init__(self) -> None:
        self.asked = 0
        self.silent = 0.0
        """Seconds without a sign of life, stolen time left out."""
        self.heartbeat = 0
        self.served = 0
        self.asleep = 0
        """Rounds that it has slept through."""
        self.cpu = 0.0
        self.named: set[str] = set()
        """Threads that were named, each once."""


class Watchdog:
    def __init__(self, node: Node, events: Events, readers: Readers) -> None:
        self._node = node
        self._events = events
        self._readers = readers
        self._watches: dict[int, Watch] = {}

    async def watch(self) -> None:
        """Runs as long as the kernel."""
        before = trio.current_time()
        while True:
            await trio.sleep(ROUND)
            now = trio.current_time()
            passed = now - before
            before = now
            if passed > ROUND + LATE:
                passed = 0.0  # we did not run either: nobody can be blamed for this round
            for server in list(self._node.servers.values()):
                if server.serving is not None:
                    self._look(server, server.serving, passed)
            for serving in self._readers.processes():
                self._look(self._node.servers[STORE], serving, passed)
            live = set(self._node.parties)
            self._watches = {number: watch for number, watch in self._watches.items() if number in live}

    def _look(self, server: Server, serving: Serving, passed: float) -> None:
        watch = self._watches.setdefault(serving.number, Watch())
        signs = serving.status.signs()
        pid = serving.pid
        _, cpu = usage(pid)
        answered = serving.pong == watch.asked or signs.heartbeat != watch.heartbeat
        starved = runnable(pid) and cpu - watch.cpu < STARVED * passed and not signs.in_handler
        asleep = signs.parked and signs.served == watch.served and cpu - watch.cpu <= ASLEEP
        watch.asleep = watch.asleep + 1 if asleep else 0
        watch.heartbeat, watch.served, watch.cpu = signs.heartbeat, signs.served, cpu
        if server.state in ("frozen", "starting") or serving.expected_end or answered:
            watch.silent = 0.0
        elif not starved:
            watch.silent += passed
        if watch.silent > server.spec.watchdog:
            self._end(server, serving, watch)
            return
        busy = serving.busy[:NAME_MOST]  # what it says of itself
        if busy and busy not in watch.named and len(watch.named) < NAMED_MOST:
            watch.named.add(busy)
            sentence = f"{busy} keeps its interpreter busy, and every call waits for it: use a worker process"
            self._events.event("busy", serving.serves, f"{sentence} (atoll.ipc.runtime.workers)")
        if serving.pong == watch.asked and watch.asleep % ASLEEP_ROUNDS == 0:
            watch.asked += 1
            serving.send(control.Ping(number=watch.asked))

    def _end(self, server: Server, serving: Serving, watch: Watch) -> None:
        method = self._handler(server, serving.status.signs().in_handler)
        what = f"the handler of {method} has run" if method else serving.busy or "its loop has stood still"
        sentence = f"it answered nothing for {watch.silent:.0f} s: {what}"
        self._events.ended(serving.serves, sentence)
        watch.silent = 0.0
        if serving.process is not None:
            serving.process.kill()

    @staticmethod
    def _handler(server: Server, index: int) -> str:
        """The method whose handler runs, by its place in the server's interfaces; empty: none."""
        methods = [
            f"{offer.name}.{name}" for offer in server.description.interfaces for name in offer.methods
        ]
        return methods[index - 1] if 0 < index <= len(methods) else ""
