"""The capability tree: who may call what, and from whom they have it. Pure logic, deterministic, no I/O.

A capability names an *object* (server, interface, badge) and the rights its holder has there. Each one but a
root has a parent from which it was made; a child never has more than its parent: the same object (or, under
an unbadged parent, a badge of its own), no more rights, no longer life. Taking a capability back takes all
below it, so whoever handed power on can undo it without knowing how far it went.
docs/decisions/0004-capability-tree.md argues what is only stated here.

A *holder* is a server's name, which outlives its processes, or `@NUMBER` for an attachment from outside. A
*lasting* capability is a row and comes back at the next boot; a *session* capability ends with its holder or
the boot.

Every operation changes the tree at once and returns what changed; the caller writes rows and tables in the
order the design gives, and undoes a mint, derive or grant whose row could not be committed with `revoke`.
What holds at all times is `check()`.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
from msgspec import Struct

from atoll.ipc.errors import BadRequest, NotAllowed, NotFound, QuotaExceeded
from atoll.ipc.system.kernel import written

from .accounts import Ledger
from .image import DELEGATE
from .rights import RightsMap, extend
from .slots import Slots

NEVER = 0
"""An expiry that does not come."""
UNBADGED = 0
ROOT_SLOT = -1
"""A root stands in no table: nobody calls through it, its server mints from it."""


class Capability(Struct, frozen=True, kw_only=True):
    """One capability. Compare by `id`; ids never come again, on no boot."""

    id: int
    parent: int
    """The capability it was made from; 0 for a root, which the server of the objects holds."""
    holder: str
    server: str
    interface: str
    badge: int
    """The object, as its server sees it; 0 is no badge: all objects, and the power to mint. Once set it never
    changes.
    """
    rights: frozenset[str]
    expiry: int = NEVER
    """Nanoseconds since the epoch from which on it is worth nothing; 0: never."""
    lasting: bool = False
    account: str = ""
    """Charged with one capability while this one lives."""
    slot: int = ROOT_SLOT
    generation: int = 0
    """Slot and generation in the server's table, for this life of the kernel; never in a row."""


class Ended(NamedTuple):
    """What an operation took away: table entries to clear, parents before children, and rows to delete or
    rewrite.
    """

    gone: list[Capability]
    moved: list[Capability] = []  # noqa: RUF012 (a NamedTuple's default, never changed)
    """Children of what ended, as they are now, under the nearest ancestor that lives."""


def no_later(expiry: int, than: int) -> bool:
    """Whether a life until `expiry` ends no later than one until `than`."""
    return than == NEVER or (expiry != NEVER and expiry <= than)


def _within(child: Capability, parent: Capability) -> bool:
    """Whether a child has no more than its parent."""
    return (
        (child.server, child.interface) == (parent.server, parent.interface)
        and parent.badge in (UNBADGED, child.badge)
        and child.rights <= parent.rights
        and no_later(child.expiry, parent.expiry)
        and (parent.lasting or not child.lasting)
    )


class Tree:
    """All capabilities of one node in one boot. `boot` is the boot epoch (1 or more), from which ids are
    made.
    """

    def __init__(self, boot: int, ledger: Ledger) -> None:
        self.ledger = ledger
        self._next = (boot << 32) + 1
        self._all: dict[int, Capability] = {}
        self._children: dict[int, dict[int, None]] = {}
        """Per capability its children, oldest first; dicts for their order."""
        self._held: dict[str, dict[int, None]] = {}
        self._roots: dict[tuple[str, str], int] = {}
        self._rights: dict[tuple[str, str], RightsMap] = {}
        self._slots: dict[str, Slots] = {}
        self._at: dict[tuple[str, int], int] = {}
        """By server and slot."""
        self._entries: dict[tuple[str, str], int] = {}
        """By server and account, how many slots of the server's table it has."""
        self._expiries: list[tuple[int, int]] = []
        """A heap of (expiry, id); entries of capabilities that ended before stay until they surface."""

    # reading ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Capability]:
        """All capabilities, parents before children."""
        for root in self._roots.values():
            yield from self._below(root)

    def get(self, id: int) -> Capability:
        """Raises `NotFound` if there is no such capability (any more)."""
        found = self._all.get(id)
        if found is None:
            raise NotFound(what="capability", name=written(id))
        return found

    def has(self, id: int) -> bool:
        """Whether there is such a capability (still)."""
        return id in self._all

    def held_by(self, holder: str) -> list[Capability]:
        """What `holder` holds, oldest first."""
        return [self._all[id] for id in self._held.get(holder, ())]

    def root(self, server: str, interface: str) -> Capability:
        """The unbadged capability of a server's interface; raises `NotFound`."""
        found = self._roots.get((server, interface))
        if found is None:
            raise NotFound(what="interface", name=f"{server}.{interface}")
        return self._all[found]

    def rights_map(self, server: str, interface: str) -> RightsMap:
        """Right names in bit order."""
        return self._rights[server, interface]

    def hold(self, held: Capability, rights: frozenset[str], method: str) -> None:
        """Raises `NotFound` for a right that the interface does not have, `NotAllowed` for one that is not held."""
        offered = {*self._rights[held.server, held.interface], DELEGATE}
        if unknown := sorted(rights - offered):
            raise NotFound.among(f"right of {held.server}.{held.interface} called", unknown[0], offered)
        if beyond := sorted(rights - held.rights):
            raise NotAllowed(method=method, needed=", ".join(beyond), held=tuple(sorted(held.rights)))

    def at(self, server: str, slot: int, generation: int) -> Capability | None:
        """The capability a table entry stands for, if it still does."""
        found = self._all.get(self._at.get((server, slot), 0))
        return found if found is not None and found.generation == generation else None

    # making -------------------------------------------------------------------------------------------------

    def offer(
        self, server: str, interface: str, rights: Iterable[str]
    ) -> tuple[Capability, Capability | None]:
        """Says that `server` serves `interface` with these rights: makes its root, or lets the root cover
        rights that a new version added. Returns the root now, and as it was. Raises `BadRequest` where bits
        run out."""
        key = (server, interface)
        names = extend(self._rights.get(key, ()), rights)
        self._rights[key] = names
        whole = frozenset(names) | {DELEGATE}
        if key in self._roots:
            before = self._all[self._roots[key]]
            after = msgspec.structs.replace(before, rights=whole)
            self._all[after.id] = after
            return after, before
        root = Capability(
            id=self._take_id(), parent=0, holder=server, server=server, interface=interface,
            badge=UNBADGED, rights=whole, lasting=True,
        )  # fmt: skip
        self._roots[key] = root.id
        self._enter(root)
        return root, None

    def mint(
        self, id: int, *, by: str, to: str, badge: int, rights: Iterable[str],
        expiry: int = NEVER, lasting: bool = False, account: str = "",
    ) -> Capability:  # fmt: skip
        """Makes a capability with a badge of its own from the unbadged `id`, which `by` holds (an object's
        server holds its root). For another holder than `by` this is a grant too: the right `delegate` is
        needed. `account` pays."""
        parent = self._of(id, by)
        if parent.badge != UNBADGED:
            raise BadRequest(
                where=f"mint from capability {written(id)}",
                expected="an unbadged one",
                got=f"one with badge {parent.badge}",
            )
        if not 0 < badge < 1 << 63:
            raise BadRequest(where="badge", expected="a number from 1 to 2**63 - 1", got=str(badge))
        return self._make(
            parent,
            method="mint",
            to=to,
            badge=badge,
            rights=rights,
            expiry=expiry,
            lasting=lasting,
            account=account,
        )

    def derive(
        self, id: int, *, by: str, rights: Iterable[str],
        expiry: int = NEVER, lasting: bool = False, account: str = "",
    ) -> Capability:  # fmt: skip
        """Makes a weaker capability of the same holder for the same object. `expiry` NEVER: the parent's."""
        parent = self._of(id, by)
        return self._make(
            parent, method="derive", to=by, badge=parent.badge, rights=rights, expiry=expiry, lasting=lasting,
            account=account,
        )  # fmt: skip

    def grant(
        self, id: int, *, by: str, to: str, rights: Iterable[str] | None = None,
        expiry: int = NEVER, lasting: bool = False, account: str = "",
    ) -> Capability:  # fmt: skip
        """Gives another holder a capability for the same object: all of `by`'s rights but `delegate` unless
        said otherwise. Needs the right `delegate`."""
        parent = self._of(id, by)
        if rights is None:
            rights = parent.rights - {DELEGATE}
        return self._make(
            parent, method="grant", to=to, badge=parent.badge, rights=rights, expiry=expiry, lasting=lasting,
            account=account,
        )  # fmt: skip

    def fix_order(self, server: str, interface: str, rights: RightsMap) -> None:
        """Before `restore`: a process that runs already knows the rights of its interface in this bit order."""
        self._rights[server, interface] = rights

    def restore(self, rows: Iterable[Capability]) -> list[Capability]:
        """At boot, into an empty tree: takes the lasting capabilities of earlier boots, roots too, in any
        order, and gives them slots of this boot. Returns those that cannot stand (no parent, or more than
        it), whose rows are to be deleted. Accounts are charged past their limits: what was granted is not
        taken back because a number in the image became smaller. Offer the interfaces afterwards, and
        `withdraw` servers that are gone."""
        gone = []
        for row in sorted(rows, key=lambda capability: capability.id):
            key = (row.server, row.interface)
            if row.parent == 0 and key not in self._roots:
                self._roots[key] = row.id
                self._rights[key] = extend(self._rights.get(key, ()), sorted(row.rights))
                self._enter(msgspec.structs.replace(row, slot=ROOT_SLOT, generation=0))
                continue
            parent, table = self._all.get(row.parent), self._slots.setdefault(row.server, Slots())
            if parent is None or not _within(row, parent) or not table.free_slots:
                gone.append(row)
                continue
            slot, generation = table.take()
            self.ledger.charge(row.account, "capabilities", past_limit=True)
            self._enter(msgspec.structs.replace(row, slot=slot, generation=generation))
        return gone

    # ending -------------------------------------------------------------------------------------------------

    def revoke(self, id: int, *, by: str | None, keep: bool = False) -> Ended:
        """Takes back `id` and all that was made from it; with `keep` only the latter. Allowed to whoever
        holds `id` or anything above it, and to the kernel itself (`by` None). A root goes with its server
        only (`withdraw`)."""
        capability = self.get(id)
        if by is not None and not self._above(by, id):
            raise NotFound(what="capability", name=written(id))
        if capability.parent == 0 and not keep:
            raise BadRequest(
                where=f"revoke capability {written(id)}",
                expected="one that was made from another",
                got=f"the root of {capability.server}, which ends when that server leaves the node",
            )
        gone = list(self._below(id))
        return self._end(gone[1:] if keep else gone)

    def withdraw(self, server: str) -> Ended:
        """Ends all capabilities for the objects of a server that is no part of the node any more, and its
        table.
        """
        gone = [
            capability
            for (owner, _), root in list(self._roots.items())
            if owner == server
            for capability in self._below(root)
        ]
        ended = self._end(gone)
        for key in [key for key in self._roots if key[0] == server]:
            del self._roots[key], self._rights[key]
        self._slots.pop(server, None)
        return ended

    def expire(self, now: int) -> Ended:
        """Ends what has expired at `now` (nanoseconds since the epoch)."""
        gone = []
        while self._expiries and self._expiries[0][0] <= now:
            _, id = heapq.heappop(self._expiries)
            if id in self._all:
                gone.append(self._all[id])
        gone.sort(key=lambda capability: capability.id)
        return self._end(gone)

    def next_expiry(self) -> int | None:
        """When `expire` next has something to do; None: never."""
        while self._expiries and self._expiries[0][1] not in self._all:
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def died(self, holder: str) -> Ended:
        """The process that held for `holder` is gone: its session capabilities end. What was made from them
        and is in other hands lives on under the nearest ancestor: a server's crash must not break what it
        handed out before."""
        return self._leave([held for held in self.held_by(holder) if not held.lasting])

    def let_go(self, ids: Iterable[int]) -> Ended:
        """These end, and what was made from them lives on under the nearest ancestor, as in `died`: for one of
        two processes that hold for the same server, as in a swap. Roots and ids that are gone are passed over."""
        held = [self._all[id] for id in sorted(ids) if id in self._all]
        return self._leave([capability for capability in held if capability.parent])

    def forget(self, holder: str) -> Ended:
        """The holder is no part of the node any more: all it holds ends, as in `died`."""
        return self._leave([held for held in self.held_by(holder) if held.parent])

    # inside -------------------------------------------------------------------------------------------------

    def _take_id(self) -> int:
        id = self._next
        self._next += 1
        return id

    def _of(self, id: int, by: str) -> Capability:
        """What others hold is not there for `by`: it learns nothing of it, not even that it is."""
        capability = self.get(id)
        if capability.holder != by:
            raise NotFound(what="capability", name=written(id))
        return capability

    def _make(
        self, parent: Capability, *, method: str, to: str, badge: int,
        rights: Iterable[str], expiry: int, lasting: bool, account: str,
    ) -> Capability:  # fmt: skip
        rights = frozenset(rights)
        held = tuple(sorted(parent.rights))
        if to != parent.holder and DELEGATE not in parent.rights:
            raise NotAllowed(method=method, needed=DELEGATE, held=held)
        self.hold(parent, rights, method)
        if expiry == NEVER:
            expiry = parent.expiry
        elif not no_later(expiry, parent.expiry):
            raise BadRequest(where=f"{method}, expiry", expected=f"at most {parent.expiry}", got=str(expiry))
        if lasting and not parent.lasting:
            raise BadRequest(
                where=f"{method} from capability {written(parent.id)}",
                expected="one of this session, as it is",
                got="lasting",
            )
        self._share(parent.server, account)
        self.ledger.charge(account, "capabilities")
        slot, generation = self._slots[parent.server].take()
        made = Capability(
            id=self._take_id(), parent=parent.id, holder=to, server=parent.server, interface=parent.interface,
            badge=badge, rights=rights, expiry=expiry, lasting=lasting, account=account,
            slot=slot, generation=generation,
        )  # fmt: skip
        self._enter(made)
        return made

    def _share(self, server: str, account: str) -> None:
        """Raises `QuotaExceeded` for an account that has as many entries of a server's table as are free: alone it gets
        half of the table, and each further one that takes all it can, half of what is left."""
        used = self._entries.get((server, account), 0)
        if used >= self._slots.setdefault(server, Slots()).free_slots:
            self.ledger.refused(account, "capabilities", used)
            raise QuotaExceeded(account=account, resource=f"capabilities on {server}", limit=used)

    def _enter(self, capability: Capability) -> None:
        self._all[capability.id] = capability
        self._children[capability.id] = {}
        if capability.parent:
            self._children[capability.parent][capability.id] = None
        self._held.setdefault(capability.holder, {})[capability.id] = None
        if capability.slot != ROOT_SLOT:
            self._at[capability.server, capability.slot] = capability.id
            entry = capability.server, capability.account
            self._entries[entry] = self._entries.get(entry, 0) + 1
        if capability.expiry != NEVER:
            heapq.heappush(self._expiries, (capability.expiry, capability.id))

    def _above(self, holder: str, id: int) -> bool:
        """Whether `holder` holds `id` or anything above it: one walk, however much it holds."""
        while id and self._all[id].holder != holder:
            id = self._all[id].parent
        return id != 0

    def _below(self, id: int) -> Iterator[Capability]:
        """`id` and all below it, parents before children."""
        waiting = [id]
        while waiting:
            at = waiting.pop()
            yield self._all[at]
            waiting.extend(reversed(self._children[at]))

    def _end(self, gone: list[Capability]) -> Ended:
        """`gone` is closed downwards: with a capability it has all its children."""
        for capability in reversed(gone):
            self._remove(capability)
        return Ended(gone)

    def _remove(self, capability: Capability) -> None:
        del self._all[capability.id], self._children[capability.id]
        if capability.parent in self._children:
            self._children[capability.parent].pop(capability.id, None)
        held = self._held[capability.holder]
        del held[capability.id]
        if not held:
            del self._held[capability.holder]
        if capability.slot != ROOT_SLOT:
            del self._at[capability.server, capability.slot]
            self._entries[capability.server, capability.account] -= 1
            self._slots[capability.server].free(capability.slot)
            self.ledger.release(capability.account, "capabilities")

    def _leave(self, gone: list[Capability]) -> Ended:
        moved: dict[int, Capability] = {}
        for capability in gone:
            children = list(self._children[capability.id])
            parent = self._all[capability.id].parent
            for child in children:
                adopted = msgspec.structs.replace(self._all[child], parent=parent)
                self._all[child] = adopted
                self._children[parent][child] = None
                moved[child] = adopted
            self._children[capability.id] = {}
            self._remove(self._all[capability.id])
        for capability in gone:
            moved.pop(capability.id, None)
        return Ended(gone, list(moved.values()))

    # invariants ---------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """The invariants of the whole tree, as sentences about those that do not hold; empty when all is
        well.
        """
        wrong = []
        charged: dict[str, int] = {}
        for capability in self._all.values():
            wrong += [f"capability {capability.id} {what}" for what in self._check_one(capability)]
            if capability.slot != ROOT_SLOT:
                charged[capability.account] = charged.get(capability.account, 0) + 1
        for account in charged.keys() | self.ledger.usage().keys():
            if charged.get(account, 0) != self.ledger.used(account, "capabilities"):
                wrong.append(
                    f"account {account!r} is charged for other than {charged.get(account, 0)} capabilities"
                )
        entries = Counter((c.server, c.account) for c in self._all.values() if c.slot != ROOT_SLOT)
        if entries != +Counter(self._entries):
            wrong.append(f"entries by server and account are {entries}, counted are {self._entries}")
        for server, slots in self._slots.items():
            wrong += [f"table of {server}: {what}" for what in slots.check()]
            taken = sum(c.server == server and c.slot != ROOT_SLOT for c in self._all.values())
            if taken != slots.taken:
                wrong.append(f"table of {server}: {slots.taken} slots taken, {taken} capabilities")
        if sorted(self._all) != sorted(capability.id for capability in self):
            wrong.append("not every capability hangs below a root")
        return wrong

    def _check_one(self, capability: Capability) -> Iterator[str]:
        key = (capability.server, capability.interface)
        if capability.id not in self._held.get(capability.holder, {}):
            yield "is not among what its holder holds"
        if not capability.rights <= {*self._rights.get(key, ()), DELEGATE}:
            yield "has rights its interface does not name"
        if capability.parent == 0:
            if (
                self._roots.get(key) != capability.id
                or capability.badge
                or capability.holder != capability.server
            ):
                yield "has no parent and is not its server's root"
            return
        parent = self._all.get(capability.parent)
        if parent is None:
            yield "has a parent that is gone"
            return
        if capability.id not in self._children[parent.id]:
            yield "is not among its parent's children"
        if capability.id <= parent.id:
            yield "is older than its parent"
        if (parent.server, parent.interface) != key or parent.badge not in (UNBADGED, capability.badge):
            yield "names another object than its parent"
        if not capability.rights <= parent.rights:
            yield "has rights its parent lacks"
        if not no_later(capability.expiry, parent.expiry):
            yield "outlives its parent"
        if capability.lasting and not parent.lasting:
            yield "lasts, and its parent does not"
        if not self._slots[capability.server].holds(capability.slot, capability.generation):
            yield "stands in no current slot of its server's table"
        if self.at(capability.server, capability.slot, capability.generation) != capability:
            yield "is not what its slot is known for"
