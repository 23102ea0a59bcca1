"""The message of every call row: 64 bytes of MessagePack each way, encoded and decoded on both sides.

The request is the argument tuple of `exchange(number, text)`, the reply its string.
"""

import msgspec

NUMBER = 7
TEXT = "x" * 60
REPLY = "x" * 62

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(tuple[int, str]).decode
decode_reply = msgspec.msgpack.Decoder(str).decode

assert len(encode((NUMBER, TEXT))) == 64
assert len(encode(REPLY)) == 64


def handle(number: int, text: str) -> str:
    """What every server answers: the handler is the same for all, so it cancels out."""
    return REPLY
