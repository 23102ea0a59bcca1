"""gRPC (grpcio, blocking stub, one worker thread) over a Unix socket; its payload is the same MessagePack."""

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import children
from ..extras import need
from ..frame import Block
from ..payload import NUMBER, TEXT, decode_reply, decode_request, encode, handle
from ..placement import Placement

SERVICE, METHOD = "bench.Peer", "exchange"

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
"""Before it is imported. Its handlers would run in each later child of this process, between the fork and the exec, with
their descriptors closed already: one that started PostgreSQL's benchmark was aborted by them."""


@contextmanager
def typed(placement: Placement) -> Iterator[Block]:
    grpc = need("grpc")
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 'peer'}"
        with (
            children.served("peers.grpc_unix", address, core=placement.server),
            grpc.insecure_channel(address) as channel,
        ):
            call = channel.unary_unary(
                f"/{SERVICE}/{METHOD}", request_serializer=encode, response_deserializer=decode_reply
            )

            def block(n: int) -> float:
                start = time.perf_counter()
                for _ in range(n):
                    call((NUMBER, TEXT))
                return time.perf_counter() - start

            yield block


def main(arguments: list[str]) -> None:
    grpc = need("grpc")

    def answer(request: tuple[int, str], context: Any) -> str:
        return handle(*request)

    handler = grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=decode_request, response_serializer=encode
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    server.add_insecure_port(arguments[0])
    server.start()
    children.ready()
    server.wait_for_termination()
