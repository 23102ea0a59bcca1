"""Every place at which Atoll says that a peer broke the protocol, found in the sources: what a lie must reach."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BOTH = ("server", "client")
VICTIMS = {
    "native/channel.c": BOTH,
    "ipc/streams.py": BOTH,
    "ipc/runtime/loop.py": ("server",),
    "ipc/client/arrivals.py": ("client",),
    "ipc/client/channel.py": ("client",),
    "ipc/errors.py": ("client",),
    "ipc/proxy.py": ("client",),
    "ipc/streaming.py": ("client",),
    "ipc/private/sealed.py": ("client",),
    "microkernel/connections.py": ("kernel",),
    "microkernel/conversation.py": ("kernel",),
    "ipc/runtime/control_socket.py": ("program",),
    "ipc/runtime/deliveries.py": ("program",),
    "ipc/runtime/own_kernel.py": ("program",),
    "ipc/attach.py": ("program",),
    "ipc/system/handover.py": ("kernel",),
    "servers/feedback/server.py": ("client",),
}
"""Who makes the checks of a file. A program's other side is the kernel, which is distrusted for its mistakes alone."""


class Check(NamedTuple):
    file: str
    reason: str
    """What is said; a hole of it (what was found) reads `{}`."""
    victim: str
    """Who makes it, and is lied to."""


def _texts(node: ast.expr) -> Iterator[str]:
    """What an expression may read; nothing for one that only passes on what another place said."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=other):
            yield from _texts(body)
            yield from _texts(other)
        case ast.JoinedStr(values=values):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in values)
        case ast.Call(func=ast.Name(id="str")):
            yield "{}"  # the decoder's own words


def _said(call: ast.Call) -> Iterator[str]:
    match call.func:
        case ast.Name(id="PeerMisbehaved"):
            for reason in _texts(call.args[1]):
                where = next(_texts(call.args[0]), "")
                yield f"{where}: {reason}" if reason == "{}" else reason
        case ast.Attribute(attr="_bad" | "misbehaved") if call.args:
            yield from _texts(call.args[-1])


def _in_python(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield from _said(node)


def _in_c(path: Path) -> Iterator[str]:
    text = path.read_text()
    yield from re.findall(r'channel_fail\([^;"]*"([^"]+)"\)', text)
    yield from re.findall(r'check = "([^"]+)"', text)


def every_check() -> set[Check]:
    """KeyError for a file that makes checks and is not known here: say who is lied to there."""
    found = set()
    for folder, pattern, reasons in (("native", "*.c", _in_c), ("ipc", "**/*.py", _in_python),
                                     ("microkernel", "**/*.py", _in_python),
                                     ("servers", "**/*.py", _in_python)):  # fmt: skip
        for path in sorted((ROOT / folder).glob(pattern)):
            file = str(path.relative_to(ROOT))
            for reason in reasons(path):
                found |= {Check(file, reason, victim) for victim in VICTIMS[file]}
    return found
