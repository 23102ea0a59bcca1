"""What sealing costs: rows of a private keyspace beside the same rows of a plain one, at one server."""

from pathlib import Path

from .frame import Goal, Race, Row
from .node import words
from .node.booted import Booted

SEALED, PLAIN = "sealed", "plain"
WHAT: dict[words.What, str] = {
    "write": "a row written durably",
    "read": "a row read",
    "scan": f"{words.AT_ONCE} rows read in a range",
}


def rows(scratch: Path) -> list[Row]:
    booted = Booted(scratch, words.image(), name="words")
    return [
        Race(
            group="private",
            name=f"{name}, sealed against plain",
            unit="µs",
            contestants=[
                words.words(booted, SEALED, what, sealed=True),
                words.words(booted, PLAIN, what, sealed=False),
            ],
            subject=SEALED,
            goals=[Goal("<=", 1.3, PLAIN)],
            seconds=0.4,
            bias="200 bytes of text, of 100 subjects whose keys are in the server's memory.",
        )
        for what, name in WHAT.items()
    ]
