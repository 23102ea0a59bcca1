"""`atoll new server NAME`: a package that works, with its test, to be changed into what is wanted."""

import importlib.util
import keyword
import re
import sys
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from atoll.ipc.errors import BadRequest

from . import printing
from .options import Json

PACKAGE = __name__.rpartition(".")[0]
SUFFIX = ".template"
UNIT = "atoll@.service"


def new_server(
    name: Annotated[str, typer.Argument(help="Its name: the package's, and the interface's in CamelCase.")],
    where: Annotated[Path, typer.Option("--in", help="The folder to make it in.")] = Path(),
    as_json: Json = False,
) -> None:
    """Write a server package NAME that works, with its test."""
    package = checked(name, where) / name
    package.mkdir(parents=True)
    written = [
        write(template, name, package) for template in sorted(templates(), key=lambda entry: entry.name)
    ]
    sentence = (
        f"wrote {package}: {', '.join(path.name for path in written)}\n"
        f"try it:  python -m pytest {package}\n"
        f"run it:  atoll load {name} {package}"
    )
    printing.answer({"package": str(package), "files": [str(path) for path in written]}, sentence, as_json)


def new_unit() -> None:
    """Print a systemd unit that runs nodes as services: put it into /etc/systemd/system/atoll@.service."""
    template = resources.files(PACKAGE) / "templates" / f"{UNIT}{SUFFIX}"
    print(Template(template.read_text()).substitute(command=f"{sys.prefix}/bin/atoll"), end="")


def templates() -> list[Traversable]:
    """The files of a server package."""
    folder = resources.files(PACKAGE) / "templates"
    return [entry for entry in folder.iterdir() if entry.name.endswith(f".py{SUFFIX}")]


def write(template: Traversable, name: str, package: Path) -> Path:
    path = package / template.name.removesuffix(SUFFIX)
    imports = ", ".join(sorted(("Change", "Spent", camel(name))))
    text = Template(template.read_text()).substitute(name=name, Name=camel(name), imports=imports)
    path.write_text(text)
    return path


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def checked(name: str, where: Path) -> Path:
    """The folder to write into. Raises `BadRequest` for a name that a package cannot have, or that is
    taken."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise BadRequest(
            where="NAME", expected="lower-case letters, digits and _, no keyword of Python", got=repr(name)
        )
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise BadRequest(
            where="NAME",
            expected="a name that no installed package has, since the server imports those",
            got=repr(name),
        )
    if (where / name).exists():
        raise BadRequest(where="NAME", expected="a new folder", got=f"{where / name}, which exists")
    return where
