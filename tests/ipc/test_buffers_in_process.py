"""A buffer passed in one process is received as it would be from another one, wherever in a message it stands."""

import pytest
from msgspec import ValidationError
from msgspec.msgpack import Ext, encode

from atoll.ipc import codec, testing
from atoll.ipc.bound import transport_of
from atoll.ipc.buffer import Buffer
from atoll.ipc.capability import BUFFER_CODE
from atoll.ipc.errors import BadRequest
from atoll.ipc.interface import Interface, call
from atoll.ipc.serve import Serves


class Reader(Interface):
    @call("read", local=True)
    def read(self, buffer: Buffer) -> str: ...
    @call("read", local=True)
    def many(
        self,
        first: Buffer,
        name: str,
        second: Buffer,
        count: int = 3,
        *,
        more: list[int] = [],  # noqa: B006
    ) -> list[str]: ...
    @call("read", local=True)
    def deeper(self, buffers: list[Buffer], last: Buffer | None = None) -> list[str]: ...
    @call("read", local=True)
    def back(self, buffer: Buffer) -> Buffer: ...


class Server(Serves[Reader]):
    @Reader.read.serve
    def read(self, buffer: Buffer) -> str:
        return f"{buffer.mode} {buffer.view.readonly} {bytes(buffer.view).decode()}"

    @Reader.many.serve
    def many(
        self,
        first: Buffer,
        name: str,
        second: Buffer,
        count: int = 3,
        *,
        more: list[int] = [],  # noqa: B006
    ) -> list[str]:
        return [text(first), name, text(second), str(count), str(more)]

    @Reader.deeper.serve
    def deeper(self, buffers: list[Buffer], last: Buffer | None = None) -> list[str]:
        return [text(each) for each in [*buffers, *([last] if last else [])]]

    @Reader.back.serve
    def back(self, buffer: Buffer) -> Buffer:
        return buffer


def text(buffer: Buffer) -> str:
    return bytes(buffer.view).decode()


def test_the_receiver_has_it_as_its_owner_passes_it() -> None:
    memory = bytearray(b"atoll")
    with testing.node(Server) as reader:
        for passed, told in (("readonly", "readonly True"), ("writable", "writable False")):
            buffer = Buffer(memoryview(memory), "writable", passed=passed)  # type: ignore[arg-type]
            assert reader.read.now(buffer) == f"{told} atoll"
            memory[:] = b"later"
            assert reader.read.now(buffer) == f"{told} later"
            memory[:] = b"atoll"


def test_it_may_stand_beside_other_arguments_and_below_them() -> None:
    one, two = (Buffer(memoryview(word), "readonly") for word in (b"one", b"two"))
    with testing.node(Server) as reader:
        assert reader.many.now(one, "x", two) == ["one", "x", "two", "3", "[]"]
        assert reader.many.now(one, "x", one, 4, more=[1]) == ["one", "x", "one", "4", "[1]"]
        assert reader.deeper.now([one, two]) == ["one", "two"]
        assert reader.deeper.now([], two) == ["two"]
        assert text(reader.back.now(two)) == "two"


@pytest.mark.parametrize(
    "value",
    [
        5,
        "text",
        None,
        [[[]]],
        *(Ext(BUFFER_CODE + wrong, bytes(8 - wrong)) for wrong in (0, 1)),
        Ext(BUFFER_CODE, b""),
    ],
)
def test_what_is_no_buffer_is_refused(value: object) -> None:
    with testing.node(Server) as reader:
        spec, translator = Reader.read.spec, transport_of(reader).translator
        decode = codec.decoder(spec, "arguments", translator)
        with pytest.raises((BadRequest, ValidationError)):
            decode(memoryview(encode([value])))
