"""What a hostile end of a channel does for as long as it is let. It plays a client against a server, or a server against a
client (`Attacker.server`), and never ends by itself.

Each names what it may be found out by: `proven` if the checks can see it, else there is nothing to record, since whoever
withholds, rings or gives memory back has broken no rule."""

import contextlib
import ctypes
import os
import random
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from atoll.native import Kind

from .attack import LINE, PAGE, Attacker, Record

NORMAL = 1
LIBC = ctypes.CDLL(None, use_errno=True)
PUNCH_HOLE = 3
"""FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE."""


class Means(NamedTuple):
    """What an attack has to work with."""

    attacker: Attacker
    chance: random.Random
    good: list[tuple[Record, bytes]]
    """Records that the victim takes, with their payload."""
    granted: int
    """A buffer that the victim may name, too: its descriptor."""


def _words(means: Means) -> "memoryview[int]":
    return memoryview(means.attacker.memory.mapped).cast("Q")


def _follow(means: Means) -> int:
    """Where the victim looks for the next record: it says so itself."""
    attacker = means.attacker
    at = 2 * LINE + (2 * NORMAL + attacker.server) * LINE
    seen = int.from_bytes(attacker.memory.mapped[at : at + 8], "little")
    attacker.position[NORMAL] = seen % 2**62  # where nothing overflows: it may be our own lie
    return attacker.position[NORMAL]


def _send(means: Means) -> tuple[Record, bytes]:
    record, payload = means.chance.choice(means.good)
    record = replace(record, request=means.chance.randrange(1, 1 << 20))
    means.attacker.write(record, payload)
    return record, payload


def _bell(means: Means) -> socket.socket:
    memory = means.attacker.memory
    return memory.server_bell if means.attacker.server else memory.client_bell


def scribble(means: Means) -> None:
    """Random bytes anywhere, random words where they matter, commit words that might fit."""
    memory, chance, words = means.attacker.memory, means.chance, _words(means)
    size = len(memory.mapped)
    while True:
        match chance.randrange(5):
            case 0:
                at, length = chance.randrange(size), chance.randrange(1, 4096)
                memory.mapped[at : at + length] = chance.randbytes(min(length, size - at))
            case 1:
                words[chance.randrange(64)] = chance.getrandbits(64)
            case 2:
                words[chance.randrange(512, 4096)] = memory.base + chance.randrange(1 << 16) + 1
            case 3:
                _follow(means)
                record = Record(
                    0, chance.getrandbits(8), kind=chance.randrange(12), slot=chance.randrange(64)
                )
                means.attacker.write(record, chance.randbytes(record.length))
            case 4:
                means.attacker.wake()


def rewrite(means: Means) -> None:
    """A good record whose header changes while it is read: each field to and fro, the commit word among them."""
    attacker, chance, words = means.attacker, means.chance, _words(means)
    while True:
        position = _follow(means)
        at = (attacker.ring(NORMAL) + (position & ((1 << attacker.memory.shape.ring_bits) - 1))) // 8
        record, payload = chance.choice(means.good)
        good = replace(record, position=position, request=chance.randrange(1, 1 << 20)).packed()
        attacker.write(record, payload)
        for _ in range(50):
            word = chance.randrange(8)
            wrong = chance.choice((0, chance.getrandbits(64), 1 << chance.randrange(64), 2**64 - 1))
            if word == 0:
                wrong = 0
            right = int.from_bytes(good[word * 8 : word * 8 + 8], "little")
            for _turn in range(20):
                words[at + word] = wrong
                words[at + word] = right
        attacker.wake()


def rewind(means: Means) -> None:
    """Calls, while the index of what was taken goes backwards, ahead, and between; and records of before come again."""
    attacker, chance, words = means.attacker, means.chance, _words(means)
    ring = attacker.ring(NORMAL) // 8
    size = 1 << attacker.memory.shape.ring_bits
    while True:
        _follow(means)
        for _ in range(8):
            _send(means)
        for lane in range(attacker.memory.shape.lanes):
            steps = (-LINE, -size, LINE, size, 1, 1 << 32, 2**63)
            attacker.rewind(lane, attacker.memory.base + chance.choice(steps) * chance.randrange(3))
        before = attacker.position[NORMAL] - LINE * chance.randrange(1, size // LINE)
        words[ring + (before & (size - 1)) // 8] = (
            chance.choice((before, attacker.position[NORMAL])) + 1
        ) % 2**64
        attacker.wake()


def withhold(means: Means) -> None:
    """Fill the ring, and take nothing; or take every request, and answer none."""
    attacker, words = means.attacker, _words(means)
    shape = attacker.memory.shape
    requests, taken = PAGE + (2 * NORMAL << shape.ring_bits), attacker.memory.base
    while True:
        if not attacker.server:
            _follow(means)
            for _ in range(16):
                _send(means)
            continue
        at = (requests + (taken & ((1 << shape.ring_bits) - 1))) // 8
        if words[at] == taken + 1:
            length = words[at + 1] & 0xFFFFFFFF
            taken += LINE + (length + LINE - 1) // LINE * LINE
            attacker.rewind(NORMAL, taken)


def ring_and_drain(means: Means) -> None:
    """Flood the peer's doorbell, drain the own one, set and clear the words that say who sleeps."""
    chance, bell, attacker = means.chance, _bell(means), means.attacker
    bell.setblocking(False)
    halves = memoryview(attacker.memory.mapped).cast("I")
    while True:
        _follow(means)
        _send(means)
        for _ in range(20):
            with contextlib.suppress(OSError):
                bell.send(b"!" * chance.choice((1, 500, 65536)))
            with contextlib.suppress(OSError):
                bell.recv(65536)
            for side in (0, 16):
                halves[side] = chance.choice((0, 1, 2, 3, 2**32 - 1))
                halves[side + 1] = chance.choice((0, 1, 2**32 - 1))
                halves[side + 2] = chance.getrandbits(32)
                halves[side + 3] = chance.randrange(2)


def punch(means: Means) -> None:
    """Give pages of the channel back while they are in use: they read as zeros, and come again where they are written."""
    memory, chance = means.attacker.memory, means.chance
    pages = len(memory.mapped) // PAGE
    while True:
        _follow(means)
        _send(means)
        at, count = chance.randrange(pages), chance.choice((1, 2, pages))
        LIBC.fallocate(memory.descriptor, PUNCH_HOLE, ctypes.c_long(at * PAGE), ctypes.c_long(count * PAGE))
        means.attacker.wake()


def grant_holes(means: Means) -> None:
    """Pass a buffer that is nothing but a hole, fill it and punch it while it is read; and name some that were never
    granted."""
    attacker, chance = means.attacker, means.chance
    size = os.fstat(means.granted).st_size
    while True:
        _follow(means)
        _send(means)
        for _ in range(10):
            at = chance.randrange(size)
            os.pwrite(means.granted, chance.randbytes(min(PAGE, size - at)), at)
            LIBC.fallocate(means.granted, PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(size))
        attacker.wake()


class Attack(NamedTuple):
    run: Callable[[Means], None]
    proven: bool
    """The checks can see it: whoever did it is named."""
    method: str = "double"
    to_client: bool = True


ATTACKS = {
    "bytes": Attack(scribble, True),
    "headers": Attack(rewrite, True),
    "indices": Attack(rewind, True),
    "silence": Attack(withhold, False, "mirror"),
    "doorbells": Attack(ring_and_drain, False),
    "holes": Attack(punch, False, "mirror"),
    "grants": Attack(grant_holes, False, "weigh", to_client=False),
}

GOOD_REPLIES = [(Record(0, kind=kind), b"") for kind in (Kind.REPLY, Kind.FAULT, Kind.ITEM, Kind.END)]
