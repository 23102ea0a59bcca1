"""The command line itself: which commands there are, and how an error becomes a sentence and an exit code."""

import codecs
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Annotated

import typer

from atoll.ipc.errors import AtollError

from . import (
    authority,
    backup,
    calling,
    calls,
    exits,
    flows,
    keyring,
    life,
    offline,
    past,
    printing,
    replay,
    rows,
    scaffold,
    sql,
    travel,
    watching,
)

app = typer.Typer(
    name="atoll",
    help="Atoll: an operating system for one node, in user space.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
image = typer.Typer(help="Images: what a node is booted from.")
protection = typer.Typer(help="What keeps servers in.")
new = typer.Typer(help="Begin something new.")
flow = typer.Typer(help="Workflows: the calls of durable methods.")
keys = typer.Typer(help="The keys of private keyspaces.")

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "The node": {
        "boot": offline.boot,
        "shutdown": life.shutdown,
        "clean": offline.clean,
        "doctor": offline.doctor,
        "check": offline.check,
        "backup": backup.backup,
        "restore": backup.restore,
    },
    "Look": {
        "ps": watching.ps,
        "top": watching.top,
        "log": watching.log,
        "refused": watching.refused,
        "calls": calls.calls,
        "replay": replay.replay,
        "versions": watching.versions,
    },
    "A server's life": {
        "load": life.load,
        "swap": life.swap,
        "stop": life.stop,
        "restart": life.restart,
        "freeze": life.freeze,
        "thaw": life.thaw,
        "call": calling.call,
    },
    "Capabilities": {
        "caps": watching.caps,
        "mint": authority.mint,
        "grant": authority.grant,
        "revoke": authority.revoke,
    },
    "Private keyspaces": {
        "purge": keyring.purge,
    },
    "What the store knows": {
        "get": rows.get,
        "range": rows.range_,
        "history": rows.history,
        "blame": travel.blame,
        "diff": travel.diff,
        "rollback": travel.rollback,
        "sql": sql.sql,
        "watch": rows.watch,
        "horizons": past.horizons,
        "pins": past.pins,
    },
}

for panel, commands in COMMANDS.items():
    for name, handler in commands.items():
        app.command(name, rich_help_panel=panel)(handler)
app.add_typer(image, name="image")
app.add_typer(protection, name="protection")
app.add_typer(new, name="new")
app.add_typer(flow, name="flow")
app.add_typer(keys, name="keys")
image.command("check")(offline.image_check)
image.command("show")(watching.image)
protection.command("show")(watching.show)
new.command("server")(scaffold.new_server)
new.command("unit")(scaffold.new_unit)
for handler in (flows.ls, flows.show, flows.cancel, flows.resume, flows.fork):
    flow.command(handler.__name__)(handler)


for handler in (keyring.show, keyring.copy, keyring.rotate, keyring.unlock):
    keys.command(handler.__name__)(handler)


@image.callback()
def of_image() -> None:
    """Images: what a node is booted from."""


@protection.callback()
def of_protection() -> None:
    """What keeps servers in."""


@new.callback()
def of_new() -> None:
    """Begin something new."""


@flow.callback()
def of_flow() -> None:
    """Workflows: the calls of durable methods."""


@keys.callback()
def of_keys() -> None:
    """The keys of private keyspaces."""


def version(wanted: bool) -> None:
    if wanted:
        print(f"atoll {metadata.version('atoll')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="ATOLL_DEBUG", help="Show the traceback of an error, too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=version, is_eager=True)
    ] = False,
) -> None:
    """Atoll: an operating system for one node, in user space."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code is that of docs/manual.md. Tracebacks appear with `--debug`
    only.
    """
    told: Exception
    debug = "--debug" in arguments or bool(os.environ.get("ATOLL_DEBUG"))
    as_json = "--json" in arguments
    try:
        result = app(list(arguments) or ["--help"], prog_name="atoll", standalone_mode=False)
        return result if isinstance(result, int) else exits.OK
    except typer.TyperException as error:
        printing.complain("Usage", usage(error), {}, as_json)
        return exits.USAGE
    except (typer.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    except (BrokenPipeError, SystemExit) as ended:
        # Typer makes `SystemExit` of the first, with exit code 1.
        if isinstance(ended, SystemExit) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        # Whoever read our output has gone, as `| head` does: nothing is left to say, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    except backup.Stopped as stopped:
        printing.complain(stopped.name, str(stopped), {}, as_json)
        told, code = stopped, stopped.code
    except AtollError as error:
        printing.error(error, as_json)
        told, code = error, exits.code(error)
    except Exception as error:
        # The one place that catches everything: what no layer below turned into an AtollError is our bug.
        what = f"a fault in Atoll itself ({type(error).__name__}: {error})"
        printing.complain(
            "Fault", f"{what}: run it again with --debug, and report what that prints", {}, as_json
        )
        told, code = error, exits.FAULT
    if debug:
        traceback.print_exception(told)
    return code


def usage(error: typer.TyperException) -> str:
    """What is wrong with the command line, and where its help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "atoll"
    sentence = error.format_message().rstrip(".").replace(". Did you mean", ": did you mean")
    stop = "" if sentence.endswith("?") else ";"
    return f"{sentence[:1].lower()}{sentence[1:]}{stop} see `{path} --help`"


def main() -> None:
    """The program: arguments are UTF-8 and answers can be printed, whatever the locale says."""
    codecs.register_error(printing.ESCAPE, printing.escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=printing.ESCAPE)
    sys.exit(run([os.fsencode(word).decode(errors="replace") for word in sys.argv[1:]]))
