"""What a boot will change: the difference between an image and the rows of the last boot (`boot --plan`).

The rule, for every row a boot finds:
- What the image names is as the image says: package content, level, mechanisms, slice, account, limits. The image is
  what a person can read, so it wins over what was changed by hand while the node ran; each such change is shown as undone.
- A server that a person loaded, and the image does not name, starts as its row says, with what a person set for it to use.
- A server that a person stopped stays stopped, whoever named it.
- A server that an earlier image named and this one does not is retired: it does not start, its capabilities end. Its
  keyspaces stay, with all that is in them: no boot deletes data.
- A need that an earlier image named and this one does not is retired: the capability that stood for it ends.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from atoll.ipc.system.records import AccountRow, KeyspaceRow, NeedRow, Row, ServerRow, SliceRow

from .image import Image, KeyspaceBinding, ServerBinding
from .server import keys_of
from .specs import from_image
from .versions import Version

Action = Literal["add", "change", "retire", "keep"]


class Step(NamedTuple):
    """One difference, in the words of a person."""

    action: Action
    what: str
    """`server NAME`, `slice NAME`, `account NAME` or `keyspace NAME`."""
    details: tuple[str, ...] = ()
    """`field: old -> new`, or why it is kept."""

    def __str__(self) -> str:
        return f"{self.action:<6} {self.what}" + (f" ({'; '.join(self.details)})" if self.details else "")


class Known(NamedTuple):
    """The rows that a boot found."""

    servers: tuple[ServerRow, ...] = ()
    slices: tuple[SliceRow, ...] = ()
    accounts: tuple[AccountRow, ...] = ()
    keyspaces: tuple[KeyspaceRow, ...] = ()
    needs: tuple[NeedRow, ...] = ()


class BootPlan(NamedTuple):
    steps: list[Step]
    servers: list[ServerRow]
    """Every server of the node after this boot, stopped ones too, in the order to start them: the image's,
    then loaded.
    """
    retired: list[str]
    """Servers whose capabilities end."""
    own: dict[str, SliceRow]
    """By server what a person set for it to use, where that stays."""
    over: list[Row]
    """Rows of slices and accounts that say nothing any more."""
    unneeded: list[NeedRow]
    """Needs that are none any more: their capabilities end."""


def own_slice(server: str) -> str:
    """The row's name of what a person set for one server to use."""
    return f"server {server}"


def wanted_servers(image: Image, image_hash: str, versions: Mapping[str, Version]) -> list[ServerRow]:
    """The rows an image asks for. `versions`: by server its package as it was copied, which the image may name by a link."""
    return [
        ServerRow(
            server=name,
            package=versions[name].package,
            version=versions[name].hash,
            level=image.level(name),
            image=image_hash,
            add=server.add,
            drop=tuple((drop.mechanism, drop.reason) for drop in server.drop),
            slice=image.slice_of(name),
            account=image.account_of(name),
            start=server.start,
        )
        for name, server in image.server.items()
    ]


def plan(image: Image, image_hash: str, versions: Mapping[str, Version], known: Known) -> BootPlan:
    """What booting `image` over `known` does. Pure: `boot` writes it, `boot --plan` prints it."""
    steps: list[Step] = []
    before = {row.server: row for row in known.servers}
    servers = []
    for row in wanted_servers(image, image_hash, versions):
        old = before.pop(row.server, None)
        if old is not None and old.stopped:
            row = msgspec.structs.replace(row, stopped=True)  # noqa: PLW2901
            steps.append(
                Step("keep", f"server {row.server}", ("stopped by a person; start it with `atoll restart`",))
            )
        servers.append(row)
        steps += _compare(f"server {row.server}", old, row, skip=("image",))
    retired = []
    for name, old in before.items():
        if old.image:
            retired.append(name)
            steps.append(Step("retire", f"server {name}", ("no longer in the image; its keyspaces stay",)))
        else:
            servers.append(old)
            steps.append(Step("keep", f"server {name}", ("loaded by a person",)))
    by_hand = {own_slice(row.server): row.server for row in (*servers, *known.servers)}
    named = [row for row in known.slices if row.slice not in by_hand]
    steps += _limits("slice", named, {name: limits_of(spec) for name, spec in image.slice.items()})
    steps += _limits(
        "account", known.accounts, {name: limits_of(spec) for name, spec in image.account.items()}
    )
    own: dict[str, SliceRow] = {}
    over: list[Row] = [row for row in named if row.slice not in image.slice]
    over += [row for row in known.accounts if row.account not in image.account]
    for held in known.slices:
        server = by_hand.get(held.slice, "")
        if not server:
            continue
        stays = server not in image.server and server not in retired
        steps.append(
            Step("keep" if stays else "retire", f"slice of server {server}", (f"set by hand: {_set(held)}",))
        )
        if stays:
            own[server] = held
        else:
            over.append(held)
    steps += _keyspaces(image, known.keyspaces)
    unneeded = _unneeded(image, servers, known.needs)
    steps += [
        Step("retire", f"need {row.server}.{row.need}", ("no longer in the image; its capability ends",))
        for row in unneeded
        if row.server in image.server
    ]
    return BootPlan(steps, servers, retired, own, over, unneeded)


def _unneeded(image: Image, servers: Iterable[ServerRow], known: Iterable[NeedRow]) -> list[NeedRow]:
    needs = {row.server: _capabilities(image, row) for row in servers if row.server in image.server}
    loaded = {row.server for row in servers} - needs.keys()
    return [row for row in known if row.server not in loaded and row.need not in needs.get(row.server, ())]


def _capabilities(image: Image, row: ServerRow) -> set[str]:
    """The needs of a server of the image that are capabilities."""
    found = set()
    for need, bound in from_image(image, row, degrade=False).needs.items():
        if isinstance(bound, KeyspaceBinding | ServerBinding):
            found.add(need)
        if isinstance(bound, KeyspaceBinding) and bound.keyspace in image.keyspace:
            found |= {keys_of(need)} if image.keyspace[bound.keyspace].private else set()
    return found


def _set(row: SliceRow) -> str:
    return ", ".join(f"{name} {_show(value)}" for name, value in row.limits.items() if value is not None)


def text(plan: BootPlan) -> str:
    """The plan for a terminal."""
    return "".join(f"{step}\n" for step in plan.steps) or "nothing changes\n"


def limits_of(spec: msgspec.Struct) -> dict[str, Any]:
    return {
        name: int(value) if isinstance(value, int) else value
        for name, value in msgspec.structs.asdict(spec).items()
    }


def _compare(what: str, old: Row | None, new: Row, skip: tuple[str, ...] = ()) -> list[Step]:
    if old is None:
        return [Step("add", what)]
    was, now = msgspec.structs.asdict(old), msgspec.structs.asdict(new)
    details = tuple(
        f"{name}: {_show(was[name])} -> {_show(now[name])}"
        for name in now
        if name not in skip and was[name] != now[name]
    )
    return [Step("change", what, details)] if details else []


def _limits(
    kind: str, rows: Iterable[SliceRow] | Iterable[AccountRow], wanted: Mapping[str, dict[str, Any]]
) -> list[Step]:
    before = {getattr(row, kind): row.limits for row in rows}
    steps = []
    for name, limits in wanted.items():
        old = before.pop(name, None)
        if old is None:
            steps.append(Step("add", f"{kind} {name}"))
            continue
        details = tuple(
            f"{key}: {_show(old.get(key))} -> {_show(value)}"
            for key, value in limits.items()
            if old.get(key) != value
        )
        if details:
            steps.append(Step("change", f"{kind} {name}", details))
    return [*steps, *(Step("retire", f"{kind} {name}") for name in before)]


def _keyspaces(image: Image, rows: Iterable[KeyspaceRow]) -> list[Step]:
    before = {row.keyspace: row for row in rows}
    steps = []
    for name, spec in image.keyspace.items():
        old = before.pop(name, None)
        wanted = KeyspaceRow(
            keyspace=name, badge=old.badge if old else 0, retention=spec.retention, versions=spec.versions
        )
        steps += _compare(f"keyspace {name}", old, wanted)
    why = ("no longer in the image; what is in it stays",)
    return [*steps, *(Step("keep", f"keyspace {name}", why) for name in before)]


def _show(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return ", ".join(str(part[0] if isinstance(part, tuple) else part) for part in value) or "none"
    return str(value)
