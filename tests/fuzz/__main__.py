"""`python -m tests.fuzz SECONDS [TARGET ...]`: each target for so long, from the kept corpus; what is new joins it."""

import random
import sys
import tempfile
from pathlib import Path

from .build import CORPUS, TARGETS, build, fuzz
from .grants import fuzz_grants

if __name__ == "__main__":
    seconds, *targets = sys.argv[1:] or ["60"]
    with tempfile.TemporaryDirectory(prefix="atoll-fuzz-") as folder:
        fuzzer = build(Path(folder))
        for target in targets or (*TARGETS, "grants"):
            seed = random.SystemRandom().randrange(1 << 32)
            if target == "grants":
                said = fuzz_grants(CORPUS / target, seconds=float(seconds), runs=0, seed=seed, keep=True)
                print(said, f"(seed {seed})", flush=True)
                continue
            said = fuzz(fuzzer, target, CORPUS / target, runs=0, seconds=float(seconds), seed=seed, keep=True)
            print(said, f"(seed {seed})", flush=True)
