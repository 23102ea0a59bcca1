"""An attack over and over, on a real server and on real clients, while honest clients go on calling.

Every round has a channel of its own, which ends when its attacker was found out or the round is over. The test is in the
kernel's place: it hears who accuses whom, and closes the channel. An honest process calls all the while and checks every
reply; how long it waited it notes apart for the time of attacks and, if they are to be compared, for the time between:
in the quiet, and beside the same programs as in an attack, but all of them honest. What these take of two cores, and of a
server that serves one call after the other, is no harm that an attack does. What is set up before a round and taken down
after it belongs to none of these times: a call counts where one of its ends lies in one.
"""

import json
import math
import os
import random
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from mmap import mmap
from pathlib import Path

import trio
from msgspec.msgpack import Ext

from atoll.ipc.capability import BUFFER_CODE
from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.errors import AtollError
from atoll.ipc.system.control import DeliverBuffer, Port
from atoll.ipc.transport import DEFAULTS
from atoll.native import segments
from tests.kit.forked import forked
from tests.kit.serving import Memory, Serving, serving
from tests.native.suite import Server, Target

from .attack import Attacker, Record
from .attacks import ATTACKS, GOOD_REPLIES, Attack, Means
from .lies import SMALL, encode

ROUND = 0.25
"""Seconds that an attacker has at most."""
COMPARED = 4.0
"""Seconds of attack after which they are compared anew with what honest callers wait while nobody attacks."""
GRANTED = 1 << 18
GONE = "channel", "slot", "generation"
"""What is said of a capability whose channel is closed, and whose slot may be another's since."""
QUIET, BESIDE, ATTACKED, BETWEEN, OVER = range(5)
PHASE, CALLS, HISTOGRAM = 0, 1, 512
"""Words of the page that the honest process shares with the test. A histogram a phase, of `_BUCKETS` words."""
_BUCKETS = 1024
PATIENCE = 0.02
"""Seconds after which an attacked client gives a call up."""


@dataclass
class Report:
    attack: str
    rounds: int = 0
    attacked: float = 0.0
    """Seconds of attack in all rounds together."""
    calls: int = 0
    found: Counter[str] = field(default_factory=Counter)
    """What attackers were found out by, "victim: check"."""
    refused: Counter[str] = field(default_factory=Counter)
    waits: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    """99th percentile of an honest call in microseconds: in the quiet, beside honest programs in the places of the attackers
    and their victims, and beside an attack."""
    attackers: set[int] = field(default_factory=set)
    """Their channels, of earlier rounds as well: what was in one when it was closed is refused a little later."""
    killed: set[int] = field(default_factory=set)
    """Channels of honest programs that ended in the middle of a call: it comes to a capability that is gone."""
    grown: tuple[int, int] = (0, 0)
    """Descriptors and KiB that the server has more at the end than after the first rounds."""

    @property
    def ratio(self) -> float:
        """What the attack adds to what honest programs take in its place."""
        return self.waits[ATTACKED] / self.waits[BESIDE]

    def __str__(self) -> str:
        quiet, beside, meanwhile = self.waits
        found = (
            ", ".join(f"{what} {count}" for what, count in sorted(self.found.items())) or "nothing to prove"
        )
        refused = ", ".join(f"{why} {count}" for why, count in sorted(self.refused.items()))
        return (
            f"{self.attack}: {self.rounds} rounds, {self.attacked:.0f} s of attack, {self.calls} honest calls, "
            f"p99 {quiet:.0f} us quiet, {beside:.0f} us beside honest ones, {meanwhile:.0f} us meanwhile "
            f"({meanwhile / quiet:.2f} x, {self.ratio:.2f} x); server grew by {self.grown[0]} descriptors, "
            f"{self.grown[1]} KiB\n    found out: {found}" + (f"\n    refused: {refused}" if refused else "")
        )


# the honest -----------------------------------------------------------------------------------------------------------


def _bucket(nanoseconds: int) -> int:
    """Sixteen to an octave."""
    octave = nanoseconds.bit_length()
    return octave * 16 + (nanoseconds >> max(0, octave - 5) & 15)


def _percentile(counts: "memoryview[int]", share: float) -> float:
    """In microseconds, to the upper edge of its bucket; NaN of nothing."""
    left = sum(counts) * share
    if not left:
        return math.nan
    for bucket, count in enumerate(counts):
        left -= count
        if left <= 0:
            octave, part = divmod(bucket, 16)
            return (17 + part) * 2.0 ** (octave - 5) / 1000
    raise AssertionError("counts do not add up")


def _honest(served: Serving, memory: Memory, port: Port, words: "memoryview[int]") -> None:
    """Calls until it is over, and is never told a wrong thing nor kept waiting for ever."""
    target = served.bind(memory, Target, port)
    number = 0
    while (phase := words[PHASE]) != OVER:
        number += 1
        began = time.monotonic_ns()
        doubled = target.double.now(number)
        waited = time.monotonic_ns() - began
        assert doubled == number * 2
        if phase == BETWEEN and (ended := words[PHASE]) != OVER:
            phase = ended
        words[HISTOGRAM + _BUCKETS * phase + _bucket(waited)] += 1
        words[CALLS] = number
        if number % 64 == 0:
            assert list(target.numbers.now(20)) == list(range(20))


Granted = tuple[Memory, Port]
"""A channel, and the capability that its client was granted there."""


def _victim(served: Serving, other: Granted, own: Granted, loop: bool, stop: int, told: int) -> None:
    """Calls a server that may be hostile, and an honest one, in turn; tells what it found out."""
    lied_to = served.bind(other[0], Target, other[1]).with_(deadline=PATIENCE)
    honest = served.bind(own[0], Target, own[1])
    over = select.poll()
    over.register(stop, select.POLLHUP)
    number = 0

    async def ask() -> None:
        with suppress(AtollError):  # which one depends on what was hit
            if number % 3:
                await lied_to.double(number)
            else:
                _ = [item async for item in lied_to.numbers(20)]
        assert await honest.double(number) == number * 2

    def ask_now() -> None:
        with suppress(AtollError):
            if number % 3:
                lied_to.double.now(number)
            else:
                list(lied_to.numbers.now(20))
        assert honest.double.now(number) == number * 2

    async def asking() -> None:
        nonlocal number
        while not over.poll(0) and not served.accused:
            number += 1
            if loop:
                await ask()
            else:
                ask_now()

    trio.run(asking) if loop else _run(asking)
    os.write(told, json.dumps(served.accused).encode())


def _run(coroutine: object) -> None:
    """A coroutine that waits for nothing."""
    with suppress(StopIteration):
        coroutine().send(None)  # type: ignore[operator]


# rounds ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _ends_well(pid: int) -> Iterator[None]:
    """The child has ended with 0 afterwards, however long that takes."""
    yield
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None and (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0), (
        f"it ended with {ended}"
    )


def _goes_on(attacker: int) -> None:
    """An attack that has ended by itself was none."""
    ended = os.waitid(os.P_PID, attacker, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    assert ended is None, f"the attacker ended with {ended}"


def _granted(served: Serving, memory: Memory, token: int) -> int:
    """A buffer that nothing was ever written to: all of it is a hole."""
    buffer = os.memfd_create("granted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(buffer, GRANTED)
    segments.seal(buffer, segments.SEALS["writable"])
    served._send(DeliverBuffer(token=token, size=GRANTED, mode="writable", channel=memory.number), buffer)
    return buffer


def _argument(attack: Attack, token: int) -> object:
    """What the method is called with that the attack leans on; `token` names a buffer that was granted."""
    buffer = Ext(BUFFER_CODE, token.to_bytes(8, "big"))
    return {"double": 21, "mirror": b"x" * 900, "weigh": buffer}[attack.method]


During = Callable[[], AbstractContextManager[None]]
"""Around the time that a round is about, once it is set up."""


def _against_server(
    served: Serving, attack: Attack, chance: random.Random, report: Report, during: During
) -> None:
    memory = served.add_channel()
    report.attackers.add(memory.number)
    port = served.grant(memory, Target)
    numbers = {method.name: method.spec.number for method in served.methods(Target)}
    argument = _argument(attack, report.rounds)
    good = []
    for value in (argument, argument, "no such thing"):
        payload = encode([value])
        good.append((Record(0, len(payload), numbers[attack.method], slot=port.slot,
                            generation=port.generation), payload))  # fmt: skip
    granted = _granted(served, memory, report.rounds)
    means = Means(Attacker(memory, server=False), chance, good, granted)
    with forked(partial(attack.run, means)) as attacker:
        with during():
            until = time.monotonic() + ROUND
            while not served.misbehaved and (left := until - time.monotonic()) > 0:
                if select.select([served.control], [], [], left)[0]:
                    served._note(served._receive())
        _goes_on(attacker)
    served.observe()
    for found in served.misbehaved:
        assert found.channel in report.attackers, f"somebody else was accused: {found}"
        report.found[f"server: {found.check}"] += 1
    for refused in served.refused:
        if refused.channel in report.killed and refused.why in GONE:
            continue
        assert refused.channel in report.attackers, f"somebody else was refused: {refused}"
        report.refused[refused.why] += refused.count
    served.misbehaved.clear()
    served.refused.clear()
    os.close(granted)
    served.forget_channel(memory)


def _against_client(
    served: Serving, attack: Attack, chance: random.Random, report: Report, during: During
) -> None:
    hostile = served.add_channel(served=False)
    port = Port(channel=hostile.number, slot=0, generation=1, interface="Target", rights=("read", "write"))
    means = Means(Attacker(hostile, server=True), chance, GOOD_REPLIES, -1)
    beside = partial(attack.run, means)
    accused = _lied_to(served, (hostile, port), beside, bool(report.rounds % 2), during)
    for channel, check in accused:
        assert channel == hostile.number, f"somebody else was accused: {channel}: {check}"
        report.found[f"client: {check}"] += 1
    hostile.closed = True  # nobody serves it: there is nobody to tell
    served.forget_channel(hostile)


def _lied_to(
    served: Serving, other: Granted, beside: Callable[[], None], loop: bool, during: During
) -> list[tuple[int, str]]:
    """A round of a client that calls by turns over `other` and over a good channel, beside a process of either kind. Returns
    whom it accuses, of what."""
    good = served.add_channel()
    own = good, served.grant(good, Target)
    stopped, stop = os.pipe()
    heard, told = os.pipe()

    def victim() -> None:
        os.close(stop)
        _victim(served, other, own, loop, stopped, told)

    with forked(victim) as calling, _ends_well(calling):
        with forked(beside) as process:
            with during():
                select.select([heard], [], [], ROUND)
            _goes_on(process)
        os.close(stop)
        accused = json.loads(os.read(heard, 65536))
    for end in (stopped, heard, told):
        os.close(end)
    served.forget_channel(good)
    return [(channel, check) for channel, check in accused]


# the same without a lie -----------------------------------------------------------------------------------------------


@contextmanager
def _caller(served: Serving, attack: Attack) -> Iterator[tuple[int, Callable[[int], None]]]:
    """Its channel, and how an honest program asks the server, so many times, for what the attacker asks for. Raises what it
    is answered."""
    memory = served.add_channel()
    port = served.grant(memory, Target)
    granted = _granted(served, memory, 1)
    os.pwrite(granted, os.urandom(GRANTED), 0)
    spec = next(method.spec for method in served.methods(Target) if method.name == attack.method)
    payload = encode([_argument(attack, 1)])

    def call(times: int) -> None:
        over = ChannelTransport(served.client(memory), port)
        for _ in range(times):
            over.call_now(spec, payload, DEFAULTS)

    yield memory.number, call
    os.close(granted)
    served.forget_channel(memory)


def _beside_callers(served: Serving, attack: Attack, report: Report, during: During) -> None:
    """A round of an honest program that does so as fast as it can."""

    with _caller(served, attack) as (channel, call), forked(partial(call, sys.maxsize)) as process:
        report.killed.add(channel)
        with during():
            _nothing_is_said(served, ROUND)
        _goes_on(process)


def _beside_served(served: Serving, loop: bool, during: During) -> None:
    """A round of a client to which nobody lies, beside a process that only computes."""
    memory = served.add_channel()
    accused = _lied_to(served, (memory, served.grant(memory, Target)), _compute, loop, during)
    assert not accused, f"the honest were accused: {accused}"
    served.forget_channel(memory)


def _nothing_is_said(served: Serving, seconds: float) -> None:
    heard = select.select([served.control], [], [], seconds)[0]
    assert not heard, "somebody was accused, and nobody attacked"


def _compute() -> None:
    while True:
        pass


def _size(pid: int) -> tuple[int, int]:
    """Open descriptors, and KiB of memory of its own."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return len(os.listdir(f"/proc/{pid}/fd")), resident


def storm(name: str, seconds: float, *, seed: int, compare: bool) -> Report:
    """Attack until all rounds together took so long, and an attacker was found out where one can be. AssertionError for
    whoever came to harm. `compare`: now and then nobody attacks."""
    report, attack, chance = Report(name), ATTACKS[name], random.Random(seed)
    page = mmap(-1, 8 * (HISTOGRAM + OVER * _BUCKETS))
    words = memoryview(page).cast("Q")
    words[PHASE] = BETWEEN
    comparisons = 0

    @contextmanager
    def phase(number: int) -> Iterator[None]:
        words[PHASE], began = number, time.monotonic()
        try:
            yield
        finally:
            words[PHASE] = BETWEEN
            report.attacked += (time.monotonic() - began) * (number == ATTACKED)

    quiet, beside, attacked = (partial(phase, number) for number in (QUIET, BESIDE, ATTACKED))
    with serving(Server, shape=SMALL, clients=0) as served:
        with _caller(served, attack) as (_, call):
            call(1)  # else an attack would lean on what the server refuses anyway
        memory = served.add_channel()
        port = served.grant(memory, Target)
        with forked(lambda: _honest(served, memory, port, words)) as honest, _ends_well(honest):
            began = 0, 0
            while report.attacked < seconds or (attack.proven and not report.found):
                if compare and report.attacked >= comparisons * COMPARED:
                    comparisons += 1
                    with quiet():
                        _nothing_is_said(served, 2 * ROUND)
                    _beside_callers(served, attack, report, beside)
                    if attack.to_client:
                        _beside_served(served, bool(comparisons % 2), beside)
                _against_server(served, attack, chance, report, attacked)
                if attack.to_client:
                    _against_client(served, attack, chance, report, attacked)
                report.rounds += 1
                if report.rounds == 3:
                    began = _size(served.pid)
            served.observe()
            descriptors, resident = _size(served.pid)
            words[PHASE] = OVER
        if report.rounds > 3:
            report.grown = descriptors - began[0], resident - began[1]
        assert served.stop() == 0
    report.calls = words[CALLS]
    counts = [words[HISTOGRAM + phase * _BUCKETS :][:_BUCKETS] for phase in (QUIET, BESIDE, ATTACKED)]
    quiet, beside, meanwhile = (_percentile(each, 0.99) for each in counts)
    report.waits = quiet, beside, meanwhile
    return report
