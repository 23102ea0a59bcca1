"""`python -m atoll.servers.state.backup`: the store's part of `atoll backup`, `atoll restore` and `atoll check`.

Prints one JSON object. What was refused, and what went wrong, is one line on stderr, and the exit code is that of
docs/manual.md.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from ..ownership import FormatRefused
from . import archive, faults
from .restore import restore
from .take import running, seal, stopped, take
from .verify import verify


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m atoll.servers.state.backup")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    taking = commands.add_parser(
        "take", help="a line on stdin, the node's name: add what is new; a second one: let it count"
    )
    taking.add_argument("folder", type=Path)
    taking.add_argument("--node", type=Path, help="the folder of a node that runs")
    taking.add_argument("--store", type=Path, help="the folder of a store that nobody writes")
    taking.set_defaults(run=_take)
    describing = commands.add_parser("describe", help="say whose backup it is, and what it covers")
    describing.add_argument("folder", type=Path)
    describing.set_defaults(run=lambda given: archive.described(given.folder))
    verifying = commands.add_parser("verify", help="prove a backup")
    verifying.add_argument("folder", type=Path)
    verifying.set_defaults(run=lambda given: verify(given.folder))
    restoring = commands.add_parser("restore", help="make a store out of a backup")
    restoring.add_argument("folder", type=Path)
    restoring.add_argument("store", type=Path)
    restoring.add_argument("--revision", type=int)
    restoring.add_argument("--time", type=float, help="seconds since the epoch")
    restoring.set_defaults(run=_restore)
    return made


def _take(given: argparse.Namespace) -> object:
    name = sys.stdin.readline().rstrip("\n")
    source = stopped(given.store) if given.node is None else running(given.node)
    with source as (store, image):
        taken = take(given.folder, name, store, image)
    print(msgspec.json.encode(taken.took).decode(), flush=True)
    return seal(given.folder, taken) if sys.stdin.readline() else None


def _restore(given: argparse.Namespace) -> object:
    return restore(given.folder, given.store, given.time if given.revision is None else given.revision)


def main(words: list[str]) -> int:
    given = parser().parse_args(words)
    try:
        print(msgspec.json.encode(given.run(given)).decode())
    except (faults.Refused, faults.NoRoom, faults.Damaged) as fault:
        print(fault, file=sys.stderr)
        return fault.code
    except (FormatRefused, PermissionError) as refusal:
        print(refusal, file=sys.stderr)
        return faults.REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
