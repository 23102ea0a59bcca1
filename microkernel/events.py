"""What a person may ask about afterwards: refusals, coalesced per (who, what), and what happened to the node."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from functools import lru_cache

import msgspec
import trio

from atoll.ipc import context, schema
from atoll.ipc.errors import DecodeFaults, PeerMisbehaved
from atoll.ipc.naming import number_of
from atoll.ipc.system.kernel import REFUSALS_AT_ONCE, Kernel, Refusal
from atoll.ipc.system.records import ChannelRow, CrashRow, EventRow, ProcessRow, RefusalRow

from .capabilities import Capability, Ended
from .capability_rows import session_row
from .channels import Channel
from .logs import Logs
from .node import Node
from .parties import KERNEL
from .processes import RENEW_PAUSE
from .protection import filters
from .watcher import Flooded
from .watcher import Refusal as RefusedCall

WHO_MOST, WHAT_MOST = 100, 240
"""Bytes of a refusal's words, which are its key."""
SENTENCE_MOST = 2048
"""Characters of an event's sentence: what was said of somebody may be in it."""
COUNT_MOST = 1 << 62
KINDS_MOST = 256
"""Different refusals kept of one party; what comes after is counted as `other`."""
ALL_MOST = 8192
"""Different refusals kept of all parties; programs that come and go could else make any number. What comes after is
counted under `others`."""

AS_ASKED = ("swap", "freeze", "thaw")
"""Kinds of events that are what somebody asked for."""
OWN = (schema.described(Kernel),)
REASONS = {
    "slot": "no such capability",
    "channel": "the capability is for another channel",
    "generation": "the capability was revoked",
    "rights": "the capability lacks the right or the class of service",
    "expired": "the capability has expired",
    "method": "there is no such method",
}
"""By what the check of a receive loop calls them."""


def _part(text: str, most: int) -> str:
    """As a part of a row's key, which has an end."""
    return text.replace("\0", "").encode(errors="replace")[:most].decode(errors="ignore")


@lru_cache(64)
def _methods(described: bytes) -> dict[int, str]:
    """The methods of an interface by their numbers; none if what its server said of it is no schema."""
    try:
        shape = schema.decode(described)
    except DecodeFaults:
        return {}
    named = ((name, f"{shape.name}.{name}") for name in shape.methods)
    return {number_of(name): told for name, told in named if told.replace(".", "_").isidentifier()}


class Events:
    def __init__(self, node: Node, logs: Logs) -> None:
        self._node = node
        self._logs = logs
        self._refusals: dict[tuple[str, str], RefusalRow] = {}
        self._kinds: dict[str, int] = {}
        self._sequence = 0
        self._sessions = 0

    def refusals(self, server: str, after: int) -> list[Refusal]:
        """Refusals of this boot, some after so many of them, latest first. Invariant: each keeps its place."""
        rows = [row for row in self._refusals.values() if server in ("", row.who)]
        rows = rows[max(0, after) :][:REFUSALS_AT_ONCE]
        return [
            Refusal(server=row.who, by=row.by, what=row.what, count=row.count, first=row.first, last=row.last)
            for row in sorted(rows, key=lambda row: row.last, reverse=True)
        ]

    def count(self, server: str) -> int:
        """How much a server was refused in this boot. Others say so of it, as often as they like: there is an end to it."""
        return min(COUNT_MOST, sum(row.count for row in self._refusals.values() if row.who == server))

    def refuse(self, who: str, by: str, what: str, count: int = 1) -> None:
        """Someone was refused something."""
        who, what = _part(who, WHO_MOST), _part(what, WHAT_MOST)
        now = self._node.now()
        known = self._refusals.get((who, what))
        if known is None:
            if len(self._refusals) >= ALL_MOST:
                who, what = "others", f"other ({by})"
            elif self._kinds.get(who, 0) >= KINDS_MOST:
                what = f"other ({by})"
            known = self._refusals.get((who, what))
            self._kinds[who] = self._kinds.get(who, 0) + 1
        if known is None:
            row = RefusalRow(
                boot=self._node.boot, who=who, what=what, by=by, first=now, last=now, count=count
            )
        else:
            row = msgspec.structs.replace(known, last=now, count=min(known.count + count, COUNT_MOST))
        self._refusals[who, what] = row
        self._node.store.later(self._node.store.batch("refusals").put(row))

    def refused(self, server: str, channel: int, method: int, why: str, count: int) -> None:
        """A receive loop turned messages away: whoever sent them was refused."""
        who = self._node.channels.holder(channel, server) or f"channel {channel}"
        if why == "quota":
            self.refuse(who, "quota", f"{server}: more calls pending than its account may have", count)
        else:
            self.refuse(who, "capability", f"{server}, {self._method(server, method)}: {REASONS[why]}", count)

    def over_quota(self, account: str, resource: str, limit: int) -> None:
        """Somebody asked for more than their account has: recorded under who made the system call, if one is in hand."""
        call = context.current_or_none()
        channel = None if call is None else self._node.channels.get(call.client)
        who = f"account {account}" if channel is None else channel.client.holder
        self.refuse(who, "quota", f"more {resource} than the {limit} of account {account!r}")

    def _method(self, server: str, number: int) -> str:
        """A method as people write it; by its number where no interface of the server has it."""
        at = self._node.servers.get(server)
        offered = OWN if server == KERNEL else at.offered if at is not None else ()
        names = (_methods(bytes(interface.schema)).get(number) for interface in offered)
        return next(filter(None, names), f"method {number:#010x}")

    def refused_call(self, report: RefusedCall | Flooded) -> None:
        """The watcher says that a filter refused a system call."""
        if isinstance(report, Flooded):
            self.ended(report.server, f"{report.count} refused system calls in a second")
            return
        first = report.arguments[0] if report.arguments else 0
        self.refuse(
            report.server, "seccomp", f"{filters.name_of(report.call)}({first:#x}, ...)", report.count
        )

    async def watch(self) -> None:
        """Hear the watcher, and the next one if it ends. Runs as long as the kernel."""
        watching = self._node.watching
        while (watcher := watching.watcher) is not None:
            while (report := await watching.report()) is not None:
                self.refused_call(report)
            try:
                await watching.renew(watcher)
            except OSError:  # no descriptor is left, or no process: there may be later
                await trio.sleep(RENEW_PAUSE)
                continue
            self.event(
                "watcher ended", "kernel",
                "the watcher of refused system calls ended, and there is another: what processes are refused that "
                "run already fails unseen until they are started again",
            )  # fmt: skip
            await trio.sleep(RENEW_PAUSE)

    def ended(self, server: str, why: str) -> None:
        """The kernel ended a process that did what it must not."""
        self.event("ended", server, why)

    def broke_off(self, holder: str, error: Exception) -> None:
        """What a party said could not be taken, and the kernel hears it no more."""
        if isinstance(error, PeerMisbehaved):
            self.ended(holder, f"it broke the protocol: {error.check}")
            return
        self.ended(holder, f"what it said could not be taken: {type(error).__name__}")
        told = {"traceback": "".join(traceback.format_exception(error))}
        self._logs.line(KERNEL, 0, "error", f"{holder}: {type(error).__name__}", told)

    def crashed(self, server: str, how: str, row: CrashRow, ended: ProcessRow | None) -> None:
        """All that is to be said of a crash, in one commit. `ended`: the end of the process, if it is part of it."""
        batch = self._node.store.batch("crash").put(row).put(self.row("crash", server, how))
        self._node.store.later(batch if ended is None else batch.put(ended))

    def rows_given_up(self, count: int) -> None:
        """The store refused rows that nobody waited for."""
        self.event(
            "rows given up", "kernel", f"{count} rows of the record were not kept: the store refused them"
        )

    def event(self, kind: str, who: str, sentence: str, **fields: str) -> None:
        """Something happened, and nobody waits for its row."""
        node = self._node
        node.store.later(node.store.batch("event").put(self.row(kind, who, sentence, **fields)))

    def row(self, kind: str, who: str, sentence: str, **fields: str) -> EventRow:
        """The row of what happens, for a batch that somebody waits for. The log has it at once."""
        node = self._node
        self._sequence += 1
        level = "info" if kind in AS_ASKED else "warning"
        self._logs.line(who, 0, level, f"{kind}: {sentence}", fields)
        return EventRow(
            boot=node.boot, sequence=self._sequence, time=node.now(), kind=kind, who=who, sentence=sentence[:SENTENCE_MOST],
            fields=fields,
        )  # fmt: skip

    def capabilities(self, began: Iterable[Capability], ended: Ended | None) -> None:
        """Session capabilities that began or ended."""
        gone = () if ended is None else ended.gone
        row = session_row(self._node.boot, self._sessions + 1, self._node.now(), began, gone)
        if row.began or row.ended:
            self._sessions += 1
            self._node.store.later(self._node.store.batch("sessions").put(row))

    def channel(self, channel: Channel, closed: str = "") -> None:
        """A channel was opened; or closed, and why. Those of a kernel that died have no end of their own."""
        node = self._node
        row = ChannelRow(
            boot=node.boot, channel=channel.number, client=channel.client.holder, server=channel.server,
            account=channel.client.account, opened=channel.opened, closed=node.now() if closed else 0, reason=closed,
        )  # fmt: skip
        node.store.later(node.store.batch("channels").put(row))
