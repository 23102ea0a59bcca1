"""Grant mapping under a fuzzer: the property of test_grants.py on bytes that are changed at random, those kept that reach a
line which none has reached."""

import random
import sys
import time
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import Any

from atoll.ipc.runtime import deliveries
from atoll.native import segments

from .test_grants import test_what_is_mapped_stays_and_what_is_read_only_does_not_change as holds

FILES = {deliveries.__file__, segments.__file__, sys.modules[holds.__module__].__file__}
LONGEST = 96


def _lines(data: bytes) -> frozenset[tuple[str, int]]:
    """What one input reaches; raises what it breaks."""
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        holds.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]
    finally:
        sys.settrace(None)
    return frozenset(reached)


def _changed(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data or chance.randbytes(chance.randrange(LONGEST)))
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(3):
            case 0:
                changed[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 1:
                del changed[at : at + chance.randrange(1, 9)]
            case 2:
                changed[at : at + 1] = chance.randbytes(1)
    return bytes(changed[:LONGEST])


def fuzz_grants(corpus: Path, *, seconds: float, runs: int, seed: int, keep: bool) -> str:
    """What it said. Raises what an input breaks, which lies in `grants.last` beside the corpus then."""
    chance, last = random.Random(seed), corpus.with_suffix(".last")
    inputs = [path.read_bytes() for path in sorted(corpus.glob("*"))] if corpus.is_dir() else []
    known: set[tuple[str, int]] = set()
    for data in inputs:
        known |= _lines(data)
    until, done = time.monotonic() + seconds, 0
    while done < runs or time.monotonic() < until:
        done += 1
        data = _changed(chance.choice(inputs) if inputs and chance.random() < 0.8 else b"", chance)
        last.write_bytes(data)
        reached = _lines(data)
        if not reached <= known:
            known |= reached
            inputs.append(data)
            if keep:
                corpus.mkdir(exist_ok=True)
                (corpus / blake2b(data, digest_size=8).hexdigest()).write_bytes(data)
    last.unlink(missing_ok=True)
    return f"grants: {done} inputs, {len(inputs)} kept, {len(known)} lines"
