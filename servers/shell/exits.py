"""Exit codes of the command, by what went wrong and hence by what to do next.

A program that runs the command reads these; docs/manual.md shows the same table, and a test holds the two
together.
"""

from atoll.ipc import errors
from atoll.ipc.attach import Unwelcome

OK = 0
FAULT = 1
USAGE = 2
NO_NODE = 3
NOT_ALLOWED = 4
NOT_FOUND = 5
WRONG_INPUT = 6
TRY_AGAIN = 7
UNKNOWN_OUTCOME = 8
DECLARED = 9
FINDINGS = 10
INTERRUPTED = 130

MEANINGS = {
    OK: "done",
    FAULT: "a fault in Atoll itself; run again with `--debug` and report it",
    USAGE: "the command line is wrong; nothing was done",
    NO_NODE: "the node does not run, or went down",
    NOT_ALLOWED: "the capability in use does not cover this, or a quota is spent",
    NOT_FOUND: "what was named does not exist",
    WRONG_INPUT: "the input is wrong (an image, an argument, an interface); nothing was done",
    TRY_AGAIN: "too busy, too slow, or no room on the disk; nothing was done, the same command may succeed later",
    UNKNOWN_OUTCOME: "a server died or misbehaved with the call in hand, or a transaction was aborted",
    DECLARED: "the server refused with an error that its interface declares",
    FINDINGS: "`check`, `backup` or `restore` found damage, `replay` a difference, or `doctor` a level that cannot be had",
    INTERRUPTED: "stopped by Ctrl-C",
}

BY_ERROR: tuple[tuple[type[errors.AtollError], int], ...] = (
    (errors.NodeDown, NO_NODE),
    (errors.NotAllowed, NOT_ALLOWED),
    (Unwelcome, NOT_ALLOWED),
    (errors.Revoked, NOT_ALLOWED),
    (errors.QuotaExceeded, NOT_ALLOWED),
    (errors.NotFound, NOT_FOUND),
    (errors.Overloaded, TRY_AGAIN),
    (errors.DeadlineExceeded, TRY_AGAIN),
    (errors.DrainTimedOut, TRY_AGAIN),
    (errors.PeerFault, UNKNOWN_OUTCOME),
    (errors.CallerFault, WRONG_INPUT),
    (errors.Failure, DECLARED),
)
"""First match wins, so a class stands before its base."""


def code(error: errors.AtollError) -> int:
    """The exit code for an error; what no row names is a fault of ours."""
    return next((number for kind, number in BY_ERROR if isinstance(error, kind)), FAULT)
