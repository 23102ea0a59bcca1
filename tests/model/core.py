"""The C core's functions as the machine runs them: the accesses to shared memory, in the order of the source.

Every ordered access has a name, `file function accessor` (`#2` for a second one of its kind there), as has every look
that is made again, and what else an argument rests on: `file function`, and what a comment there says cannot be spared. A
`Core` that is told to leave one out makes it plain: a fence is gone, an acquire or a release is relaxed, a second look is
not taken. `protocols.py` is made of them; `test_core.py` holds the names to the source and shows that none can be spared.
"""

from .machine import (
    Claim,
    Exchange,
    Fence,
    Instruction,
    Jump,
    Label,
    Listen,
    Load,
    Ring,
    Sleep,
    Store,
    Value,
    Wake,
)

Steps = list[Instruction]

FUTEX, DOORBELL = 1, 2
OPEN, CLOSED = 1, 3


class Core:
    """Builds the functions. `named` collects what could be left out; `absent` is."""

    def __init__(self, absent: str = "") -> None:
        self.named: set[str] = set()
        self._absent = absent
        self._count = 0

    def has(self, name: str) -> bool:
        self.named.add(name)
        return name != self._absent

    def fresh(self, name: str) -> str:
        """A label or register that no other call of a function uses."""
        self._count += 1
        return f"{name}{self._count}"

    def fence(self, name: str, kind: str) -> Steps:
        full = Fence({"store_load": "full", "loads": "loads", "stores": "stores"}[kind])  # type: ignore[arg-type]
        return [full] if self.has(f"{name} fence_{kind}") else []

    def load_acquire(self, name: str, to: str, at: str) -> Load:
        return Load(to, at, acquire=self.has(f"{name} load_acquire"))

    def store_release(self, name: str, at: str, value: Value) -> Store:
        return Store(at, value, release=self.has(f"{name} store_release"))

    # ring.c -----------------------------------------------------------------------------------------------------------

    def ring_consumer_begin(self, base: int, ring: str = "") -> Steps:
        """Who takes from a ring of a new epoch says where it begins."""
        return (
            [Store(f"{ring}consumed", base)]
            if self.has("ring.c ring_consumer_begin the index at the new base")
            else []
        )

    def ring_produce(
        self, position: int, payload: dict[str, Value], lines: int, record: int = 1, ring: str = ""
    ) -> Steps:
        """A record at `position` of a ring of `lines` lines whose word N is `lineN`; `payload` are its words. `ring`: what
        its words' names begin with, where there are two."""
        return [
            *(Store(word, value) for word, value in payload.items()),
            *(
                [Store(f"{ring}line{(position + record) % lines}", 0)]
                if self.has("ring.c ring_produce the zero where the next record will commit")
                else []
            ),
            self.store_release("ring.c ring_produce", f"{ring}line{position % lines}", position + 1),
        ]

    def ring_observe(self, to: str) -> Steps:
        return [self.load_acquire("ring.c ring_observe", to, "consumed")]

    def ring_ready(self, position: int, lines: int, no: str, ring: str = "") -> Steps:
        """Goes on if the record is there, to `no` if not."""
        commit = self.fresh("commit")
        return [
            self.load_acquire("ring.h ring_ready", commit, f"{ring}line{position % lines}"),
            Jump(no, (commit,), lambda seen, wanted=position + 1: seen != wanted),
        ]

    def ring_finish(self, position: int, record: int = 1, ring: str = "") -> Steps:
        return [self.store_release("ring.c ring_finish", f"{ring}consumed", position + record)]

    # wait.c -----------------------------------------------------------------------------------------------------------

    def wake(self, parked: str = "parked", bell: str = "bell") -> Steps:
        seen, how = self.fresh("seen"), self.fresh("how")
        over, ring = self.fresh("awake"), self.fresh("ring")
        return [
            *self.fence("wait.c wake", "store_load"),
            Load(seen, parked),
            Jump(over, (seen,), lambda seen: seen == 0),
            Exchange(how, parked, 0),
            Jump(ring, (how,), lambda how: how != FUTEX),
            Wake(parked),
            Label(ring),
            Jump(over, (how,), lambda how: how != DOORBELL),
            Ring(bell),
            Label(over),
        ]

    def wake_surely(self, parked: str = "parked", bell: str = "bell") -> Steps:
        return [
            *self.fence("wait.c wake_surely", "store_load"),
            *([Store(parked, 0)] if self.has("wait.c wake_surely the word that is cleared") else []),
            Wake(parked),
            Ring(bell),
        ]

    def dies_before_it_rings(self, parked: str = "parked") -> Steps:
        """`wake` of a process that is killed once it has taken the word."""
        seen, over = self.fresh("seen"), self.fresh("over")
        return [
            *self.fence("wait.c wake", "store_load"),
            Load(seen, parked),
            Jump(over, (seen,), lambda seen: seen == 0),
            Exchange(self.fresh("how"), parked, 0),
            Label(over),
        ]

    def park_announce(self, how: int) -> Steps:
        return [Store("parked", how), *self.fence("wait.c park_announce", "store_load")]

    def park_over(self) -> Steps:
        return [Store("parked", 0)]

    # channel.c --------------------------------------------------------------------------------------------------------

    def channel_noticed(self, epoch: int, yes: str) -> Steps:
        """To `yes` if the kernel closed the channel or began another epoch."""
        state, seen = self.fresh("state"), self.fresh("epoch")
        return [
            self.load_acquire("channel.c channel_noticed", state, "state"),
            Jump(yes, (state,), lambda state: state == CLOSED),
            Load(seen, "epoch", acquire=self.has("channel.c channel_noticed load_acquire#2")),
            Jump(yes, (seen,), lambda seen: seen != epoch),
        ]

    def channel_produce(self, position: int, lines: int, room: str, starved: str) -> Steps:
        """To `room` if a record of one line has room at `position`; else the register `starved` is what it depends on."""

        def look() -> Steps:
            index = self.fresh("index")
            enough = position + 2 - lines
            return [*self.ring_observe(index), Jump(room, (index,), lambda index: index >= enough)]

        return [
            *look(),
            Load(starved, "consumed"),
            Store("wants_room", 1),
            *self.fence("channel.c channel_produce", "store_load"),
            *(look() if self.has("channel.c channel_produce another try") else []),
        ]

    def sleeps_for_room(self, starved: str, where: str, how: int) -> Steps:
        """What one does that has nothing else to do: it sleeps until it may try again."""
        now, stay = self.fresh("now"), self.fresh("stay")
        return [
            *self.park_announce(how),
            *(
                [Load(now, "consumed"), Jump(stay, (starved, now), lambda starved, now: starved != now)]
                if self.has(f"{where} a last look at the room")
                else []
            ),
            Listen("bell") if how == DOORBELL else Sleep("parked", FUTEX),
            Label(stay),
            *self.park_over(),
        ]

    def channel_freed(self) -> Steps:
        """The end of a batch that was taken."""
        wanted, over = self.fresh("wanted"), self.fresh("over")
        return [
            *self.fence("channel.c channel_freed", "store_load"),
            Load(wanted, "wants_room"),
            Jump(over, (wanted,), lambda wanted: wanted == 0),
            *self.wake(),
            Label(over),
        ]

    def notice_read(self, again: str) -> Steps:
        """The words `epoch` and `base` into registers of these names, together; to `again` if they are being written."""
        before, after = self.fresh("before"), self.fresh("after")
        return [
            self.load_acquire("channel.c notice_read", before, "sequence"),
            Jump(again, (before,), lambda sequence: sequence % 2 == 1),
            Load("epoch", "epoch"),
            Load("base", "base"),
            *self.fence("channel.c notice_read", "loads"),
            *(
                [Load(after, "sequence"), Jump(again, (before, after), lambda before, after: before != after)]
                if self.has("channel.c notice_read another look at the sequence")
                else []
            ),
        ]

    def locked(self, inside: Steps) -> Steps:
        """What a client's thread does while it has `sending`."""
        again, held = self.fresh("again"), self.fresh("held")
        return [
            Label(again),
            Exchange(held, "sending", 1, acquire=self.has("channel.h sending_begin exchange"), release=False),
            Jump(again, (held,), lambda held: held == 1),
            *inside,
            self.store_release("channel.h sending_end", "sending", 0),
        ]

    # client.c ---------------------------------------------------------------------------------------------------------

    def atoll_wait(self, position: int, lines: int, epoch: int, taken: str, told: str) -> Steps:
        """Wait for the record at `position`: to `taken` with it, to `told` if the kernel says that none will come."""
        again, nothing, noticed = self.fresh("again"), self.fresh("nothing"), self.fresh("noticed")
        last, stay, sleep = self.fresh("last"), self.fresh("stay"), self.fresh("sleep")
        return [
            Label(again),
            *self.ring_ready(position, lines, nothing),
            Jump(taken),
            Label(nothing),
            *self.channel_noticed(epoch, noticed),
            *self.park_announce(FUTEX),
            *(
                [*self.ring_ready(position, lines, last), Jump(stay), Label(last)]
                if self.has("client.c atoll_wait a last look at the ring")
                else []
            ),
            *(
                self.channel_noticed(epoch, stay)
                if self.has("client.c atoll_wait a last look at the notice")
                else []
            ),
            Jump(sleep),
            Label(stay),
            *self.park_over(),
            Jump(again),
            Label(sleep),
            Sleep("parked", FUTEX),
            *self.park_over(),
            Jump(again),
            Label(noticed),
            *(
                [*self.ring_ready(position, lines, told), Jump(taken)]
                if self.has("client.c atoll_wait another look after a notice")
                else [Jump(told)]
            ),
        ]

    # loop.c -----------------------------------------------------------------------------------------------------------

    def park(self, position: int, lines: int, taken: str, look: str) -> Steps:
        """A loop: poll, arm, `look` again, sleep in the epoll; to `taken` with the record at `position`."""
        again, nothing, sleep = self.fresh("again"), self.fresh("nothing"), self.fresh("sleep")
        return [
            Label(again),
            *self.ring_ready(position, lines, nothing),
            Jump(taken),
            Label(nothing),
            *self.park_announce(DOORBELL),
            *(
                [*self.ring_ready(position, lines, sleep), *self.park_over(), Jump(again)]
                if self.has(look)
                else []
            ),
            Label(sleep),
            Listen("bell"),
            *self.park_over(),
            Jump(again),
        ]

    def window_open(self, number: int) -> Steps:
        return [Store("window", number), *self.fence("loop.c window_open", "store_load")]

    def window_close(self) -> Steps:
        return [self.store_release("loop.c window_close", "window", 0)]

    # table.c ----------------------------------------------------------------------------------------------------------

    def entry_read(self, again: str) -> Steps:
        """The words `rights` and `badge` into registers of these names, together."""
        before, after = self.fresh("before"), self.fresh("after")
        return [
            self.load_acquire("table.c entry_read", before, "sequence"),
            Jump(again, (before,), lambda sequence: sequence % 2 == 1),
            Load("rights", "rights"),
            Load("badge", "badge"),
            *self.fence("table.c entry_read", "loads"),
            *(
                [Load(after, "sequence"), Jump(again, (before, after), lambda before, after: before != after)]
                if self.has("table.c entry_read another look at the sequence")
                else []
            ),
        ]

    def entry_publish(self, rights: int, badge: int, sequence: int = 0) -> Steps:
        return [
            Store("sequence", sequence + 1),
            *self.fence("table.c entry_publish", "stores"),
            Store("rights", rights),
            Store("badge", badge),
            self.store_release("table.c entry_publish", "sequence", sequence + 2),
        ]

    def atoll_notice_channel(self, epoch: int, state: int, base: int, sequence: int = 0) -> Steps:
        return [
            Store("sequence", sequence + 1),
            *self.fence("table.c atoll_notice_channel", "stores"),
            Store("epoch", epoch),
            Store("state", state),
            Store("base", base),
            self.store_release("table.c atoll_notice_channel", "sequence", sequence + 2),
        ]

    def atoll_notice_revoked(self) -> Steps:
        return [
            Store("revocations", 1),
            *self.fence("table.c atoll_notice_revoked", "store_load"),
        ]

    def windows(self, passed: str) -> Steps:
        """The kernel waits until the window that it sees has changed."""
        window, later, again = self.fresh("window"), self.fresh("later"), self.fresh("again")
        return [
            self.load_acquire("table.c atoll_status_window", window, "window"),
            Jump(passed, (window,), lambda window: window % 2 == 0),
            *(
                [
                    Label(again),
                    self.load_acquire("table.c atoll_status_window", later, "window"),
                    Jump(again, (window, later), lambda window, later: window == later),
                ]
                if self.has("windows.py _passed the wait until it moves")
                else []
            ),
        ]


__all__ = ["CLOSED", "DOORBELL", "FUTEX", "OPEN", "Claim", "Core", "Steps"]
