"""Checks of a whole image, before anything starts: names that must exist, needs that must be bound, rights
that somebody must offer, priorities that must not turn in a circle.

What a server needs and offers is read from its package by a process of its own
(`atoll.ipc.runtime.describe`): the kernel imports no server. Everything that is wrong is reported at once, in
the order of the file.
"""

import grp
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import trio

from atoll.ipc.runtime.describe import Description, NeedDescription, Offer
from atoll.ipc.system.keys import SERVER as KEYS
from atoll.ipc.system.records import KEYSPACE, LOG

from . import disclosure
from .descriptions import Configs, Descriptions, describe_apart
from .image import (
    DELEGATE,
    KEYSPACE_RIGHTS,
    PURGE,
    Binding,
    ConfigBinding,
    FolderBinding,
    Image,
    KeyspaceBinding,
    KeyspaceSpec,
    ListenBinding,
    MayRead,
    Server,
    ServerBinding,
)
from .image_read import NAME, NAMES, Draft, ImageRefused, nearest, one_of, quoted, read
from .image_text import Path as TomlPath
from .parties import KERNEL
from .priorities import circles
from .protection.filters import GROUPS
from .protection.plan import ladder, levels
from .protection.process import SHARED_UID

STORE = "state"
"""The server that holds the store; every image has one."""
STORE_INTERFACE = "State"
KEYS_INTERFACE = "Keys"

LOOKING = ("read", "history")
"""The rights on a keyspace that a program from outside may have by an image."""

KINDS: dict[type[Any], str] = {
    KeyspaceBinding: "keyspace",
    ServerBinding: "server",
    ConfigBinding: "config",
    ListenBinding: "socket",
    FolderBinding: "folder",
}
"""What kind of need each binding fills; the words are those of `describe`."""

WRITTEN = {
    "keyspace": '{keyspace = "...", rights = [...]}',
    "server": '{server = "...", rights = [...]}',
    "config": "{config = {}}",
    "socket": '{listen = "127.0.0.1:8080"}',
    "folder": '{folder = "..."}',
}
"""How each kind of need is bound."""


@dataclass(frozen=True)
class Checked:
    """An image that may be booted."""

    file: str
    text: str
    image: Image
    packages: dict[str, Path]
    """Each server's package folder."""
    descriptions: dict[str, Description]

    def interface(self, server: str, asked: str, need: NeedDescription | None = None) -> str:
        """The interface that a binding means: the one it names, that its need declares, or the only one."""
        return asked or (need.interface if need else "") or self.descriptions[server].interfaces[0].name


class Terms(NamedTuple):
    """What this release knows of protection."""

    levels: Mapping[str, Sequence[str]]
    """Lowest first, each with all its mechanisms."""
    groups: Sequence[str]
    """Groups of system calls that an image may allow."""


def terms() -> Terms:
    return Terms(
        {name: tuple(mechanism.name for mechanism in ladder(name)) for name in levels()},
        tuple(group for group in GROUPS if group != "base"),
    )


Describe = Callable[[Mapping[str, Path], Configs], Awaitable[Descriptions]]
"""How packages are asked what they are: by server its package's folder, and its configurations."""


def load(path: Path) -> Checked:
    """Reads and checks an image file. Raises `ImageRefused` with all that is wrong, or `OSError` if the file
    cannot be read.
    """
    return trio.run(check, read_file(path), path.parent, describe_apart)


def read_file(path: Path) -> Draft:
    """An image file as written. Raises `ImageRefused` where it is no text, or none of an image; `OSError`."""
    file = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageRefused.at_start(
            file, "UTF-8 text", f"the byte {error.object[error.start]:#04x}"
        ) from None
    return read(text, file)


async def check(draft: Draft, folder: Path, describe: Describe) -> Checked:
    """Hold what was read against servers and host. Paths of packages are relative to `folder`. Raises `ImageRefused` with
    all that is wrong."""
    _Names(draft, terms()).check()
    packages = _packages(draft, folder)
    descriptions = await describe(packages, {name: _configs(draft.image, name) for name in packages})
    wiring = _Wiring(draft, descriptions)
    for name in packages:
        wiring.check_server(name)
    wiring.check_records()
    wiring.check_attach()
    _check_priorities(draft)
    draft.refuse()
    found = {
        name: described for name, described in descriptions.items() if isinstance(described, Description)
    }
    return Checked(file=draft.file, text=draft.text, image=draft.image, packages=packages, descriptions=found)


def installed() -> dict[str, Path]:
    """The servers that are installed beside the kernel, by name. Looked up, never imported."""
    servers = Path(__file__).resolve().parent.parent / "servers"
    return {folder.name: folder for folder in sorted(servers.iterdir()) if (folder / "server.py").is_file()}


def _packages(draft: Draft, folder: Path) -> dict[str, Path]:
    """Each server's package folder; those that cannot be found are noted and left out."""
    found = {}
    known = installed()
    for name, server in draft.image.server.items():
        package = draft.image.package(name)
        path: TomlPath = ("server", name, "package") if server.package else ("server", name)
        if "/" in package:
            place = folder / package
            if (place / "server.py").is_file():
                found[name] = place.resolve()
            else:
                draft.note(path, "a package folder with a server.py", f"{quoted(package)}, which is none")
        elif package in known:
            found[name] = known[package]
        else:
            hint = nearest(package, known) or "a package of your own needs a path with a /"
            draft.note(path, "the name of an installed server", quoted(package), hint)
    return found


def _configs(image: Image, name: str) -> dict[str, dict[str, Any]]:
    needs = image.server[name].needs
    return {need: bound.config for need, bound in needs.items() if isinstance(bound, ConfigBinding)}


class _Names:
    """Everything that names something else of the image, or of this release."""

    def __init__(self, draft: Draft, terms: Terms) -> None:
        self.draft = draft
        self.image = draft.image
        self.raw = draft.raw
        self.levels, self.groups = terms
        self.mechanisms = list(dict.fromkeys(name for names in self.levels.values() for name in names))

    def check(self) -> None:
        self.check_identity()
        self.known(("node", "level"), self.image.node.level, self.levels, "a protection level")
        self.place(("node",), self.image.node.slice, self.image.node.account)
        if STORE not in self.image.server:
            self.draft.note(("server", STORE), f"a [server.{STORE}], which holds the node's rows", "none")
        for name, server in self.image.server.items():
            path: TomlPath = ("server", name)
            if server.level:
                self.known((*path, "level"), server.level, self.levels, "a protection level")
            self.place(path, server.slice, server.account)
            self.check_mechanisms(name)
            if server.restart.most < server.restart.first:
                self.draft.note(
                    (*path, "restart", "most"),
                    f"at least `first`, {server.restart.first:g} s",
                    f"{server.restart.most:g} s",
                )
            if server.readers.most and name != STORE:
                self.draft.note(
                    (*path, "readers"), f"no readers: only {STORE} has any", str(server.readers.most)
                )
            self.place((*path, "readers"), server.readers.slice, "")
            self.check_record(path, name, server)
            for need, bound in server.needs.items():
                self.check_binding((*path, "needs", need), bound)
                if isinstance(bound, ServerBinding) and bound.server == name:
                    at = (*path, "needs", need, "server")
                    self.draft.note(
                        at, f"a server other than {name} itself", quoted(name), "call its own methods"
                    )
            self.check_folders(name)
        for index, entry in enumerate(self.image.attach):
            self.check_attach(index)
            self.place(("attach", index), "", entry.account)
        self.check_sockets()

    def check_record(self, path: TomlPath, name: str, server: Server) -> None:
        """What is recorded of its calls."""
        if name == STORE and (server.record or server.audit != "none"):
            key, got = ("record", "true") if server.record else ("audit", quoted(server.audit))
            self.draft.note((*path, key), f"no record of the calls of {STORE}, which keeps those of all", got)
        if name == KEYS and server.record:
            self.draft.note((*path, "record"), f"no record of the calls of {KEYS}, which carry keys", "true")
        if server.record and server.audit == "sample":
            self.draft.note(
                (*path, "audit"),
                '"full", or nothing: of a server with `record` each call is a row',
                '"sample"',
            )

    def check_identity(self) -> None:
        """The node's name, names that are the kernel's own, and enough users for all."""
        name = self.image.image.name
        if not NAME.fullmatch(name):
            self.draft.note(("image", "name"), NAMES, quoted(name))
        for kind in ("server", "keyspace"):
            there = self.raw.get(kind)
            if isinstance(there, dict) and KERNEL in there:
                path = (kind, KERNEL)
                self.draft.note(
                    path, f"a {kind} of another name", f"{quoted(KERNEL)}, the kernel's own", at_key=True
                )
        uids, servers = self.image.node.uids, len(self.image.server)
        if uids.first == 0:
            self.draft.note(("node", "uids"), "user ids above 0, since no server runs as root", str(uids))
        elif (count := uids.last - uids.first + (not uids.first <= SHARED_UID <= uids.last)) < servers:
            self.draft.note(
                ("node", "uids"), f"a user id for each of the {servers} servers", f"{count} of them"
            )

    def known(self, path: TomlPath, name: str, names: Collection[str], what: str) -> bool:
        if name in names:
            return True
        self.draft.note(path, f"{what}: {one_of(names)}", quoted(name), nearest(name, names))
        return False

    def table(self, path: TomlPath, kind: str, name: str) -> None:
        """`name` must be a `[kind.name]` of the image; also one that is there and wrong will do."""
        there = self.raw.get(kind, {})
        names = list(there) if isinstance(there, dict) else []
        if name not in names:
            hint = nearest(name, names) or f"write [{kind}.{name}]"
            self.draft.note(path, f"a [{kind}.NAME] of this image", quoted(name), hint)

    def place(self, path: TomlPath, slice: str, account: str) -> None:
        if slice:
            self.table((*path, "slice"), "slice", slice)
        if account:
            self.table((*path, "account"), "account", account)

    def check_mechanisms(self, name: str) -> None:
        server, level = self.image.server[name], self.image.level(name)
        own = self.levels.get(level, self.mechanisms)
        path: TomlPath = ("server", name)
        for index, mechanism in enumerate(server.add):
            at = (*path, "add", index)
            if self.known(at, mechanism, self.mechanisms, "a mechanism") and mechanism in own:
                self.draft.note(at, f"a mechanism that level {quoted(level)} lacks", quoted(mechanism))
        seen = set()
        for index, drop in enumerate(server.drop):
            at = (*path, "drop", index, "mechanism")
            what = f"a mechanism of level {quoted(level)}" if level in self.levels else "a mechanism"
            self.known(at, drop.mechanism, own, what)
            if drop.mechanism in seen:
                self.draft.note(at, "each mechanism once", f"{quoted(drop.mechanism)} again")
            seen.add(drop.mechanism)
            self.reason((*path, "drop", index), drop.reason)
        groups = set()
        for index, allow in enumerate(server.allow):
            at = (*path, "allow", index, "calls")
            self.known(at, allow.calls, self.groups, "a group of system calls")
            if allow.calls in groups:
                self.draft.note(at, "each group once", f"{quoted(allow.calls)} again")
            groups.add(allow.calls)
            self.reason((*path, "allow", index), allow.reason)

    def reason(self, path: TomlPath, reason: str) -> None:
        if not reason.strip():
            self.draft.note((*path, "reason"), "a reason", quoted(reason), "say why the server needs this")

    def check_binding(self, path: TomlPath, bound: Binding) -> None:
        if isinstance(bound, KeyspaceBinding):
            self.table((*path, "keyspace"), "keyspace", bound.keyspace)
            for index, right in enumerate(bound.rights):
                rights = (*KEYSPACE_RIGHTS, PURGE, DELEGATE)
                self.known((*path, "rights", index), right, rights, "a right on keyspaces")
        elif isinstance(bound, ServerBinding):
            self.table((*path, "server"), "server", bound.server)
        elif isinstance(bound, FolderBinding):
            parts = Path(bound.folder).parts
            if len(parts) != 1 or parts[0] in ("..", "/") or bound.folder[0] == "." or "\0" in bound.folder:
                self.draft.note(
                    (*path, "folder"), "a plain folder name, without / and no dot first", quoted(bound.folder)
                )

    def check_may_read(self, path: TomlPath, may: MayRead) -> None:
        if may.keyspace not in (KEYSPACE, LOG):
            self.table((*path, "keyspace"), "keyspace", may.keyspace)
        for index, right in enumerate(may.rights):
            self.known((*path, "rights", index), right, LOOKING, "a right to look at a keyspace")

    def check_folders(self, name: str) -> None:
        seen: dict[str, str] = {}
        for need, bound in self.image.server[name].needs.items():
            if isinstance(bound, FolderBinding):
                other = seen.setdefault(bound.folder, need)
                if other != need:
                    path = ("server", name, "needs", need, "folder")
                    self.draft.note(
                        path, f"a folder of its own (need {other} has this one)", quoted(bound.folder)
                    )

    def check_sockets(self) -> None:
        seen: dict[str, str] = {}
        for name, server in self.image.server.items():
            for need, bound in server.needs.items():
                if isinstance(bound, ListenBinding) and not bound.listen.endswith(":0"):
                    who = f"{name}.{need}"
                    other = seen.setdefault(bound.listen, who)
                    if other != who:
                        path = ("server", name, "needs", need, "listen")
                        self.draft.note(
                            path, f"an address of its own ({other} has this one)", quoted(bound.listen)
                        )

    def check_attach(self, index: int) -> None:
        entry, path = self.image.attach[index], ("attach", index)
        given = [key for key in ("uid", "group", "any") if key in self.raw["attach"][index]]
        if len(given) != 1:
            found = " and ".join(quoted(key) for key in given) or "none of them"
            self.draft.note(path, 'exactly one of the keys "uid", "group" or "any"', found)
        if "any" in given and not entry.any:
            self.draft.note((*path, "any"), "true, or another key", "false")
        if entry.any and index + 1 < len(self.image.attach):
            self.draft.note(
                path, "`any` in the last [[attach]] only", f"{len(self.image.attach) - index - 1} behind it"
            )
        if entry.group and entry.group not in (groups := [found.gr_name for found in grp.getgrall()]):
            self.draft.note(
                (*path, "group"), "a group of this host", quoted(entry.group), nearest(entry.group, groups)
            )
        given_before = set()
        for number, may in enumerate(entry.may):
            at: TomlPath = (*path, "may", number)
            if isinstance(may, MayRead):
                self.check_may_read(at, may)
                once, name, key = "each keyspace once", may.keyspace, ("", may.keyspace)
            else:
                once, name, key = "each interface of a server once", may.server, (may.server, may.interface)
            if key in given_before:
                self.draft.note(at, once, f"{quoted(name)} again")
            given_before.add(key)
        if entry.uid is None:
            return
        if entry.uid.first == 0:
            self.draft.note(
                (*path, "uid"), "user ids above 0, since root is an operator without an entry", str(entry.uid)
            )
        if entry.uid.overlaps(self.image.node.uids):
            self.draft.note(
                (*path, "uid"),
                f"user ids that are no server's (those have {self.image.node.uids})",
                str(entry.uid),
            )
        for before in range(index):
            other = self.image.attach[before].uid
            if other is not None and entry.uid.overlaps(other):
                self.draft.note(
                    (*path, "uid"), "user ids that no other [[attach]] has", f"{entry.uid}, and {other} above"
                )
                return


class _Wiring:
    """Bindings against what servers declare: needs and interfaces, rights, configuration."""

    def __init__(self, draft: Draft, descriptions: Mapping[str, Description | str]) -> None:
        self.draft = draft
        self.image = draft.image
        self.descriptions = descriptions

    def check_server(self, name: str) -> None:
        described = self.descriptions[name]
        path: TomlPath = ("server", name)
        if isinstance(described, str):
            self.draft.note(path, "a package that can be described", described, at_key=True)
            return
        bindings = self.image.server[name].needs
        for need, about in described.needs.items():
            at = (*path, "needs", need)
            if need in bindings:
                self.check_need(at, bindings[need], about)
            elif not about.optional:
                written = f"write {need} = {WRITTEN[about.kind]}"
                self.draft.note(at, f"the need {quoted(need)} of {name} to be bound", "no binding", written)
        if name == KEYS:
            self.check_policy(path, bindings)
        for need in bindings.keys() - described.needs.keys():
            declared = f"a need of {name}: {one_of(described.needs)}"
            hint = nearest(need, described.needs)
            self.draft.note((*path, "needs", need), declared, quoted(need), hint, at_key=True)
        for need, fault in described.config_faults.items():
            at = (*path, "needs", need, "config", *fault.path)
            self.draft.note(at, fault.expected, fault.found, fault.suggestion, at_key=fault.at_key)

    def check_need(self, path: TomlPath, bound: Binding, about: NeedDescription) -> None:
        kind = KINDS[type(bound)]
        if kind != about.kind:
            self.draft.note(path, f"a {about.kind}: {WRITTEN[about.kind]}", f"a {kind}")
        elif isinstance(bound, KeyspaceBinding):
            self.check_keyspace(path, bound, about)
        elif isinstance(bound, ServerBinding):
            offer = self.offer(path, bound.server, bound.interface or about.interface)
            if offer is None:
                return
            if about.interface and offer.name != about.interface:
                self.draft.note(
                    (*path, "interface"), f"the interface {quoted(about.interface)}", quoted(offer.name)
                )
            self.check_rights((*path, "rights"), bound.rights, bound.server, offer)

    def check_policy(self, path: TomlPath, bindings: Mapping[str, Binding]) -> None:
        """A policy for a misspelt keyspace would leave the one that is meant without any."""
        private = [name for name, spec in self.image.keyspace.items() if spec.private]
        for need, bound in bindings.items():
            policy = bound.config.get("policy") if isinstance(bound, ConfigBinding) else None
            for name in policy if isinstance(policy, dict) else ():
                if name not in private:
                    at = (*path, "needs", need, "config", "policy", name)
                    expected = "a private keyspace of this image"
                    self.draft.note(at, expected, quoted(name), nearest(name, private), at_key=True)

    def check_keyspace(self, path: TomlPath, bound: KeyspaceBinding, about: NeedDescription) -> None:
        """A private keyspace is one for all: the image, who keeps its keys, and each server that is bound to it."""
        spec = self.image.keyspace.get(bound.keyspace)
        if spec is not None and spec.private != about.private:
            is_private = "a private keyspace, whose values are sealed", "one that is not private"
            expected, got = is_private if about.private else is_private[::-1]
            hint = f"write private = true in [keyspace.{bound.keyspace}]" if about.private else ""
            self.draft.note((*path, "keyspace"), expected, got, hint)
        if PURGE in bound.rights and not about.private:
            at = (*path, "rights", bound.rights.index(PURGE))
            self.draft.note(at, f"no {quoted(PURGE)}: only a private keyspace has it", quoted(PURGE))
        if not about.private:
            return
        first = next(
            need
            for need, its in self.image.server[str(path[1])].needs.items()
            if isinstance(its, KeyspaceBinding) and its.keyspace == bound.keyspace
        )
        if first != path[3]:
            got = f"another one beside {quoted(first)}: a purge would not reach what each holds"
            self.draft.note((*path, "keyspace"), "one need of a server for a private keyspace", got)
        if self.image.server[str(path[1])].record:
            expected = (
                "no record of a server with a private keyspace: what its calls say would be rows in the clear"
            )
            self.draft.note((*path[:2], "record"), expected, "true")
        keeper = self.descriptions.get(KEYS)
        offers = [offer.name for offer in keeper.interfaces] if isinstance(keeper, Description) else []
        if keeper is None or (isinstance(keeper, Description) and KEYS_INTERFACE not in offers):
            got = f"one that offers {one_of(offers)}" if offers else "none"
            self.draft.note(
                path, f"a [server.{KEYS}] of this image, which keeps the keys of private keyspaces", got
            )

    def check_records(self) -> None:
        """None of what a private keyspace holds."""
        private = {
            name
            for name, described in self.descriptions.items()
            if isinstance(described, Description) and described.keeps_private
        }
        recorded = [name for name, server in self.image.server.items() if server.record]
        edges = [(caller, callee) for caller, callee, _ in calls(self.image)]
        for way in disclosure.ways(edges, recorded, private):
            self.draft.note(
                ("server", way.recorded, "record"),
                disclosure.EXPECTED,
                f"true ({way})",
                'audit = "full" records calls without what they say',
            )

    def check_attach(self) -> None:
        for index, entry in enumerate(self.image.attach):
            for number, may in enumerate(entry.may):
                if isinstance(may, MayRead):
                    continue
                path: TomlPath = ("attach", index, "may", number)
                servers = self.draft.raw.get("server")
                if not isinstance(servers, dict):
                    return  # it was said, and who is there is not known
                if may.server not in servers:
                    at = (*path, "server")
                    self.draft.note(
                        at, "a [server.NAME] of this image", quoted(may.server), nearest(may.server, servers)
                    )
                    continue
                offer = self.offer(path, may.server, may.interface)
                if offer is not None:
                    self.check_rights((*path, "rights"), may.rights, may.server, offer)

    def offer(self, path: TomlPath, server: str, interface: str) -> Offer | None:
        """The interface meant, or None with the reason noted (or noted before)."""
        described = self.descriptions.get(server)
        if not isinstance(described, Description):
            return None
        names = [offer.name for offer in described.interfaces]
        if not interface and len(names) != 1:
            self.draft.note(path, f'the key "interface", since {server} offers {one_of(names)}', "none")
            return None
        for offer in described.interfaces:
            if offer.name == (interface or names[0]):
                return offer
        at = (*path, "interface") if (*path, "interface") in self.draft.places.values else (*path, "server")
        self.draft.note(
            at, f"an interface of {server}: {one_of(names)}", quoted(interface), nearest(interface, names)
        )
        return None

    def check_rights(self, path: TomlPath, rights: Sequence[str], server: str, offer: Offer) -> None:
        known = (*offer.rights, DELEGATE)
        for index, right in enumerate(rights):
            if right not in known:
                what = f"a right that {server}.{offer.name} offers: {one_of(known)}"
                self.draft.note((*path, index), what, quoted(right), nearest(right, known))


def calls(image: Image) -> Iterator[tuple[str, str, str]]:
    """Who calls whom through which need: (caller, callee, need), the store included."""
    for name, server in image.server.items():
        for need, bound in server.needs.items():
            if isinstance(bound, ServerBinding):
                yield name, bound.server, need
            elif isinstance(bound, KeyspaceBinding):
                yield name, STORE, need
                if image.keyspace.get(bound.keyspace, KeyspaceSpec()).private:
                    yield name, KEYS, need


def _check_priorities(draft: Draft) -> None:
    """Servers that wait on each other in a circle must have one priority: else one of the higher waits,
    through the others, on one of the lower, which the higher itself keeps from running; no order would be
    right.
    """
    image = draft.image
    edges = [(a, b, need) for a, b, need in calls(image) if b in image.server]
    for circle in circles([(a, b) for a, b, _ in edges]):
        if len({image.priority(name) for name in circle}) == 1:
            continue
        shown = " -> ".join(f"{name} (priority {image.priority(name)})" for name in [*circle, circle[0]])
        need = next(need for a, b, need in edges if (a, b) == (circle[0], circle[1 % len(circle)]))
        draft.note(
            ("server", circle[0], "needs", need),
            "one priority for servers that call each other in a circle",
            shown,
            "give them slices of one priority",
        )
