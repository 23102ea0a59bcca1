"""The tables of docs/images.md, made from the Structs of the format. `python tests/images/reference.py`
writes them.
"""

import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec

from atoll.microkernel import image
from atoll.microkernel.image_read import keys_of, show_size

PAGE = Path(__file__).parent.parent.parent / "docs" / "images.md"
BEGIN, END = "<!-- tables: made by tests/images/reference.py -->\n", "<!-- end of tables -->\n"

TABLES: tuple[type[image.Table], ...] = (
    image.Image,
    image.About,
    image.Node,
    image.Server,
    image.Drop,
    image.Allow,
    image.Restart,
    image.Readers,
    image.KeyspaceBinding,
    image.ServerBinding,
    image.ConfigBinding,
    image.ListenBinding,
    image.FolderBinding,
    image.Keep,
    image.KeyspaceSpec,
    image.SliceSpec,
    image.Account,
    image.Attach,
    image.May,
    image.MayRead,
)
WORDS: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "true, false",
    image.Size: "size",
    image.Seconds: "time",
    image.Address: "address",
    image.Uids: "user ids",
    Any: "value",
}


def kind(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, UnionType):
        if NoneType in args:
            return kind(args[0])
        return "binding" if hint == image.Binding else "table"
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in args)
    if origin is tuple:
        return f"array of {kind(args[0])}"
    if origin is dict:
        return f"table of {kind(args[1])}"
    return WORDS.get(hint, "table")


def shown(value: Any, hint: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, image.Table):
        return "as below"
    if isinstance(value, tuple | dict) and not value:
        return "empty"
    if kind(hint) == "size":
        return show_size(value)
    if kind(hint) == "time":
        return f"{value:g}s"
    return str(value).lower() if isinstance(value, bool) else str(value) or "empty"


def bounds(key: image.Key, hint: Any) -> str:
    if key.ge is None:
        return ""
    show = (
        show_size
        if kind(hint) == "size"
        else (lambda bound: f"{bound:g}s" if kind(hint) == "time" else str(bound))
    )
    return f" (at least {show(key.ge)})" if key.le is None else f" ({show(key.ge)} to {show(key.le)})"


def tables() -> str:
    """Every table of the format as Markdown."""
    lines: list[str] = []
    for table in TABLES:
        meaning = " ".join((table.__doc__ or "").split())
        lines += [
            f"### {table.__name__}",
            "",
            meaning,
            "",
            "| key | value | default | meaning |",
            "|---|---|---|---|",
        ]
        defaults = {field.name: field for field in msgspec.structs.fields(table)}
        for name, field in keys_of(table).items():
            entry = defaults[name]
            made = entry.default_factory() if callable(entry.default_factory) else entry.default
            default = "**required**" if field.required else shown(made, field.type)
            value = kind(field.type) + bounds(field.key, field.type)
            lines.append(f"| `{name}` | {value} | {default} | {field.key.text} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with its tables as they must be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + "\n" + tables() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
