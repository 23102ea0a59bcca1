"""Whether a recorded history of transactions can have been run one after the other: what Elle asks of it.

Kingsbury and Alvaro, *Elle: Inferring Isolation Anomalies from Experimental Observations* (VLDB 2020). Every key holds a
list, and all that a transaction does to one is to append a value that nobody else appends. So a list that was read tells who
wrote the key before, and in which order; and two transactions are bound by what they did to a key:

- *ww*: the second appended right after the first;
- *wr*: the second read a list that ends with the first's value;
- *rw*: the first read a list that the second's value comes after;
- *real time*: the first was answered before the second was begun.

A serial order goes along every edge, so there is none if they form a circle. What kind of circle says what went wrong, in
the words of Adya: G0 (ww alone), G1c (ww and wr), G-single (one rw: a lost update, a read that is torn), G2 (several rw:
write skew, phantoms). A circle that needs an edge of real time breaks no order, but shows somebody what is no longer so.

A transaction whose outcome nobody was told counts if a value of its was read, and is left out otherwise; what it read is not
known. The absence of a key is an empty list, so that a range that was read is a read of each key that could have been in it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Final, Literal, NamedTuple

Outcome = Literal["ok", "failed", "unknown"]
"""It was told that it was committed; that it was not; or neither."""
WW, WR, RW, TIME = 1, 2, 4, 8
_NAMES: Final = {WW: "ww", WR: "wr", RW: "rw", TIME: "real time"}


class Append(NamedTuple):
    key: str
    value: int


class Read(NamedTuple):
    key: str
    values: tuple[int, ...]


class Transaction(NamedTuple):
    """What one transaction did, in order. Times in ns of one clock; `ended` counts only if it was told its outcome."""

    began: int
    ended: int
    outcome: Outcome
    did: tuple[Append | Read, ...]


class Anomaly(NamedTuple):
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


class Graph:
    """Transactions by number, and what binds one to the next."""

    def __init__(self) -> None:
        self.edges: dict[int, dict[int, int]] = defaultdict(dict)
        """From one to another: the kinds of their edges, as bits."""

    def bind(self, before: int, after: int, kind: int) -> None:
        if before != after:
            edges = self.edges[before]
            edges[after] = edges.get(after, 0) | kind

    def __len__(self) -> int:
        return sum(map(len, self.edges.values()))


class History:
    """Transactions, and what their reads say of each other. `final`: every key, as it was read when all was over."""

    def __init__(self, transactions: Iterable[Transaction], *, final: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError where a value was appended twice: nobody could tell who wrote it."""
        self.transactions = list(transactions)
        self._writers: dict[tuple[str, int], int] = {}
        self._last: dict[tuple[int, str], int] = {}
        """By transaction and key the value that it appended last."""
        for number, transaction in enumerate(self.transactions):
            for each in transaction.did:
                if isinstance(each, Append):
                    if (each.key, each.value) in self._writers:
                        raise ValueError(f"{each.value} was appended to {each.key} twice: values must differ")
                    self._writers[each.key, each.value] = number
                    self._last[number, each.key] = each.value
        self._final = final
        self.graph = Graph()

    def anomalies(self) -> list[Anomaly]:
        """All that is wrong with single reads, and of each kind of circle one."""
        found = [*self._within(), *self._read()]
        orders, wrong = self._orders()
        found += wrong
        found += self._lost(orders)
        self._bind(orders)
        found += self._circles("")
        self._bind_times()
        found += self._circles(" in real time")
        return found

    # single transactions ---------------------------------------------------------------------------------------------

    def _outside(self) -> Iterator[tuple[int, str, tuple[int, ...]]]:
        """Each transaction's view of a key before it did something to it: the transaction, the key, the list."""
        for number, transaction in enumerate(self.transactions):
            if transaction.outcome != "ok":
                continue
            own: dict[str, int] = defaultdict(int)
            seen: set[str] = set()
            for each in transaction.did:
                if isinstance(each, Append):
                    own[each.key] += 1
                elif each.key not in seen:
                    seen.add(each.key)
                    yield number, each.key, each.values[: len(each.values) - own[each.key]]
        for key, values in self._final.items():
            yield len(self.transactions), key, values

    def _within(self) -> Iterator[Anomaly]:
        """Reads that miss what the transaction itself has read or appended before."""
        for transaction in self.transactions:
            if transaction.outcome != "ok":
                continue
            known: dict[str, tuple[int, ...]] = {}
            own: dict[str, tuple[int, ...]] = defaultdict(tuple)
            for each in transaction.did:
                if isinstance(each, Append):
                    own[each.key] += (each.value,)
                    if each.key in known:
                        known[each.key] += (each.value,)
                    continue
                expected = known.get(each.key, each.values)
                mine = own[each.key]
                if each.values != expected or each.values[len(each.values) - len(mine) :] != mine:
                    yield Anomaly("internal", f"{each} after {transaction.did}")
                known[each.key] = each.values

    def _read(self) -> Iterator[Anomaly]:
        """Lists that hold what nobody, or nobody who committed, wrote; or half of what one transaction wrote; or one value
        twice."""
        for number, key, values in self._outside():
            if len(set(values)) < len(values):
                yield Anomaly("duplicate", f"{key} was read as {values}")
            for value in values:
                writer = self._writers.get((key, value))
                if writer is None:
                    yield Anomaly("garbage", f"{value} was read in {key}, and nobody wrote it")
                elif self.transactions[writer].outcome == "failed":
                    yield Anomaly(
                        "G1a", f"{value} was read in {key}, and its transaction was told that it failed"
                    )
            if values:
                writer = self._writers.get((key, values[-1]))
                if writer is not None and writer != number and self._last[writer, key] != values[-1]:
                    yield Anomaly("G1b", f"{key} was read as {values}, in the middle of a transaction")

    # orders ----------------------------------------------------------------------------------------------------------

    def _orders(self) -> tuple[dict[str, tuple[int, ...]], list[Anomaly]]:
        """By key the order of its values: the longest list that was read, of which every other one is the beginning."""
        orders: dict[str, tuple[int, ...]] = {}
        for _, key, values in self._outside():
            if len(values) >= len(orders.get(key, ())):
                orders[key] = values
        wrong = [
            Anomaly("incompatible order", f"{key} was read as {values} and as {orders[key]}")
            for _, key, values in self._outside()
            if orders[key][: len(values)] != values
        ]
        return orders, wrong

    def _lost(self, orders: dict[str, tuple[int, ...]]) -> Iterator[Anomaly]:
        """Appends that were acknowledged, and are not there in the end; or that were there once."""
        for (key, value), writer in self._writers.items():
            transaction = self.transactions[writer]
            if transaction.outcome == "ok" and value not in self._final.get(key, ()):
                yield Anomaly("lost append", f"{value} was acknowledged and is not in {key} at the end")
        for key, values in orders.items():
            for value in values[len(self._final.get(key, ())) :]:
                yield Anomaly("lost append", f"{value} was read in {key} and is not there at the end")

    def _bind(self, orders: dict[str, tuple[int, ...]]) -> None:
        """The edges of ww, wr and rw."""
        for key, values in orders.items():
            writers = [self._writers.get((key, value)) for value in values]
            for before, after in pairwise(writers):
                if before is not None and after is not None:
                    self.graph.bind(before, after, WW)
        for number, key, values in self._outside():
            order = orders[key]
            if number == len(self.transactions) or order[: len(values)] != values:
                continue
            writer = self._writers.get((key, values[-1])) if values else None
            if writer is not None:
                self.graph.bind(writer, number, WR)
            if len(values) < len(order):
                following = self._writers.get((key, order[len(values)]))
                if following is not None:
                    self.graph.bind(number, following, RW)

    def _bind_times(self) -> None:
        """The edges of real time that no two others make up for."""
        moments: list[tuple[int, int, int]] = []
        bound = {after for edges in self.graph.edges.values() for after in edges} | set(self.graph.edges)
        for number, transaction in enumerate(self.transactions):
            if transaction.outcome == "ok":
                moments += [(transaction.began, 0, number), (transaction.ended, 1, number)]
            elif transaction.outcome == "unknown" and number in bound:
                moments.append((transaction.began, 0, number))
        over: set[int] = set()
        """Those that have ended, and that no other which has ended was begun after."""
        before: dict[int, frozenset[int]] = {}
        for _, ends, number in sorted(moments):
            if ends:
                over -= before.pop(number)
                over.add(number)
            else:
                before[number] = frozenset(over)
                for each in over:
                    self.graph.bind(each, number, TIME)

    # circles ---------------------------------------------------------------------------------------------------------

    def _circles(self, suffix: str) -> Iterator[Anomaly]:
        """One of each kind. With a suffix only those that need an edge of real time."""
        more = TIME if suffix else 0
        for kind, kinds in (("G0", WW), ("G1c", WW | WR)):
            for part in parts(self.graph, kinds | more):
                circle = self._circle(part, kinds | more, WR if kind == "G1c" else WW)
                if circle is not None and self._needs(circle, more):
                    yield Anomaly(kind + suffix, self._told(circle))
                    break
        yield from self._with_reads(suffix, more)

    def _with_reads(self, suffix: str, more: int) -> Iterator[Anomaly]:
        """Circles with edges of rw: one, or several."""
        single = several = False
        for part in parts(self.graph, WW | WR | RW | more):
            members = set(part)
            for before in part:
                for after, kinds in self.graph.edges[before].items():
                    if after not in members or not kinds & RW or kinds & (WW | WR):
                        continue
                    if not single and (back := path(self.graph, after, before, WW | WR | more, members)):
                        single = self._needs([before, *back], more)
                        if single:
                            yield Anomaly("G-single" + suffix, self._told([before, *back]))
                    elif not several and not path(self.graph, after, before, WW | WR | more, members):
                        back = path(self.graph, after, before, WW | WR | RW | more, members)
                        several = bool(back) and self._needs([before, *back], more)
                        if several:
                            yield Anomaly("G2" + suffix, self._told([before, *back]))
                    if single and several:
                        return

    def _circle(self, part: list[int], kinds: int, with_: int) -> list[int] | None:
        members = set(part)
        for before in part:
            for after, found in self.graph.edges[before].items():
                if after in members and found & with_:
                    back = path(self.graph, after, before, kinds, members)
                    if back:
                        return [before, *back]
        return None

    def _needs(self, circle: list[int], more: int) -> bool:
        """Whether one of its edges is of that kind and no other."""
        return not more or any(self.graph.edges[one][other] == more for one, other in pairwise(circle))

    def _told(self, circle: list[int]) -> str:
        words = [f"T{circle[0]} {self.transactions[circle[0]].did}"]
        for one, other in pairwise(circle):
            kinds = self.graph.edges[one][other]
            names = "+".join(name for bit, name in _NAMES.items() if kinds & bit)
            words.append(f"-{names}-> T{other} {self.transactions[other].did if other != circle[0] else ''}")
        return " ".join(words)


def path(graph: Graph, start: int, end: int, kinds: int, members: set[int]) -> list[int]:
    """A shortest way from one transaction to another along edges of some kinds; empty: there is none."""
    came: dict[int, int] = {start: start}
    ring = [start]
    while ring and end not in came:
        further = []
        for each in ring:
            for after, found in graph.edges[each].items() if each in graph.edges else ():
                if found & kinds and after in members and after not in came:
                    came[after] = each
                    further.append(after)
        ring = further
    if end not in came:
        return []
    way = [end]
    while way[-1] != start:
        way.append(came[way[-1]])
    return way[::-1]


def parts(graph: Graph, kinds: int) -> list[list[int]]:
    """The sets of transactions that lie on circles with each other (Tarjan), along edges of some kinds."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    open_: list[int] = []
    on: set[int] = set()
    found: list[list[int]] = []
    for root in list(graph.edges):
        if root in index:
            continue
        work = [(root, _after(graph, root, kinds))]
        index[root] = low[root] = len(index)
        open_.append(root)
        on.add(root)
        while work:
            node, edges = work[-1]
            for after in edges:
                if after not in index:
                    index[after] = low[after] = len(index)
                    open_.append(after)
                    on.add(after)
                    work.append((after, _after(graph, after, kinds)))
                    break
                if after in on:
                    low[node] = min(low[node], index[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part = []
                    while not part or part[-1] != node:
                        part.append(open_.pop())
                    on.difference_update(part)
                    if len(part) > 1:
                        found.append(part)
    return found


def _after(graph: Graph, node: int, kinds: int) -> Iterator[int]:
    if node not in graph.edges:
        return iter(())
    return (after for after, found in graph.edges[node].items() if found & kinds)
