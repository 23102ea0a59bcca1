"""Commands on capabilities: mint, grant, revoke."""

from typing import Annotated

import typer

from atoll.ipc.attach import connect
from atoll.ipc.system.kernel import written

from . import printing
from .options import Capability, Expires, Json, Node, Rights, Server, rights_of, server_names


def mint(
    capability: Capability,
    badge: Annotated[
        int,
        typer.Option("--badge", help="The object's badge; it never changes.", min=1, max=(1 << 64) - 1),
    ],
    to: Annotated[
        str, typer.Option("--to", help="The server that is to hold it.", autocompletion=server_names)
    ],
    rights: Rights = "",
    expires: Expires = 0.0,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Make a capability with a badge out of an unbadged one, and give it to a server."""
    with connect(node=node or None) as attached:
        # What this program holds ends with it: the grant hangs from the unbadged one instead.
        ours = attached.kernel.mint.now(capability, badge)
        number = attached.kernel.grant.now(ours, to, rights_of(rights), expires)
    told = f"capability {written(number)}: {to} holds it with badge {badge}, from {written(capability)}"
    printing.answer({"number": number}, told, as_json)


def grant(
    capability: Capability,
    to: Server,
    rights: Rights = "",
    expires: Expires = 0.0,
    session: Annotated[
        bool, typer.Option("--session", help="Until the server's next start, not as a row.")
    ] = False,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Give a server a capability derived from this one."""
    with connect(node=node or None) as attached:
        number = attached.kernel.grant.now(capability, to, rights_of(rights), expires, not session)
    printing.answer(
        {"number": number},
        f"capability {written(number)}: {to} holds it, from {written(capability)}",
        as_json,
    )


def revoke(
    capability: Capability,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel calls in hand, too.")] = False,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Take back a capability and all that was derived from it. When this returns, no new call is served."""
    with connect(node=node or None) as attached:
        count = attached.kernel.revoke.now(capability, cancel)
    printing.answer(
        {"revoked": count}, f"revoked {count}: {written(capability)} and all derived from it", as_json
    )
