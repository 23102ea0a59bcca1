"""Bounds on what is decoded: its size and its depth.

A type that is built of finitely many types bounds the depth of its values by itself. A type that contains
itself, or `Any`, does not: then the message is walked once, without recursion and without building anything,
before msgspec sees it. What is malformed is left to msgspec, which names the byte.
"""

from .errors import BadRequest, TooLarge

MAX_PAYLOAD = 16 * 1024 * 1024
"""Bytes of one message at most; a channel's own geometry is mostly smaller."""

MAX_DEPTH = 64
"""Arrays and maps within each other at most, where the type does not say."""

# For each first byte of a MessagePack value: (bytes of the head, bytes of the length field, what the length
# counts).
_BYTES, _ITEMS, _PAIRS = 0, 1, 2
_LENGTHS: dict[int, tuple[int, int, int]] = {
    0xC4: (1, 0, _BYTES), 0xC5: (2, 0, _BYTES), 0xC6: (4, 0, _BYTES),
    0xC7: (1, 1, _BYTES), 0xC8: (2, 1, _BYTES), 0xC9: (4, 1, _BYTES),
    0xD9: (1, 0, _BYTES), 0xDA: (2, 0, _BYTES), 0xDB: (4, 0, _BYTES),
    0xDC: (2, 0, _ITEMS), 0xDD: (4, 0, _ITEMS), 0xDE: (2, 0, _PAIRS), 0xDF: (4, 0, _PAIRS),
}  # fmt: skip
_FIXED = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip


def check_size(what: str, size: int, limit: int = MAX_PAYLOAD) -> None:
    """Raise `TooLarge` if a message of `size` bytes is more than `limit`."""
    if size > limit:
        raise TooLarge(what, size, limit)


def depth_within(data: bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether no array or map of a MessagePack value lies deeper than `limit`; malformed input counts as
    within."""
    left: list[int] = []  # per open container, how many values it still lacks
    position, end = 0, len(data)
    while position < end:
        first = data[position]
        position += 1
        inside = 0
        if 0x80 <= first <= 0x8F:
            inside = 2 * (first & 0x0F)
        elif 0x90 <= first <= 0x9F:
            inside = first & 0x0F
        elif 0xA0 <= first <= 0xBF:
            position += first & 0x1F
        elif first in _LENGTHS:
            width, extra, counts = _LENGTHS[first]
            length = int.from_bytes(data[position : position + width], "big")
            position += width + extra
            if counts == _BYTES:
                position += length
            else:
                inside = length * counts
        else:
            position += _FIXED.get(first, 0)
        if left:
            left[-1] -= 1
        if inside:
            if len(left) == limit:
                return False
            left.append(inside)
        while left and left[-1] == 0:
            left.pop()
        if not left:
            return True
    return True


def check_depth(where: str, data: bytes, limit: int = MAX_DEPTH) -> None:
    """Raise `BadRequest` if a message nests deeper than `limit`. Each level takes a byte, so a short one cannot."""
    if len(data) > limit and not depth_within(data, limit):
        raise BadRequest(where, f"at most {limit} arrays and maps within each other", "deeper nesting")
