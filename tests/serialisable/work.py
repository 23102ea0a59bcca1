"""What clients of the store do to be checked: append to lists in two keyspaces, in each of the ways in which there are
transactions, and write down what they were told.

A transaction is a generator that stops before each call, so that a test can have one client's calls come between another's;
and once it has asked for its commit, with what will tell the outcome, so that commits of several clients can form a group.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from atoll.ipc.errors import Aborted, AtollError, Conflict, NodeDown, Overloaded
from atoll.ipc.future import Future
from atoll.ipc.system.state import Committed, Expect, Item, Page, Range, State, Write

from .anomalies import Append, Read, Transaction

SLOTS: Final = 3
"""Keys of one group in one keyspace: what one range read sees."""
AT_ONCE: Final = 3
"""Groups that are in use at a time."""
GROUP: Final = 40
"""Transactions of one client until a group is left behind: lists stay short, and keys appear in ranges again and again."""

Steps = Iterator[Future[Committed] | None]
"""Stops before each call (None), and until a commit is settled."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, ...]).decode

KEYSPACES: Final = ("a", "b")


def raw(group: int, slot: int) -> bytes:
    return b"%06d/%d" % (group, slot)


def name(keyspace: str, key: bytes) -> str:
    """As the history calls a key of a keyspace."""
    return f"{keyspace}/{key.decode()}"


def values(item: Item | None) -> tuple[int, ...]:
    return () if item is None or item.value is None else _decode(item.value)


def appended(before: tuple[int, ...], value: int) -> bytes:
    return _encode((*before, value))


class Client:
    """Has one transaction in hand at a time. `told`: gets each when it is over."""

    def __init__(self, stores: dict[str, State], number: int, told: Callable[[Transaction], None]) -> None:
        """`number`, below 64, makes its values and commit ids differ from every other client's."""
        self.stores = stores
        self._number = number
        self._chance = random.Random(number)
        self._told = told
        self._count = 0
        self._value = number
        self._did: list[Append | Read] = []
        self._committing = False

    def one(self) -> Steps:
        """One transaction, from its beginning to its outcome. Raises `NodeDown` once the outcome is written down."""
        self._count += 1
        self._did, self._committing = [], False
        kind = self._chance.choices(
            (self._interactive, self._at_once, self._looks, self._reads), (8, 8, 2, 2)
        )[0]
        began, outcome, down = time.monotonic_ns(), "ok", None
        try:
            yield from kind()
        except (Conflict, Aborted, Overloaded):
            outcome = "failed"
        except AtollError as error:
            outcome = "unknown" if self._committing else "failed"
            down = error if isinstance(error, NodeDown) else None
        did = self._did if outcome == "ok" else [each for each in self._did if isinstance(each, Append)]
        self._told(Transaction(began, time.monotonic_ns(), outcome, tuple(did)))  # type: ignore[arg-type]
        if down is not None:
            raise down

    def _place(self) -> tuple[str, int]:
        """A keyspace, and a group of keys in it."""
        return self._chance.choice(KEYSPACES), self._count // GROUP + self._chance.randrange(AT_ONCE)

    def _new(self) -> int:
        self._value += 64
        return self._value

    def _saw(self, keyspace: str, group: int, page: Page) -> dict[bytes, Item]:
        """A range read of a whole group: what is not there is empty."""
        found = {item.key: item for item in page.items}
        for slot in range(SLOTS):
            key = raw(group, slot)
            self._did.append(Read(name(keyspace, key), values(found.get(key))))
        return found

    def _commits(self, asked: Future[Committed]) -> Steps:
        self._committing = True
        yield asked
        asked.result()

    # the ways of transacting

    def _interactive(self) -> Steps:
        """Begun, read and written call by call in both keyspaces, finished."""
        chance, owner = self._chance, self.stores[self._chance.choice(KEYSPACES)]
        yield
        transaction = owner.begin.now(60.0)
        for _ in range(chance.randrange(1, 5)):
            keyspace, group = self._place()
            store = self.stores[keyspace]
            key = raw(group, chance.randrange(SLOTS))
            yield
            if chance.random() < 0.4:
                self._saw(keyspace, group, store.scan.now(transaction, raw(group, 0), raw(group, SLOTS)))
                continue
            before = values(store.read.now(transaction, key))
            self._did.append(Read(name(keyspace, key), before))
            if chance.random() < 0.7:
                yield
                value = self._new()
                store.commit.now([Write(key, appended(before, value))], transaction=transaction)
                self._did.append(Append(name(keyspace, key), value))
        yield
        yield from self._commits(owner.finish.start(transaction))

    def _at_once(self) -> Steps:
        """Read without a transaction, perhaps at a reader; then one commit, which says what it rests on."""
        chance = self._chance
        keyspace, group = self._place()
        store = self.stores[keyspace]
        writes, expects = [], list[Expect | Range]()
        for key in chance.sample([raw(group, slot) for slot in range(SLOTS)], chance.randrange(1, SLOTS + 1)):
            yield
            item = store.get.now(key)
            before = values(item)
            expects.append(Expect(key, 0 if item is None else item.revision))
            self._did.append(Read(name(keyspace, key), before))
            if chance.random() < 0.6:
                value = self._new()
                writes.append(Write(key, appended(before, value)))
                self._did.append(Append(name(keyspace, key), value))
        if chance.random() < 0.4:
            _, other = self._place()
            if other != group:
                yield
                page = store.range.now(raw(other, 0), raw(other, SLOTS))
                self._saw(keyspace, other, page)
                expects.append(Range(raw(other, 0), raw(other, SLOTS), page.revision))
        yield
        id = b"%d %d" % (self._number, self._count) if writes else b""
        yield from self._commits(store.commit.start(writes, expects, id))

    def _looks(self) -> Steps:
        """One range, as it is at one moment."""
        keyspace, group = self._place()
        yield
        self._saw(keyspace, group, self.stores[keyspace].range.now(raw(group, 0), raw(group, SLOTS)))

    def _reads(self) -> Steps:
        """Ranges of both keyspaces in a transaction that is given up: what it saw is of one moment all the same."""
        owner = self.stores["a"]
        yield
        transaction = owner.begin.now(60.0)
        for _ in range(2):
            for keyspace in KEYSPACES:
                group = self._place()[1]
                yield
                page = self.stores[keyspace].scan.now(transaction, raw(group, 0), raw(group, SLOTS))
                self._saw(keyspace, group, page)
        owner.abort.now(transaction)


def everything(stores: dict[str, State]) -> dict[str, tuple[int, ...]]:
    """Every list, when nobody writes any more."""
    found = {}
    for keyspace, store in stores.items():
        start, more = b"", True
        while more:
            page = store.range.now(start)
            found |= {name(keyspace, item.key): values(item) for item in page.items}
            more = page.more
            start = page.items[-1].key + b"\0" if more else b""
    return found
