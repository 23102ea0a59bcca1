"""`python -m tests.adversary SECONDS [ATTACK ...]`: so many seconds of each attack, and its report."""

import random
import sys

from .attacks import ATTACKS
from .storm import storm

if __name__ == "__main__":
    seconds, *chosen = sys.argv[1:] or ["60"]
    for name in chosen or ATTACKS:
        seed = random.SystemRandom().randrange(1 << 32)
        print(storm(name, float(seconds), seed=seed, compare=True), f"(seed {seed})", flush=True)
