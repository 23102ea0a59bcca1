"""A weakly ordered machine, and every way a few small programs can run on it.

Memory is one and the same for all threads (ARMv8 is multi-copy atomic), but a thread performs its instructions in any
order that the architecture allows: a load may be satisfied before loads, stores and undecided branches in front of it; a
store may wait while later loads go ahead (a store buffer) and later stores overtake it; a load may take its value from an
own store that nobody else can see yet. What keeps two accesses in order is listed in `_waits`: fences, acquire, release,
the same location, data. A system call waits for everything before it. With `branches` a store waits for the branches in
front of it, as on every machine; without, it does not: C11 promises no such order, so what holds without it holds for any
compiler.

The rules are those of C11's orderings as ARMv8 carries them out, and weaker than ARMv8 where C11 is: a release fence
orders what is before it against later stores only, an acquire load does not wait for an earlier release store. x86 allows
a subset. After Pulte et al., "Simplifying ARM concurrency" (POPL 2018), whose operational machine this is cut down from:
no mixed sizes, addresses are constants, a read-modify-write is one step.

`explore` visits every reachable state. A thread has only so many instructions in hand, so loops have finitely many states.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, NamedTuple

WINDOW = 6
"""Instructions that a thread has in hand at most, if nothing else is said."""
STATES_MOST = 5_000_000

Value = int | str
"""A number, or the register that holds it."""


@dataclass(frozen=True)
class Load:
    to: str
    at: str
    acquire: bool = False


@dataclass(frozen=True)
class Store:
    at: str
    value: Value
    release: bool = False


@dataclass(frozen=True)
class Exchange:
    """Reads and writes in one step."""

    to: str
    at: str
    value: Value
    acquire: bool = True
    release: bool = True


@dataclass(frozen=True)
class Fence:
    """`full`: all before, all after. `loads`: loads before, all after. `stores`: all before, stores after."""

    kind: Literal["full", "loads", "stores"]


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Jump:
    """Go to `to` if `when` holds of the registers `on`."""

    to: str
    on: tuple[str, ...] = ()
    when: Callable[..., bool] = lambda: True


@dataclass(frozen=True)
class Claim:
    """What must hold of the registers `on` here, in every run."""

    text: str
    on: tuple[str, ...]
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Sleep:
    """`FUTEX_WAIT`: sleep until woken, if the word holds `while_`."""

    at: str
    while_: int


@dataclass(frozen=True)
class Wake:
    """`FUTEX_WAKE` of all who sleep on the word."""

    at: str


@dataclass(frozen=True)
class Ring:
    """A byte on a doorbell."""

    bell: str


@dataclass(frozen=True)
class Listen:
    """Wait in an edge-triggered epoll until the doorbell has rung since it was last heard."""

    bell: str


@dataclass(frozen=True)
class Await:
    """A system call that returns once the word holds `value`: a process's end, as its pidfd tells it."""

    at: str
    value: int


Instruction = (
    Load | Store | Exchange | Fence | Label | Jump | Claim | Sleep | Wake | Ring | Listen | Await
)  # fmt: skip
Program = Sequence[Instruction]
_Call = (Sleep, Wake, Ring, Listen, Await)


class Pending(NamedTuple):
    """The value of a load that is not performed yet: its place among the instructions in hand."""

    place: int


Operand = int | Pending


class InHand(NamedTuple):
    """An instruction that was fetched: where it stands, what it works with, and what a branch was taken for."""

    at: int
    operands: tuple[Operand, ...] = ()
    guess: bool = False


class Thread(NamedTuple):
    at: int
    registers: tuple[Operand, ...]
    inhand: tuple[InHand, ...]
    asleep: str = ""


class State(NamedTuple):
    threads: tuple[Thread, ...]
    memory: tuple[int, ...]


class Failure(NamedTuple):
    text: str
    steps: tuple[str, ...]


@dataclass
class Exploration:
    """What was found: the registers of every end, and what went wrong on the way to some."""

    states: int = 0
    outcomes: set[tuple[tuple[str, int], ...]] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    """By text: the first way that was found."""

    def values(self, *names: str) -> set[tuple[int, ...]]:
        """The values that `thread.register` names can have together at the end."""
        return {tuple(dict(outcome)[name] for name in names) for outcome in self.outcomes}


class _Violated(Exception):
    pass


class _Machine:
    def __init__(
        self, programs: Mapping[str, Program], memory: Mapping[str, int], window: int, branches: bool
    ) -> None:
        self.names = list(programs)
        self._window = window
        self.programs = [list(program) for program in programs.values()]
        self.labels = [
            {item.name: at for at, item in enumerate(program) if isinstance(item, Label)}
            for program in self.programs
        ]
        items = [item for program in self.programs for item in program]
        words = sorted({word for item in items if (word := _word(item))} | set(memory))
        self.words = {word: at for at, word in enumerate(words)}
        self.registers = [_registers(program) for program in self.programs]
        self._order = [
            [[_waits(later, earlier, branches) for earlier in program] for later in program]
            for program in self.programs
        ]
        """By thread, later and earlier instruction: must the one wait for the other?"""
        self.first = State(
            tuple(Thread(0, (0,) * len(registers), ()) for registers in self.registers),
            tuple(memory.get(word, 0) for word in words),
        )

    def item(self, thread: int, entry: InHand) -> Instruction:
        return self.programs[thread][entry.at]

    # fetching ---------------------------------------------------------------------------------------------------------

    def fetched(self, number: int, thread: Thread) -> list[Thread]:
        """The thread with its window full and all that needs no memory done; one for each way to guess its branches.

        Fetching as early as can be loses nothing: what is in hand need not be performed yet.
        """
        found, open_ = [], [thread]
        while open_:
            settled = self._settled(number, open_.pop())
            if settled is None:
                continue
            more = self._fetch(number, settled)
            if more is None:
                found.append(settled)
            else:
                open_ += more
        return found

    def _fetch(self, number: int, thread: Thread) -> list[Thread] | None:
        """One instruction more in hand; None if there can be none."""
        program, entries = self.programs[number], thread.inhand
        if thread.asleep or thread.at >= len(program) or len(entries) >= self._window:
            return None
        if entries and isinstance(self.item(number, entries[-1]), _Call):
            return None
        item, after = program[thread.at], thread.at + 1
        match item:
            case Label():
                return [thread._replace(at=after)]
            case Jump(to=to, on=on, when=when):
                operands = self._operands(number, thread, on)
                target = self.labels[number][to]
                if all(isinstance(value, int) for value in operands):
                    return [thread._replace(at=target if when(*operands) else after)]
                return [
                    thread._replace(
                        at=target if taken else after,
                        inhand=(*entries, InHand(thread.at, operands, taken)),
                    )
                    for taken in (False, True)
                ]
            case Claim(on=on):
                entry = InHand(thread.at, self._operands(number, thread, on))
            case Store(value=value) | Exchange(value=value):
                entry = InHand(thread.at, self._operands(number, thread, (value,)))
            case _:
                entry = InHand(thread.at)
        registers = thread.registers
        if isinstance(item, Load | Exchange):
            at = self.registers[number][item.to]
            registers = (*registers[:at], Pending(len(entries)), *registers[at + 1 :])
        return [thread._replace(at=after, registers=registers, inhand=(*entries, entry))]

    def _operands(self, number: int, thread: Thread, names: Sequence[Value]) -> tuple[Operand, ...]:
        places = self.registers[number]
        return tuple(name if isinstance(name, int) else thread.registers[places[name]] for name in names)

    def _settled(self, number: int, thread: Thread) -> Thread | None:
        """Branches and claims whose values are known leave the window, fences that hold nothing up too. None: a branch
        was guessed wrongly, this run is another's."""
        entries, undecided = list(thread.inhand), False
        for place, entry in enumerate(entries):
            item = self.item(number, entry)
            known = all(isinstance(value, int) for value in entry.operands)
            if isinstance(item, Jump):
                if known and item.when(*entry.operands) != entry.guess:
                    return None
                if known:
                    return self._settled(number, _without(thread, place))
                undecided = True
            elif isinstance(item, Claim) and known and not undecided:
                if not item.holds(*entry.operands):
                    raise _Violated(f"{self.names[number]}: {item.text}")
                return self._settled(number, _without(thread, place))
            elif isinstance(item, Fence) and self._may(number, thread, place):
                return self._settled(number, _without(thread, place))
        return thread

    # performing -------------------------------------------------------------------------------------------------------

    def _may(self, number: int, thread: Thread, place: int) -> bool:
        """May this instruction be performed before those in front of it?"""
        waits = self._order[number][thread.inhand[place].at]
        return not any(waits[entry.at] for entry in thread.inhand[:place])

    def steps(self, state: State) -> list[tuple[str, State]]:
        """Every next state, with what was done."""
        found: list[tuple[str, State]] = []
        for number, thread in enumerate(state.threads):
            for place, entry in enumerate(thread.inhand):
                if not self._may(number, thread, place):
                    continue
                done = self._perform(state, number, place, entry)
                if done is None:
                    continue
                text, threads, memory = done
                ways = [
                    [after] if after is before else self.fetched(which, after)
                    for which, (before, after) in enumerate(zip(state.threads, threads, strict=True))
                ]
                found += [(f"{self.names[number]}: {text}", State(way, memory)) for way in product(*ways)]
        return found

    def _perform(
        self, state: State, number: int, place: int, entry: InHand
    ) -> tuple[str, tuple[Thread, ...], tuple[int, ...]] | None:
        threads, memory, item = state.threads, state.memory, self.item(number, entry)
        thread = threads[number]
        word = self.words.get(_word(item) or "", -1)

        def done(
            text: str, value: int | None = None, change: int | None = None
        ) -> tuple[str, tuple[Thread, ...], tuple[int, ...]]:
            after = memory if change is None else (*memory[:word], change, *memory[word + 1 :])
            return text, _put(threads, number, _without(thread, place, value)), after

        match item:
            case Load(at=at, to=to):
                value = self._forwarded(number, thread, place, at)
                if value is None:
                    value = memory[word]
                return None if isinstance(value, Pending) else done(f"{to} = {at} is {value}", value)
            case Store(at=at):
                value = entry.operands[0]
                return None if isinstance(value, Pending) else done(f"{at} = {value}", change=value)
            case Exchange(at=at, to=to):
                value = entry.operands[0]
                if isinstance(value, Pending):
                    return None
                return done(f"{to} = {at} is {memory[word]}, {at} = {value}", memory[word], value)
            case Sleep(at=at, while_=while_):
                text, threads, memory = done(
                    f"sleeps on {at}" if memory[word] == while_ else f"{at} has changed"
                )
                if state.memory[word] == while_:
                    threads = _put(threads, number, threads[number]._replace(asleep=at))
                return text, threads, memory
            case Wake(at=at):
                text, threads, memory = done(f"wakes who sleeps on {at}")
                woken = (other._replace(asleep="") if other.asleep == at else other for other in threads)
                return text, tuple(woken), memory
            case Ring(bell=bell):
                return done(f"rings {bell}", change=1)
            case Listen(bell=bell):
                return done(f"hears {bell}", change=0) if memory[word] else None
            case Await(at=at, value=value):
                return done(f"{at} is {value}") if memory[word] == value else None
        return None

    def _forwarded(self, number: int, thread: Thread, place: int, at: str) -> Operand | None:
        """The value of the last own store to the word that nobody else sees yet; None if there is none."""
        for entry in reversed(thread.inhand[:place]):
            item = self.item(number, entry)
            if isinstance(item, Store) and item.at == at:
                return entry.operands[0]
        return None

    # ends -------------------------------------------------------------------------------------------------------------

    def ended(self, state: State) -> bool:
        return all(
            not thread.inhand and not thread.asleep and thread.at >= len(program)
            for thread, program in zip(state.threads, self.programs, strict=True)
        )

    def doomed(self, state: State) -> bool:
        """Has a branch been guessed that will not be so? Then this run is none, and another has guessed right."""
        return any(
            isinstance(self.item(number, entry), Jump)
            for number, thread in enumerate(state.threads)
            for entry in thread.inhand
        )

    def stuck(self, state: State) -> str:
        waiting = []
        for number, thread in enumerate(state.threads):
            if thread.asleep:
                waiting.append(f"{self.names[number]} sleeps on {thread.asleep}")
            elif thread.inhand:
                waiting.append(f"{self.names[number]} waits for {_word(self.item(number, thread.inhand[0]))}")
        return ", ".join(waiting) + " for ever"

    def registers_of(self, state: State) -> tuple[tuple[str, int], ...]:
        named = []
        for name, places, thread in zip(self.names, self.registers, state.threads, strict=True):
            for register, at in places.items():
                value = thread.registers[at]
                assert isinstance(value, int)
                named.append((f"{name}.{register}", value))
        return tuple(named)


def _registers(program: Program) -> dict[str, int]:
    names = {item.to for item in program if isinstance(item, Load | Exchange)}
    return {name: at for at, name in enumerate(sorted(names))}


def _word(item: Instruction) -> str | None:
    match item:
        case (
            Load(at=word)
            | Store(at=word)
            | Exchange(at=word)
            | Sleep(at=word)
            | Wake(at=word)
            | Await(at=word)
        ):
            return word
        case Ring(bell=word) | Listen(bell=word):
            return word
    return None


def _waits(later: Instruction, earlier: Instruction, branches: bool) -> bool:
    """Must `later` wait until `earlier`, which stands in front of it, is performed?"""
    reads, writes = isinstance(later, Load | Exchange), isinstance(later, Store | Exchange)
    earlier_reads, earlier_writes = (
        isinstance(earlier, Load | Exchange),
        isinstance(earlier, Store | Exchange),
    )
    match later:
        case Claim():
            return False
        case Sleep() | Wake() | Ring() | Listen() | Await():
            return True
        case Fence(kind="loads"):
            return earlier_reads or (isinstance(earlier, Fence) and earlier.kind != "stores")
        case Fence():
            return earlier_reads or earlier_writes or isinstance(earlier, Fence)
    match earlier:
        case Jump():
            return writes and branches  # a load goes ahead on a guess
        case Fence(kind="stores"):
            return writes
        case Fence():
            return True
        case Claim():
            return False
    if getattr(earlier, "acquire", False) or getattr(later, "release", False):
        return True
    if _word(later) == _word(earlier):
        return (
            writes or earlier_reads or isinstance(earlier, Exchange)
        )  # else: a load behind a store, forwarded
    return not (reads or writes)


def _put(threads: tuple[Thread, ...], number: int, thread: Thread) -> tuple[Thread, ...]:
    return (*threads[:number], thread, *threads[number + 1 :])


def _without(thread: Thread, place: int, value: int | None = None) -> Thread:
    """The thread with the instruction at `place` performed; `value` is what it loaded."""

    def moved(operand: Operand) -> Operand:
        if not isinstance(operand, Pending):
            return operand
        if operand.place == place:
            assert value is not None
            return value
        return Pending(operand.place - 1) if operand.place > place else operand

    entries = tuple(
        entry._replace(operands=tuple(moved(operand) for operand in entry.operands))
        for at, entry in enumerate(thread.inhand)
        if at != place
    )
    return thread._replace(inhand=entries, registers=tuple(moved(operand) for operand in thread.registers))


def explore(
    programs: Mapping[str, Program],
    memory: Mapping[str, int] | None = None,
    *,
    window: int = WINDOW,
    branches: bool = True,
    enough: int = 0,
) -> Exploration:
    """Run the programs in every way.

    `memory`: words that do not begin as 0. `window`: instructions that a thread has in hand at most. `branches`: they order
    stores. `enough`: failures after which to stop (0: see everything). Raises MemoryError over `STATES_MOST` states.
    """
    machine, found = _Machine(programs, memory or {}, window, branches), Exploration()
    origins: dict[State, tuple[State | None, str]] = {}
    queue: deque[State] = deque()

    def way(state: State | None, *last: str) -> tuple[str, ...]:
        steps: list[str] = []
        while state is not None:
            state, text = origins[state]
            steps.append(text)
        return (*reversed([text for text in steps if text]), *last)

    def failed(text: str, steps: tuple[str, ...]) -> None:
        found.failures.setdefault(text, Failure(text, steps))

    def reached(state: State, origin: State | None, text: str) -> None:
        if state not in origins:
            origins[state] = (origin, text)
            queue.append(state)

    for threads in product(*(machine.fetched(*begun) for begun in enumerate(machine.first.threads))):
        reached(State(threads, machine.first.memory), None, "")
    while queue and not 0 < enough <= len(found.failures):
        state = queue.popleft()
        if len(origins) > STATES_MOST:
            raise MemoryError(f"more than {STATES_MOST} states: make the programs smaller")
        try:
            steps = machine.steps(state)
        except _Violated as violated:
            failed(str(violated), way(state))
            continue
        if not steps:
            if machine.ended(state):
                found.outcomes.add(machine.registers_of(state))
            elif not machine.doomed(state):
                failed(machine.stuck(state), way(state))
        for text, after in steps:
            reached(after, state, text)
    found.states = len(origins)
    return found
