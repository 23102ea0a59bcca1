"""Bugs put in on purpose, each of a kind that the design warns of: by name, what puts it into a world's process.

They show that the simulation looks: a plant that no seed finds is a hole in what it checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atoll.ipc.deferred import Deferred
from atoll.ipc.durable.effects import Effects
from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.system.state import Committed
from atoll.microkernel import intents, powers
from atoll.microkernel.authority import Authority
from atoll.microkernel.capability_rows import write_made
from atoll.microkernel.changes import Batch
from atoll.microkernel.channels import Channel
from atoll.microkernel.notices import RESTARTING
from atoll.microkernel.powers import Powers
from atoll.microkernel.store import Store
from atoll.microkernel.tables import Table
from atoll.microkernel.windows import Windows
from atoll.servers.state import group
from atoll.servers.state import server as state


def no_second_look() -> None:
    """A handler's task begins without a second look at its capability."""

    def recheck(self: ServeLoop, inhand: Any) -> None:
        self._status_words[0] = 0

    ServeLoop._recheck = recheck  # type: ignore[assignment,method-assign]


def no_wait_for_windows() -> None:
    """A revocation is answered while a call that was checked before it has not begun."""

    async def passed(self: Windows, processes: Any, doomed: Any = None) -> None: ...

    Windows.passed = passed  # type: ignore[method-assign,assignment]


def row_after_reply() -> None:
    """A lasting grant is answered before its row is there."""

    async def record(self: Powers, made: Any) -> None:
        self._node.store.later(write_made(self._node.store.batch("grant"), made))

    Powers._record = record  # type: ignore[method-assign]


def row_stays() -> None:
    """What was revoked keeps its row."""
    powers.write_ended = lambda batch, ended: batch  # type: ignore[attr-defined]


def epoch_stays() -> None:
    """The epoch does not rise when a server dies."""

    def died(self: Channel, base: int) -> None:
        self.state = RESTARTING
        self._tell(self.taken())
        self.wake_client()

    Channel.server_died = died  # type: ignore[method-assign]


def no_intent() -> None:
    """A process is started, and nothing was written down before."""
    commit = Store.commit_or_keep

    async def keep(self: Store, changes: Any) -> None:
        if not changes.note.startswith("intent"):
            await commit(self, changes)

    Store.commit_or_keep = keep  # type: ignore[method-assign]


def outcome_without_rows() -> None:
    """What came of a start is told, and that there is a process is not told with it."""
    settle = intents.settle

    def alone(batch: Batch, intent: Any, outcome: str = intents.DONE) -> Batch:
        return settle(Batch(b"", "alone") if outcome == intents.DONE else batch, intent, outcome)

    intents.settle = alone


def answered_before_durable() -> None:
    """The store answers a group, then commits it."""
    flush = group.Group.flush

    def early(self: group.Group) -> None:
        members, self._members = self._members, [(each[0], Deferred(), each[2]) for each in self._members]
        for _, done, outcome in members:
            done.complete(outcome)
        flush(self)

    group.Group.flush = early  # type: ignore[method-assign]


def commits_forgotten() -> None:
    """The store does not know a commit by its id, so one that is sent again is applied again."""
    group.committed_before = state.committed_before = lambda snapshot, id: None  # type: ignore[assignment,attr-defined]


def entry_stays() -> None:
    """What was revoked stays valid in the table."""
    Table.clear = lambda self, capability: None  # type: ignore[method-assign,assignment]


def entry_on_any_channel() -> None:
    """A table entry is written for the channel that was made last, not for its holder's."""
    enter = Authority.enter

    def careless(self: Authority, capability: Any, channel: Channel) -> None:
        enter(self, capability, [each for each in self._node.channels if each.server == channel.server][-1])

    Authority.enter = careless  # type: ignore[method-assign]


def effect_apart() -> None:
    """A step's effects are committed first, and then, by themselves, the row that says that it ran."""
    commit = Effects.commit

    async def apart(self: Effects, record: Any, expects: Any, note: str) -> Committed:
        await commit(self, [], [], note)
        return await commit(Effects(self.state), record, expects, note)

    Effects.commit = apart  # type: ignore[method-assign]


PLANTED: dict[str, tuple[Callable[[], None], str]] = {
    plant.__name__: (plant, said)
    for plant, said in (
        (no_second_look, "was served after the revocation"),
        (no_wait_for_windows, "was served after the revocation"),
        (row_after_reply, "a lasting grant was acknowledged and is gone"),
        (row_stays, "a lasting grant was revoked and is there again"),
        (epoch_stays, "it is not well"),
        (no_intent, "is started, and nothing says that it was to be"),
        (outcome_without_rows, "is settled, and no row says that"),
        (answered_before_durable, "is started, and nothing says that it was to be"),
        (commits_forgotten, "its commit id"),
        (entry_stays, "is valid, and no capability is there"),
        (entry_on_any_channel, "is on a channel of"),
        (effect_apart, "happened 2 times"),
    )
}
"""By name, with words of the sentence that a world says of it: another breakage does not stand in for that."""
