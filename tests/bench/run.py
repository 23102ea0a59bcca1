"""`python tests/bench/run.py --only ipc,state`: the benchmark from a checkout."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.bench.command import main  # noqa: E402

main()
