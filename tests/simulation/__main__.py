"""`python -m tests.simulation --seeds 1000` lives through many seeds, `--seed 17` through one and tells its story."""

import argparse
import sys
import time

from .run import one


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.simulation")
    arguments.add_argument("--seeds", type=int, default=100)
    arguments.add_argument("--first", type=int, default=1)
    arguments.add_argument("--seed", type=int)
    arguments.add_argument("--tell", action="store_true", help="each event, as it happens")
    arguments.add_argument("--stop", action="store_true", help="at the first seed that fails")
    given = arguments.parse_args()
    seeds = [given.seed] if given.seed is not None else range(given.first, given.first + given.seeds)
    began, failed = time.monotonic(), []
    steps = killed = boots = calls = acknowledged = 0
    for seed in seeds:
        verdict = one(seed, tell=given.tell)
        steps, killed, boots = steps + verdict.steps, killed + verdict.killed, boots + verdict.boots
        calls, acknowledged = calls + verdict.calls, acknowledged + verdict.acknowledged
        if verdict.broken:
            failed.append(seed)
            print(f"seed {seed}, {verdict.steps} steps: {verdict.command}", flush=True)
            for sentence in verdict.broken:
                print(f"    {sentence}", flush=True)
            if given.stop:
                break
    took = time.monotonic() - began
    print(
        f"{len(seeds)} seeds in {took:.1f} s: {len(failed)} failed; {steps} steps, {killed} kills, {boots} boots, "
        f"{calls} actions, {acknowledged} acknowledged"
    )
    if given.seed is not None:
        print(f"hash {verdict.hash}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
