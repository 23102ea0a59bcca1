"""`atoll call SERVER METHOD JSON`: any method of any server, through the schema that the server gave at its
start."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from atoll.ipc.attach import connect
from atoll.ipc.errors import BadRequest

from . import printing
from .options import Json, Node, Server


def call(
    server: Server,
    method: Annotated[str, typer.Argument(help="A method of its interface.")],
    arguments: Annotated[
        str,
        typer.Argument(
            help='A JSON object of named arguments, an array of positional ones, or "-" for stdin.'
        ),
    ] = "{}",
    interface: Annotated[str, typer.Option("--interface", help="Which, if it has several.")] = "",
    count: Annotated[
        int, typer.Option("--count", help="Of a stream: end after so many.", show_default="all")
    ] = 0,
    deadline: Annotated[
        float,
        typer.Option("--deadline", metavar="SECONDS", help="Give up then.", show_default="none", min=0),
    ] = 0.0,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Call a method and print the reply as JSON; a stream prints one line an item."""
    given = decoded(sys.stdin.buffer.read() if arguments == "-" else arguments.encode())
    with connect(node=node or None) as attached:
        reply = attached.open_untyped(server, interface).now(method, given, deadline or None)
        if not isinstance(reply, Iterator):
            print(printing.json(reply))
            return
        for number, item in enumerate(reply, 1):
            print(printing.json(item), flush=True)
            if number == count:
                break


def decoded(text: bytes) -> dict[str, object] | list[object]:
    """The arguments as JSON. Raises `BadRequest` that says where the JSON breaks off."""
    expected = """an object or an array, such as '{"key": "x"}' or '["x"]'"""
    given: dict[str, object] | list[object] = json_of(
        text, dict[str, object] | list[object], "JSON", expected
    )
    return given


def json_of(text: bytes, kind: Any, where: str, expected: str) -> Any:
    """What a person gave as JSON, if a message can hold it. Raises `BadRequest`."""
    try:
        given = msgspec.json.decode(text, type=kind)
        msgspec.msgpack.encode(given)
    except msgspec.DecodeError as error:
        raise BadRequest(where, expected, f"{text.decode(errors='replace')} ({error})") from None
    except UnicodeDecodeError as error:
        raise BadRequest(where, expected, f"what is no UTF-8 ({error})") from None
    except RecursionError:
        raise BadRequest(where, expected, "one that is nested too far to be read") from None
    except OverflowError:
        raise BadRequest(where, "whole numbers of 64 bits at most", "a larger one") from None
    return given
