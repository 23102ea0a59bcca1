"""A buffer passed in one process is received as it would be from another one."""

from atoll.ipc import testing
from atoll.ipc.buffer import Buffer
from atoll.ipc.interface import Interface, call
from atoll.ipc.serve import Serves


class Reader(Interface):
    @call("read", local=True)
    def read(self, buffer: Buffer) -> str: ...


class Server(Serves[Reader]):
    @Reader.read.serve
    def read(self, buffer: Buffer) -> str:
        return f"{buffer.mode} {buffer.view.readonly} {bytes(buffer.view).decode()}"


def test_the_receiver_has_it_as_its_owner_passes_it() -> None:
    memory = bytearray(b"atoll")
    with testing.node(Server) as reader:
        for passed, told in (("readonly", "readonly True"), ("writable", "writable False")):
            buffer = Buffer(memoryview(memory), "writable", passed=passed)  # type: ignore[arg-type]
            assert reader.read.now(buffer) == f"{told} atoll"
            memory[:] = b"later"
            assert reader.read.now(buffer) == f"{told} later"
            memory[:] = b"atoll"
