"""pyzmq REQ/REP over its ipc transport, msgspec on both sides."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import children
from ..extras import need
from ..frame import Block
from ..payload import NUMBER, TEXT, decode_reply, decode_request, encode, handle
from ..placement import Placement


@contextmanager
def typed(placement: Placement) -> Iterator[Block]:
    zmq = need("zmq")
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{Path(folder) / 'peer'}"
        with (
            children.served("peers.zmq_ipc", address, core=placement.server),
            zmq.Context() as context,
            context.socket(zmq.REQ) as requests,
        ):
            requests.connect(address)
            send, receive = requests.send, requests.recv

            def block(n: int) -> float:
                start = time.perf_counter()
                for _ in range(n):
                    send(encode((NUMBER, TEXT)))
                    decode_reply(receive())
                return time.perf_counter() - start

            yield block


def main(arguments: list[str]) -> None:
    zmq = need("zmq")
    requests = zmq.Context().socket(zmq.REP)
    requests.bind(arguments[0])
    children.ready()
    while True:
        number, text = decode_request(requests.recv())
        requests.send(encode(handle(number, text)))
