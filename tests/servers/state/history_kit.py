"""The layers below the server, put together as the server does it, with keyspaces 1 and 2."""

from collections.abc import Callable

from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import AtollError
from atoll.ipc.system.state import Committed, Expect, Range, Retention
from atoll.servers.state import layout
from atoll.servers.state.engine import Engine
from atoll.servers.state.group import Group, Transaction
from atoll.servers.state.history import History
from atoll.servers.state.keyspaces import Keyspaces
from atoll.servers.state.ownership import Ownership, settle_format

Outcome = Committed | AtollError
BOOT = 5


class Kit:
    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self.announced: list[int] = []
        self.clock = 1_000_000_000_000_000_000
        self.open()
        if not self.keyspaces.exists(1):
            for name in ("first", "second"):
                _, write, expect = self.keyspaces.rows_for(name, Retention(), False)
                self.admit([(write.key, write.value)], [expect], badge=0)
                self.group.flush()
                self.keyspaces.refresh()
        self.base = self.history.head()

    def open(self, boot: int = BOOT) -> None:
        self.engine = self._make()
        settle_format(self.engine)
        self.keyspaces = Keyspaces(self.engine)
        self.history = History(self.engine, self.keyspaces.name)
        self.group = self.another_group(boot)

    def another_group(self, boot: int) -> Group:
        """A further writer of the same store, as another process would have it."""
        return Group(self.history, Ownership(self.engine, boot), self._announce)

    def reopen(self, boot: int = BOOT) -> None:
        self.engine.close()
        self.open(boot)

    def admit(
        self,
        writes: list[tuple[bytes, bytes | None]],
        expects: list[Expect | Range] | list[Expect] = (),  # type: ignore[assignment]
        *,
        badge: int = 1,
        id: bytes = b"",
        reply: bytes = b"",
        reserved: bool = False,
        bulk: bool = False,
    ) -> list[Outcome]:
        """A transaction's outcome, in the list once it is known."""
        outcome: list[Outcome] = []
        self.clock += 1000
        done: Deferred[Committed] = Deferred()
        done.react(outcome.append, outcome.append)  # type: ignore[arg-type]
        self.group.admit(
            Transaction(
                badge,
                writes,
                list(expects),
                id,
                reply,
                "note",
                "1:2",
                7,
                reserved=reserved,
                time=self.clock,
                bulk=bulk,
            ),
            done,
        )
        return outcome

    def commit(
        self,
        writes: dict[str, str | None],
        expects: list[Expect | Range] | None = None,
        *,
        id: bytes = b"",
        reply: bytes = b"",
    ) -> int:
        """Writes by short names in keyspace 1, alone in a group; the revision counted from the kit's own.
        Raises what it came to."""
        rows = [(key(name), None if value is None else value.encode()) for name, value in writes.items()]
        outcome = self.admit(rows, expects or [], id=id, reply=reply)
        self.group.flush()
        (result,) = outcome
        if isinstance(result, AtollError):
            raise result
        return result.revision - self.base

    def state(self, revision: int | None = None, *, reverse: bool = False) -> dict[str, str]:
        """Keyspace 1 as of a revision counted from the kit's own."""
        at = None if revision is None else revision + self.base
        page = self.history.range(key(""), layout.prefix(2), 10_000, at, reverse)
        return {item.key[4:].decode(): (item.value or b"").decode() for item in page.items}

    def _announce(self, written: list[tuple[int, list[bytes]]]) -> None:
        self.announced += [revision for revision, _ in written]


def key(name: str, keyspace: int = 1) -> bytes:
    return layout.prefix(keyspace) + name.encode()
