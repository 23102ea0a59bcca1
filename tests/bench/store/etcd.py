"""etcd (Debian's), three members on loopback, spoken to over gRPC with messages made by hand.

In its favour: no TLS, no authentication, no client library between, puts that ask for nothing but their revision, and a
quota that is not met. It keeps history by itself, and each put waits for two of three members' fsync, as it does by default.
"""

import shutil
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..extras import need
from ..frame import Block, Contestant, Unavailable
from ..leased import Leased
from ..placement import Placement
from .work import Work

MEMBERS = 3
PUT, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn"


class Cluster(Leased):
    """Three servers for all contestants of a run; they are up while any of them is open."""

    def __init__(self, scratch: Path) -> None:
        super().__init__()
        self.folder = scratch / "etcd"
        self._running = ExitStack()

    def _start(self) -> None:
        program = shutil.which("etcd")
        if program is None:
            raise Unavailable("etcd is not installed: apt-get install etcd-server")
        need("grpc")
        self.folder.mkdir()
        ports = _free_ports(2 * MEMBERS)
        peers = [f"http://127.0.0.1:{port}" for port in ports[:MEMBERS]]
        clients = [f"http://127.0.0.1:{port}" for port in ports[MEMBERS:]]
        self.addresses = [f"127.0.0.1:{port}" for port in ports[MEMBERS:]]
        for number in range(MEMBERS):
            words = [
                f"--name=m{number}", f"--data-dir={self.folder}/m{number}",
                f"--listen-peer-urls={peers[number]}", f"--initial-advertise-peer-urls={peers[number]}",
                f"--listen-client-urls={clients[number]}", f"--advertise-client-urls={clients[number]}",
                "--initial-cluster=" + ",".join(f"m{each}={url}" for each, url in enumerate(peers)),
                "--quota-backend-bytes=8589934592", "--log-level=error",
            ]  # fmt: skip
            with open(self.folder / f"log{number}", "wb") as log:
                member = subprocess.Popen([program, *words], stdout=log, stderr=log)
            self._running.callback(member.wait)
            self._running.callback(member.kill)
        with self.puts(self.addresses[0]) as put:
            put(b"ready", b"", wait=True).result()

    def _stop(self) -> None:
        self._running.close()
        shutil.rmtree(self.folder)

    @contextmanager
    def puts(self, address: str) -> Iterator[Any]:
        """A connection: `put(key, value)` gives a future."""
        grpc = need("grpc")
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(PUT, request_serializer=None, response_deserializer=None)

            def put(key: bytes, value: bytes, wait: bool = False) -> Any:
                return call.future(_put(key, value), wait_for_ready=wait)

            yield put

    @contextmanager
    def transactions(self) -> Iterator[Any]:
        """A connection: `transact(rows)` gives a future."""
        with need("grpc").insecure_channel(self.addresses[0]) as channel:
            call = channel.unary_unary(TXN, request_serializer=None, response_deserializer=None)
            yield lambda rows: call.future(_all(_put(key, value) for key, value in rows))


def _put(key: bytes, value: bytes) -> bytes:
    """A PutRequest; both are shorter than 128 bytes."""
    return b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value


def _all(puts: Iterable[bytes]) -> bytes:
    """A TxnRequest without conditions."""
    return b"".join(_field(_field(put)) for put in puts)


def _field(message: bytes) -> bytes:
    """Field 2 of a message, which is below 16 KiB: the puts of a transaction, and each as a put."""
    size = len(message)
    return b"\x12" + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + message


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def contestant(cluster: Cluster, name: str, outstanding: int) -> Contestant:
    """Puts of which so many are outstanding, spread over the members; an operation is a put."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with cluster.lease(), ExitStack() as open_:
            puts = [open_.enter_context(cluster.puts(address)) for address in cluster.addresses[:outstanding]]
            work = Work()

            def block(n: int) -> float:
                under_way: deque[Any] = deque()
                start = time.perf_counter()
                for number in range(n):
                    if len(under_way) == outstanding:
                        under_way.popleft().result()
                    _, key, value = work.next()
                    under_way.append(puts[number % len(puts)](key, value))
                for each in under_way:
                    each.result()
                return time.perf_counter() - start

            yield block

    return Contestant(name, open_, least=outstanding)
