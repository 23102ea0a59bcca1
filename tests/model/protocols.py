"""The core's protocols as programs for the weak machine: who waits for whom, which records pass, what is served."""

from collections.abc import Callable

from .core import CLOSED, DOORBELL, FUTEX, OPEN, Claim, Core, Steps
from .machine import Await, Jump, Label, Listen, Load, Ring, Sleep, Store, Wake

Programs = dict[str, Steps]
Model = Callable[[Core], tuple[Programs, dict[str, int]]]

MODELS: dict[str, Model] = {}


def model(function: Model) -> Model:
    MODELS[function.__name__] = function
    return function


def never(text: str) -> Claim:
    return Claim(text, (), lambda: False)


def same(text: str, register: str, value: int) -> Claim:
    return Claim(text, (register,), lambda seen: seen == value)


def taken(core: Core, position: int, word: str, value: int) -> Steps:
    """What a consumer does with a record that is there."""
    payload = core.fresh("payload")
    return [
        Load(payload, word),
        same(f"the record at {position} is whole", payload, value),
        *core.ring_finish(position),
    ]


# waiting --------------------------------------------------------------------------------------------------------------


@model
def replies_reach_a_client_that_sleeps(core: Core) -> tuple[Programs, dict[str, int]]:
    server: Steps = []
    client: Steps = []
    for position in (0, 1):
        word, here, told = f"payload{position}", f"taken{position}", f"told{position}"
        server += [*core.ring_produce(position, {word: 7}, lines=4), *core.wake()]
        client += [
            *core.atoll_wait(position, 4, 1, here, told),
            Label(told),
            never("nobody ends the channel"),
            Label(here),
            *taken(core, position, word, 7),
        ]
    return {"server": server, "client": client}, {"epoch": 1, "state": OPEN}


def _loop(look: str) -> Model:
    """Records reach a loop that sleeps, after `look`."""

    def build(core: Core) -> tuple[Programs, dict[str, int]]:
        writer: Steps = []
        loop: Steps = []
        for position in (0, 1):
            word, here = f"payload{position}", f"taken{position}"
            writer += [*core.ring_produce(position, {word: 7}, lines=4), *core.wake()]
            loop += [*core.park(position, 4, here, look), Label(here), *taken(core, position, word, 7)]
        return {"writer": writer, "loop": loop}, {}

    return build


MODELS["requests_reach_a_loop_that_sleeps"] = _loop("loop.c park a last look at the requests")
MODELS["replies_reach_a_loop_that_sleeps"] = _loop("loop.c park a last look at the replies")
MODELS["records_reach_a_loop_that_armed_their_channel"] = _loop("loop.c arm a last look at the ring")
MODELS["replies_reach_an_event_loop_that_sleeps"] = _loop("client.c atoll_arm a last look at the ring")


def ended(
    core: Core, epoch: int, state: int, answered: bool, rings: bool = True
) -> tuple[Programs, dict[str, int]]:
    """A server dies, having replied or not; the kernel sees its end, and tells the client that sleeps or not."""
    replied = core.ring_produce(0, {"payload": 7}, lines=4) if answered else []
    if not rings:
        replied += core.dies_before_it_rings()
    server = [*replied, Wake("its end"), Store("ended", 1)]
    kernel = [Await("ended", 1), *core.atoll_notice_channel(epoch, state, 10), *core.wake_surely()]
    end = never("a reply that was committed is taken") if answered else same("told", "zero", 0)
    client = [
        *core.atoll_wait(0, 4, 1, "here", "told"),
        Label("told"),
        *([] if end.on else [end]),
        Jump("over"),
        Label("here"),
        *(taken(core, 0, "payload", 7) if answered else [never("there is no reply")]),
        Label("over"),
    ]
    return {"server": server, "kernel": kernel, "client": client}, {"epoch": 1, "state": OPEN}


@model
def a_client_that_sleeps_learns_of_a_new_epoch(core: Core) -> tuple[Programs, dict[str, int]]:
    return ended(core, 2, OPEN, answered=False)


@model
def a_client_that_sleeps_learns_that_its_channel_is_closed(core: Core) -> tuple[Programs, dict[str, int]]:
    return ended(core, 1, CLOSED, answered=False)


@model
def what_was_committed_before_a_death_is_taken(core: Core) -> tuple[Programs, dict[str, int]]:
    return ended(core, 2, OPEN, answered=True)


@model
def what_was_committed_before_the_channel_closed_is_taken(core: Core) -> tuple[Programs, dict[str, int]]:
    return ended(core, 1, CLOSED, answered=True)


@model
def a_ring_that_a_dead_server_owed_is_made_up_for(core: Core) -> tuple[Programs, dict[str, int]]:
    """It took the word and was killed before it rang: the word says that nobody sleeps."""
    return ended(core, 2, OPEN, answered=True, rings=False)


@model
def a_notice_is_read_whole(core: Core) -> tuple[Programs, dict[str, int]]:
    kernel = [*core.atoll_notice_channel(2, OPEN, 20), *core.atoll_notice_channel(3, OPEN, 30, sequence=2)]
    client: Steps = [
        *core.notice_read("again"),
        Claim("epoch and base belong together", ("epoch", "base"), lambda epoch, base: base == 10 * epoch),
        Label("again"),
    ]
    return {"kernel": kernel, "client": client}, {"epoch": 1, "base": 10, "state": OPEN}


@model
def both_ends_go_on_at_a_new_base(core: Core) -> tuple[Programs, dict[str, int]]:
    """A server died with a reply committed. Its client takes that, puts its words to the base of the new epoch, and calls;
    the next server replies over it. Nothing of the old epoch is taken for something of the new one, what the client still
    copies is not written over, and the index that the new server finds is one of its epoch: it accuses nobody."""
    lines = 4
    base = 40 if core.has("channels.py server_died another base") else 0
    client: Steps = [
        *core.ring_ready(0, lines, "lost"),
        *taken(core, 0, "body0", 7),
        Label("again"),
        *core.notice_read("again"),
        Jump("again", ("epoch",), lambda epoch: epoch == 1),
        *core.ring_consumer_begin(base),
        *core.ring_produce(base, {"asked": 9}, lines, ring="request "),
        Label("nothing"),
        *core.ring_ready(base, lines, "nothing"),
        *taken(core, base, "body0", 8),
        Jump("over"),
        Label("lost"),
        never("what was committed is there"),
        Label("over"),
    ]
    kernel = [*core.atoll_notice_channel(2, OPEN, base), Ring("start")]
    server: Steps = [
        Listen("start"),
        Label("none"),
        *core.ring_ready(base, lines, "none", ring="request "),
        Load("request", "asked"),
        same("the request is whole", "request", 9),
        *core.ring_finish(base, ring="request "),
        *core.ring_observe("index"),
        Claim("the index is of this epoch", ("index",), lambda index: index >= base),
        *core.ring_produce(base, {"body0": 8}, lines),
    ]
    programs = {"client": client, "kernel": kernel, "server": server}
    return programs, {"epoch": 1, "state": OPEN, "line0": 1, "body0": 7}


# the ring -------------------------------------------------------------------------------------------------------------


@model
def records_lap_the_ring(core: Core) -> tuple[Programs, dict[str, int]]:
    lines, records = 3, 4
    producer: Steps = []
    consumer: Steps = []
    for position in range(records):
        if position + 2 > lines:
            full = core.fresh("full")
            room = position + 2 - lines
            producer += [Label(full), *core.ring_observe("index")]
            producer += [Jump(full, ("index",), lambda index, room=room: index < room)]
        word, nothing = f"body{position % lines}", core.fresh("nothing")
        producer += core.ring_produce(position, {word: 100 + position}, lines)
        consumer += [
            Label(nothing),
            *core.ring_ready(position, lines, nothing),
            *taken(core, position, word, 100 + position),
        ]
    return {"producer": producer, "consumer": consumer}, {}


def _frees_room(core: Core, lines: int) -> Steps:
    """A consumer that takes one record and waits for no other: spinning would hide that it never comes."""
    return [
        Label("nothing"),
        *core.ring_ready(0, lines, "nothing"),
        *taken(core, 0, "body0", 100),
        *core.channel_freed(),
    ]


def _for_room(where: str, how: int) -> Model:
    """Who sleeps for room is woken for it."""

    def build(core: Core) -> tuple[Programs, dict[str, int]]:
        lines = 2
        producer = [
            *core.ring_produce(0, {"body0": 100}, lines),
            Label("again"),
            *core.channel_produce(1, lines, "room", "starved"),
            *core.sleeps_for_room("starved", where, how),
            Jump("again"),
            Label("room"),
            *core.ring_produce(1, {"body1": 101}, lines),
        ]
        return {"producer": producer, "consumer": _frees_room(core, lines)}, {}

    return build


MODELS["a_loop_that_sleeps_for_room_is_woken"] = _for_room("loop.c park", DOORBELL)
MODELS["a_loop_that_armed_a_channel_for_room_is_woken"] = _for_room("loop.c arm", DOORBELL)
MODELS["an_event_loop_that_sleeps_for_room_is_woken"] = _for_room("client.c atoll_arm", DOORBELL)
MODELS["a_thread_that_sleeps_for_room_is_woken"] = _for_room("client.c atoll_wait", FUTEX)


@model
def a_thread_that_sleeps_is_woken_for_room_that_another_wants(core: Core) -> tuple[Programs, dict[str, int]]:
    """What one thread of a client owes, the one that receives for all sends, and that one is asleep already."""
    lines = 2
    sender = [
        *core.ring_produce(0, {"body0": 100}, lines),
        *core.channel_produce(1, lines, "room", "starved"),
        Jump("owed"),
        Label("room"),  # sent: its reply will wake who receives
        Store("parked", 0),
        Wake("parked"),
        Label("owed"),
    ]
    asleep: Steps = [Sleep("parked", FUTEX)]
    programs = {"sender": sender, "asleep": asleep, "consumer": _frees_room(core, lines)}
    return programs, {"parked": FUTEX}


@model
def a_payload_is_not_taken_for_a_record(core: Core) -> tuple[Programs, dict[str, int]]:
    """Who chose the first record's payload knew which number would stand for a record there a lap later."""
    lines, forged = 4, 6
    producer = [
        *core.ring_produce(0, {"line1": forged}, lines, record=2),
        *core.ring_produce(2, {}, lines, record=2),
        Label("full"),
        *core.ring_observe("index"),
        Jump("full", ("index",), lambda index: index < 2),
        *core.ring_produce(4, {}, lines),
    ]
    consumer: Steps = []
    for position, record in ((0, 2), (2, 2), (4, 1)):
        nothing = core.fresh("nothing")
        consumer += [
            Label(nothing),
            *core.ring_ready(position, lines, nothing),
            *core.ring_finish(position, record),
        ]
    consumer += [
        *core.ring_ready(5, lines, "none"),
        never("nobody wrote a record at 5"),
        Label("none"),
    ]
    return {"producer": producer, "consumer": consumer}, {}


@model
def threads_of_a_client_send_in_turn(core: Core) -> tuple[Programs, dict[str, int]]:
    """Whoever has the lock finds two private words as its last owner left them: equal."""

    def inside(value: int) -> Steps:
        one, other = core.fresh("one"), core.fresh("other")
        return [
            Load(one, "position"),
            Load(other, "requests"),
            Claim("what another thread wrote is whole", (one, other), lambda one, other: one == other),
            Store("position", value),
            Store("requests", value),
        ]

    return {name: core.locked(inside(number)) for number, name in enumerate(("sends", "renews"), 1)}, {}


# capabilities ---------------------------------------------------------------------------------------------------------


@model
def an_entry_is_read_whole(core: Core) -> tuple[Programs, dict[str, int]]:
    server: Steps = [
        *core.entry_read("again"),
        Claim("rights and badge belong together", ("rights", "badge"), lambda rights, badge: rights == badge),
        Label("again"),
    ]
    return {"kernel": core.entry_publish(2, 2), "server": server}, {"rights": 1, "badge": 1}


def _served(core: Core) -> Steps:
    """One call: the check in its window, and the handler's first step, if the entry allows it."""
    return [
        *core.window_open(1),
        *core.entry_read("refused"),
        Jump("refused", ("rights",), lambda rights: rights == 0),
        Load("returned", "returned"),
        *core.window_close(),
        same("nothing is served after revoke returned", "returned", 0),
        Label("refused"),
    ]


def _revoked(core: Core) -> Steps:
    return [*core.entry_publish(0, 0), *core.atoll_notice_revoked()]


@model
def nothing_is_served_after_revoke_returned(core: Core) -> tuple[Programs, dict[str, int]]:
    kernel = [*_revoked(core), *core.windows("passed"), Label("passed"), Store("returned", 1)]
    return {"kernel": kernel, "server": _served(core)}, {"rights": 1, "badge": 1}


@model
def nothing_revoked_is_served_by_a_task_that_waited(core: Core) -> tuple[Programs, dict[str, int]]:
    """A call was checked, and its window closed; its handler's task begins later, and checks again."""
    kernel = [*_revoked(core), *core.windows("passed"), Label("passed"), Store("returned", 1)]
    server: Steps = [
        *core.window_open(1),
        *core.entry_read("refused"),
        Jump("refused", ("rights",), lambda rights: rights == 0),
        *core.window_close(),
    ]
    look = core.has("tasks.py _run another look at its capability")
    if look:
        server += [
            *core.window_open(3),
            *core.entry_read("refused"),
            Jump("refused", ("rights",), lambda rights: rights == 0),
        ]
    server += [
        Load("returned", "returned"),
        *(core.window_close() if look else []),
        same("nothing is served after revoke returned", "returned", 0),
        Label("refused"),
    ]
    return {"kernel": kernel, "server": server}, {"rights": 1, "badge": 1}


@model
def a_loop_that_the_kernel_gave_up_serves_nothing_revoked(core: Core) -> tuple[Programs, dict[str, int]]:
    """It stood still in its window for longer than the kernel waits, which has it killed and returns. It may go on for some
    steps before the signal is there."""
    kernel: Steps = [
        Await("stands", 1),
        *_revoked(core),
        Store("returned", 1),
        Wake("stands"),  # the signal, a system call: what is before it has happened
        Store("killed", 1),
    ]
    server: Steps = [
        *core.window_open(1),
        *core.entry_read("refused"),
        Jump("refused", ("rights",), lambda rights: rights == 0),
        Ring("stands"),
        Await("killed", 1),
        *(
            [
                Load("count", "revocations"),
                Jump("dispatch", ("count",), lambda count: count == 0),
                *core.window_open(3),
                *core.entry_read("refused"),
                Jump("refused", ("rights",), lambda rights: rights == 0),
                Label("dispatch"),
            ]
            if core.has("loop.py _serve another look where the count of revocations has moved")
            else []
        ),
        Load("returned", "returned"),
        *core.window_close(),
        same("nothing is served after revoke returned", "returned", 0),
        Label("refused"),
    ]
    return {"kernel": kernel, "server": server}, {"rights": 1, "badge": 1}


@model
def a_count_that_moved_shows_what_was_revoked(core: Core) -> tuple[Programs, dict[str, int]]:
    """The handler's first step, and a task's: who sees the new count sees the entry that it counts."""
    server: Steps = [
        Load("count", "revocations"),
        Jump("over", ("count",), lambda count: count == 0),
        *core.window_open(1),
        *core.entry_read("over"),
        same("what the count tells of has happened", "rights", 0),
        Label("over"),
    ]
    return {"kernel": _revoked(core), "server": server}, {"rights": 1, "badge": 1}


def _frozen_at(step: int) -> Model:
    """A server is frozen after so many steps, loses a capability meanwhile, and goes on."""

    def build(core: Core) -> tuple[Programs, dict[str, int]]:
        served = _served(core)
        halted: Steps = [Ring("frozen"), Await("thawed", 1)]
        look: Steps = [
            Load("window", "window", acquire=True),
            Jump("again", ("window",), lambda window: window % 2 == 1),
        ]
        kernel: Steps = [
            Await("frozen", 1),
            *(look if core.has("life.py _halt a look at the window of who stands still") else []),
            *_revoked(core),
            Store("returned", 1),
            Wake("frozen"),  # a system call: what is before it has happened
            Label("again"),  # it is thawed, and frozen anew
            Store("thawed", 1),
        ]
        return {"kernel": kernel, "server": [*served[:step], *halted, *served[step:]]}, {
            "rights": 1,
            "badge": 1,
        }

    return build


for _step in range(len(_served(Core())) + 1):
    MODELS[f"a_server_frozen_after_step_{_step}_serves_nothing_revoked"] = _frozen_at(_step)
