"""Who may call whom with which rights, and every weakening: what a boot prints, and `image check --graph`
draws.
"""

import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from atoll.ipc.system.keys import SERVER as KEYS

from .image import PURGE, Image, KeyspaceBinding, MayRead, ServerBinding
from .image_check import KEYS_INTERFACE, STORE, Checked, calls
from .priorities import inversions


class Edge(NamedTuple):
    """One capability that the image gives."""

    caller: str
    """A server, or who attaches: `uid 1000`, `group raters`, `anyone`."""
    callee: str
    what: str
    """The interface, or `keyspace NAME`."""
    badge: str
    """The object; empty: unbadged, which is all objects."""
    rights: tuple[str, ...]


class Weakness(NamedTuple):
    """Something weaker than it could be, with the reason the image gives, or what follows from it."""

    server: str
    what: str
    reason: str


class Graph(NamedTuple):
    name: str
    levels: dict[str, str]
    """Each server's level, in the image's order."""
    heavy: frozenset[str]
    """Servers that start by `exec` because their packages say that they are heavy, and not because the image says so."""
    edges: list[Edge]
    weaknesses: list[Weakness]


def graph(checked: Checked) -> Graph:
    """The graph of an image, in the image's order. What the host lacks, boot adds."""
    image = checked.image
    return Graph(
        name=image.image.name,
        levels={name: image.level(name) for name in image.server},
        heavy=frozenset(
            name
            for name, server in image.server.items()
            if checked.descriptions[name].heavy and server.start != "exec"
        ),
        edges=_edges(checked),
        weaknesses=_weaknesses(image),
    )


def _edges(checked: Checked) -> list[Edge]:
    edges = []
    for name, server in checked.image.server.items():
        for need, bound in server.needs.items():
            if isinstance(bound, KeyspaceBinding):
                about = checked.descriptions[name].needs[need]
                rights = tuple(right for right in bound.rights if right != PURGE)
                edges.append(Edge(name, STORE, f"keyspace {bound.keyspace}", bound.keyspace, rights))
                if about.private:
                    rights = ("use", PURGE) if PURGE in bound.rights else ("use",)
                    edges.append(Edge(name, KEYS, KEYS_INTERFACE, bound.keyspace, rights))
            elif isinstance(bound, ServerBinding):
                about = checked.descriptions[name].needs[need]
                interface = checked.interface(bound.server, bound.interface, about)
                badge = name if bound.badge is None else bound.badge
                edges.append(Edge(name, bound.server, interface, badge, bound.rights))
    for entry in checked.image.attach:
        who = f"group {entry.group}" if entry.group else f"uid {entry.uid}" if entry.uid else "anyone"
        if entry.operator:
            edges.append(Edge(who, "kernel", "Kernel", "", ("operator",)))
        for may in entry.may:
            if isinstance(may, MayRead):
                edges.append(Edge(who, STORE, f"keyspace {may.keyspace}", may.keyspace, may.rights))
                continue
            interface = checked.interface(may.server, may.interface)
            edges.append(Edge(who, may.server, interface, who, may.rights))
    return edges


def _weaknesses(image: Image) -> list[Weakness]:
    found = []
    for name, server in image.server.items():
        found += [Weakness(name, f"without {drop.mechanism}", drop.reason) for drop in server.drop]
        found += [
            Weakness(name, f"may make {allow.calls} system calls", allow.reason) for allow in server.allow
        ]
        for need, bound in server.needs.items():
            if isinstance(bound, ServerBinding) and bound.badge == "":
                what = f"need {need} is unbadged"
                found.append(
                    Weakness(name, what, f"it may mint capabilities for every object of {bound.server}")
                )
        if server.needs and image.level(name) in ("process", "seccomp"):
            why = "without root, only level sandbox keeps the servers of one user apart"
            found.append(Weakness(name, f"level {image.level(name)}", why))
    edges = [(caller, callee) for caller, callee, _ in calls(image)]
    for caller, callee in inversions(image, edges):
        what = f"priority {image.priority(caller)} waits on {callee} of priority {image.priority(callee)}"
        found.append(Weakness(caller, what, f"whatever keeps {callee} from running keeps {caller} waiting"))
    for entry in image.attach:
        if entry.any and (entry.operator or entry.may):
            found.append(Weakness("attach", "any local user may attach", "any = true"))
    return found


def text(graph: Graph) -> str:
    """The graph for a terminal: one line a capability, then the weakenings."""
    lines = [f"image {graph.name}: who may call whom"]
    callers = list(dict.fromkeys([*graph.levels, *(edge.caller for edge in graph.edges)]))
    width = max((len(f"{edge.callee}.{edge.what}") for edge in graph.edges), default=0)
    for caller in callers:
        level = graph.levels.get(caller)
        how = "; heavy: starts by exec" if caller in graph.heavy else ""
        lines.append(f"  {caller} ({level}{how})" if level else f"  {caller} (from outside)")
        own = [edge for edge in graph.edges if edge.caller == caller]
        for edge in own:
            target = f"{edge.callee}.{edge.what}"
            badge = (
                f", badge {edge.badge}"
                if edge.badge not in ("", caller) and "keyspace" not in edge.what
                else ""
            )
            lines.append(f"    -> {target:<{width}}  {', '.join(edge.rights) or 'no rights'}{badge}")
        if not own:
            lines.append("    -> nobody")
    lines.append("the image weakens" if graph.weaknesses else "the image weakens nothing")
    lines += [f"  {server}: {what}: {reason}" for server, what, reason in graph.weaknesses]
    return "\n".join(lines) + "\n"


def plain(graph: Graph) -> dict[str, object]:
    """The graph for a program: servers with their levels, capabilities, weakenings."""
    return {
        "levels": graph.levels,
        "heavy": sorted(graph.heavy),
        "edges": [edge._asdict() for edge in graph.edges],
        "weaknesses": [weakness._asdict() for weakness in graph.weaknesses],
    }


def dot(graph: Graph) -> str:
    """The graph in graphviz's language."""
    weak: dict[str, list[str]] = {}
    for server, what, _ in graph.weaknesses:
        weak.setdefault(server, []).append(what)
    lines = [
        f"digraph {_quote(graph.name)} {{",
        '  rankdir=LR; node [shape=box, style=rounded, fontname="sans-serif"];',
        '  edge [fontname="sans-serif", fontsize=10];',
    ]
    for server, level in graph.levels.items():
        label = "\n".join([server, level, *weak.get(server, [])])
        lines.append(
            f"  {_quote(server)} [label={_quote(label)}{', color=firebrick' if server in weak else ''}];"
        )
    for outside in dict.fromkeys(edge.caller for edge in graph.edges if edge.caller not in graph.levels):
        lines.append(f"  {_quote(outside)} [shape=ellipse];")
    for edge in graph.edges:
        label = "\n".join([edge.what, ", ".join(edge.rights) or "no rights"])
        lines.append(f"  {_quote(edge.caller)} -> {_quote(edge.callee)} [label={_quote(label)}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def svg(graph: Graph) -> bytes | None:
    """The picture; None where graphviz is not installed. `CalledProcessError` if it fails."""
    program = shutil.which("dot")
    if program is None:
        return None
    return _run([program, "-Tsvg"], dot(graph).encode())


def _run(command: Sequence[str], given: bytes) -> bytes:
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout
