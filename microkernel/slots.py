"""Slots of one server's capability table: which are taken, and under which generation.

A client addresses a capability by (slot, generation). A slot is used again after its capability is gone, its
generation never: a number that a client kept finds either its own capability or none. A slot whose 32 bits of
generation are spent is retired for as long as the table lives. Tables live as long as the kernel, and so do
these numbers: they are no rows.
"""

import heapq

LAST_GENERATION = 2**32 - 1
"""The table's field is 32 bits wide. Generation 0 is an empty entry's; a slot's first is 1."""


MOST = 1 << 16
"""Slots of one table: where the core, and every process that has it mapped, ends."""


class Slots:
    def __init__(self) -> None:
        self._generation: list[int] = []
        """Per slot ever used, its latest generation."""
        self._free: list[int] = []
        """A heap, so that the lowest slot is taken first and tables stay short."""
        self._taken: set[int] = set()

    def take(self) -> tuple[int, int]:
        """A free slot, of which there must be one, and the generation it has from now on."""
        if self._free:
            slot = heapq.heappop(self._free)
        else:
            slot = len(self._generation)
            self._generation.append(0)
        self._generation[slot] += 1
        self._taken.add(slot)
        return slot, self._generation[slot]

    def free(self, slot: int) -> None:
        """Gives a taken slot back, or retires it if its generations are spent."""
        self._taken.remove(slot)
        if self._generation[slot] < LAST_GENERATION:
            heapq.heappush(self._free, slot)

    def holds(self, slot: int, generation: int) -> bool:
        return slot in self._taken and self._generation[slot] == generation

    @property
    def taken(self) -> int:
        return len(self._taken)

    @property
    def free_slots(self) -> int:
        """How many can still be taken."""
        return len(self._free) + MOST - len(self._generation)

    def check(self) -> list[str]:
        """The invariants, as sentences about those that do not hold."""
        wrong = []
        if len(self._generation) > MOST:
            wrong.append(f"there are {len(self._generation)} slots, {MOST} at most")
        free = set(self._free)
        if len(free) != len(self._free):
            wrong.append("a slot is free twice")
        if free & self._taken:
            wrong.append(f"slots {sorted(free & self._taken)} are both free and taken")
        for slot, generation in enumerate(self._generation):
            if not 1 <= generation <= LAST_GENERATION:
                wrong.append(f"slot {slot} has generation {generation}")
            if slot not in free and slot not in self._taken and generation != LAST_GENERATION:
                wrong.append(f"slot {slot} is neither free, taken nor spent")
        return wrong
