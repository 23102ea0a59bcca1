"""Commands on what the store knows: get, range, history, watch; now and as of any moment."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Annotated

import msgspec
import typer

from atoll.ipc.attach import connect
from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.private.envelope import is_sealed
from atoll.ipc.system.records import after
from atoll.ipc.system.state import VERSIONS_MOST, Change, Item, Only, State, versions_upto

from . import printing
from .options import At, Json, Key, Keyspace, Node
from .printing import Column
from .when import clock, moment

Limit = Annotated[int, typer.Option("--limit", help="At most so many.", min=1, max=1 << 31)]


AT_ONCE = 1000
"""Keys of a range that are asked for in one call; the store gives fewer where they are large."""
LOOKED_AT = 1000
"""Keys among which the nearest one is sought."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """An item as it is printed: key as text, value decoded where it is MessagePack."""

    key: str
    value: object
    revision: int
    time: int
    deleted: bool
    """There is no value; one that is there may be `null`."""


ITEMS: list[Column[Shown]] = [
    Column("REVISION", lambda row: row.revision, right=True),
    Column("TIME", lambda row: clock(row.time)),
    Column("KEY", lambda row: row.key, fold=True),
    Column("VALUE", lambda row: told_value(row.value, row.deleted), cut=True),
]


@contextmanager
def opened(keyspace: str, node: str) -> Iterator[State]:
    with connect(node=node or None) as attached:
        yield attached.keyspace(keyspace)


def key_of(text: str) -> bytes:
    """A key as the command line writes it. Raises `BadRequest` for odd hexadecimal digits."""
    if not text.startswith("0x"):
        return text.encode()
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        raise BadRequest(where="KEY", expected="0x and pairs of hexadecimal digits", got=text) from None


def value_of(stored: bytes | None) -> object:
    """A stored value as JSON can show it: MessagePack decoded, else text, else hexadecimal digits."""
    if stored is None:
        return None
    if is_sealed(stored):
        return f"(sealed, {len(stored)} bytes)"
    return printing.plain(printing.decoded(stored))


def value_text(value: object) -> str:
    return value if isinstance(value, str) else printing.json(value)


def told_value(value: object, deleted: bool) -> str:
    return "(deleted)" if deleted else value_text(value)


def shown(item: Item) -> Shown:
    return Shown(
        key=printing.text(item.key), value=value_of(item.value), revision=item.revision, time=item.time,
        deleted=item.value is None,
    )  # fmt: skip


def get(keyspace: Keyspace, key: Key, at: At = "", node: Node = "", as_json: Json = False) -> None:
    """Print the value of a key, now or as of a moment."""
    raw, when = key_of(key), moment(at)
    with opened(keyspace, node) as state:
        item = state.get.now(raw, when)
        if item is None:
            raise absent(
                state, f"value in {keyspace}{f' as of {at}' if at else ''} under the key", keyspace, key
            )
    row = shown(item)
    printing.answer(row, value_text(row.value), as_json)


def absent(state: State, what: str, keyspace: str, key: str) -> NotFound:
    """Nothing of a key: with the command that shows its versions if it has any, else with the keys that there are."""
    if state.history.now(key_of(key), 1):
        return NotFound(what, key, see=f"atoll history {keyspace} {shlex.quote(key)}")
    return NotFound.among(
        what, key, [printing.text(item.key) for item in state.range.now(b"", b"", LOOKED_AT).items]
    )


def range_(
    keyspace: Keyspace,
    prefix: Annotated[str, typer.Option("--prefix", help="Only keys that begin with this.")] = "",
    start: Annotated[str, typer.Option("--start", help="From this key on.")] = "",
    end: Annotated[str, typer.Option("--end", help="Up to this key, without it.")] = "",
    limit: Limit = 100,
    reverse: Annotated[bool, typer.Option("--reverse", help="Last key first.")] = False,
    at: At = "",
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Print the keys of a range with their values, now or as of a moment."""
    if prefix and (start or end):
        raise BadRequest(where="--prefix", expected="either --prefix or --start and --end", got="both")
    first, last = (key_of(prefix), after(key_of(prefix))) if prefix else (key_of(start), key_of(end))
    when = moment(at)
    with opened(keyspace, node) as state:
        found = chain.from_iterable(pages(state, first, last, when, min(limit + 1, AT_ONCE), reverse))
        items = list(islice(found, limit + 1))
    printing.rows([shown(item) for item in items[:limit]], ITEMS, as_json, "no keys in this range")
    if len(items) > limit and not as_json:
        print(f"more after these {limit}: raise --limit, or go on with --start")


def history(
    keyspace: Keyspace, key: Key, limit: Limit = 100, at: At = "", node: Node = "", as_json: Json = False
) -> None:
    """Print every version of a key that is kept, newest first."""
    raw, when = key_of(key), moment(at)
    with opened(keyspace, node) as state:
        newest = revision(state, when)
        kept = [shown(item) for item in versions(state, raw, limit, newest)]
        if not kept:
            then = f" as of {at}" if at else ""
            raise absent(state, f"kept version in {keyspace}{then} of the key", keyspace, key)
    printing.rows(kept, ITEMS, as_json, "")


def versions(state: State, key: bytes, limit: int, upto: int) -> list[Item]:
    """The last versions of a key up to a revision, newest first. Raises `BadRequest`."""
    kept = versions_upto(lambda most: state.history.now(key, most), limit, upto)
    if kept is None:
        expected = "a moment after which the key was written less often, or a lower --limit"
        raise BadRequest(where="--at", expected=expected, got=f"some {VERSIONS_MOST} versions since")
    return kept


def watch(
    keyspace: Keyspace,
    prefix: Annotated[str, typer.Option("--prefix", help="Only keys that begin with this.")] = "",
    only: Annotated[
        Only, typer.Option("--only", help="Keys that were put, or that were deleted, and no others.")
    ] = "all",
    count: Annotated[
        int, typer.Option("--count", help="End after so many changes.", show_default="Ctrl-C")
    ] = 0,
    at: At = "",
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Print changes as they are committed; with `--at`, from that moment on."""
    first, when = key_of(prefix), moment(at)
    with opened(keyspace, node) as state:
        printing.end_with_reader()
        behind = number = 0
        for change in state.watch.now(revision(state, when), first, only):
            if change.behind and not behind and not as_json:
                print(
                    f"atoll: {change.behind} revisions behind; nothing is left out",
                    file=sys.stderr,
                    flush=True,
                )
            behind = change.behind
            tell(change, as_json)
            number += not change.more
            if count and number == count:
                break


def pages(
    state: State,
    start: bytes,
    end: bytes,
    as_of: int | float | None = None,
    most: int = AT_ONCE,
    reverse: bool = False,
) -> Iterator[list[Item]]:
    """A range, page by page; without a moment each is as it is when it is asked for, with one all are of one state."""
    more = True
    while more:
        page = state.range.now(start, end, most, as_of, reverse)
        if page.items:
            yield page.items
            last = page.items[-1].key
            start, end = (start, last) if reverse else (last + b"\0", end)
        # As `Keyspace.range`: a time may stand for a later revision by then.
        as_of = page.revision if isinstance(as_of, float) else as_of
        more = page.more and bool(page.items)


def latest(state: State, key: bytes) -> Item | None:
    """A key as it is, or as it was before it was deleted, if that is kept."""
    kept = state.get.now(key)
    return kept or next((item for item in state.history.now(key, 2) if item.value is not None), None)


def revision(state: State, when: int | float | None) -> int:
    """The last revision at a moment."""
    if when is None:
        return state.head.now()
    return state.revision_at.now(when) if isinstance(when, float) else when


def tell(change: Change, as_json: bool) -> None:
    items = [shown(item) for item in change.items]
    if as_json:
        told = {"revision": change.revision, "time": change.time, "items": items, "behind": change.behind}
        print(printing.json(told), flush=True)
        return
    for item in items:
        value = told_value(item.value, item.deleted)
        print(f"{item.revision} {clock(item.time)} {item.key} = {value}", flush=True)
