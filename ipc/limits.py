"""Bounds on what is decoded: its size and its depth.

A type that is built of finitely many types bounds the depth of its values by itself. A type that contains
itself, or `Any`, does not: then the message is walked once, without recursion and without building anything,
before msgspec sees it. What is malformed is left to msgspec, which names the byte.
"""

from atoll.native import lib

from .errors import BadRequest, TooLarge

MAX_PAYLOAD = 16 * 1024 * 1024
"""Bytes of one message at most; a channel's own geometry is mostly smaller."""

MAX_DEPTH = 64
"""Arrays and maps within each other at most, where the type does not say."""


def check_size(what: str, size: int, limit: int = MAX_PAYLOAD) -> None:
    """Raise `TooLarge` if a message of `size` bytes is more than `limit`."""
    if size > limit:
        raise TooLarge(what, size, limit)


def depth_within(data: bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether no array or map of a MessagePack value lies deeper than `limit`; malformed input counts as
    within."""
    return bool(lib.atoll_nests_within(data, len(data), limit))


def check_depth(where: str, data: bytes, limit: int = MAX_DEPTH) -> None:
    """Raise `BadRequest` if a message nests deeper than `limit`. Each level takes a byte, so a short one cannot."""
    if len(data) > limit and not depth_within(data, limit):
        raise BadRequest(where, f"at most {limit} arrays and maps within each other", "deeper nesting")
