"""`atoll sql`: the node's rows as tables of DuckDB, in this process.

What a query names is read over the node's capabilities as they are this program's: it sees the keyspaces that it may read.
DuckDB itself may open no file and no socket, and its configuration is locked before the query is run.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from atoll.ipc.attach import connect
from atoll.ipc.errors import BadRequest

from . import printing
from .options import At, Json, Node
from .tables import Batch, Column, Kind, Moment, Table
from .when import moment

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NOW: Final = "memory"
"""DuckDB's catalog of what a query names without one."""
MEMORY: Final = "2GiB"
"""What a query and the tables that it names may take; nothing is put on the disk."""
_LISTINGS: Final = ('"tables"', "__show_tables_expanded")
"""What DuckDB makes of `show tables` and `show all tables`."""
_SHOW_TABLES: Final = f"""
select nullif(database, '{NOW}') as moment, schema, name, array_to_string(column_names, ', ') as columns
from (show all tables) order by moment nulls first, schema, name"""
"""What is told to `show tables`: DuckDB itself would list those of the schema `main` alone."""
_TYPES: Final[dict[Kind, str]] = {
    "text": "VARCHAR", "json": "JSON", "integer": "UBIGINT", "number": "HUGEINT", "real": "DOUBLE", "truth": "BOOLEAN",
    "moment": "TIMESTAMP",
}  # fmt: skip


def sql(
    query: Annotated[str, typer.Argument(help="A SELECT.")],
    at: At = "",
    moments: Annotated[
        list[str] | None,
        typer.Option(
            "--as", metavar="NAME=WHEN", help="Tables as of another moment, too: NAME.kernel.process."
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="WHEN",
            help="Changes (store.change) from this moment on.",
            show_default="all that are kept",
        ),
    ] = "",
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Ask the node's rows by SQL: the tables of kernel and servers, every keyspace, and what was changed by whom; now, as
    of a moment, or of several at once."""
    others = dict(named_moment(text) for text in moments or [])
    database = opened()
    tree = tree_of(database, query)
    listed = any(
        node.get("table_name") in _LISTINGS for node in nodes(tree) if node.get("type") == "SHOW_REF"
    )
    with connect(node=node or None) as attached, told_by_the_database():
        catalogs = {NOW: Moment(attached, moment(at), moment(since, "--since"))}
        for name, when in others.items():
            if any(name == schema for schema, _ in catalogs[NOW].names()):
                raise BadRequest(where="--as", expected="a name that no schema has", got=repr(name))
            database.execute(f"attach ':memory:' as {quoted(name)}")
            catalogs[name] = Moment(attached, when, moment(since, "--since"))
        for catalog, schema, name in dict.fromkeys(placed(catalogs, *each) for each in tables_of(tree)):
            bring(database, catalogs.get(catalog), catalog, schema, name)
        if listed:
            declare_all(database, catalogs)
    with told_by_the_database():
        database.execute("set lock_configuration = true")
        tell(database.execute(_SHOW_TABLES if plain_listing(query) else query), as_json)


def named_moment(text: str) -> tuple[str, int | float | None]:
    name, separator, when = text.partition("=")
    if not separator or not name.isidentifier() or name in (NOW, "system", "temp"):
        raise BadRequest(where="--as", expected="a name and a moment, such as before=10m", got=repr(text))
    return name, moment(when, "--as")


def opened() -> "DuckDBPyConnection":
    """A database of this process alone. Raises `BadRequest` where DuckDB is not installed."""
    try:
        import duckdb
        import nanoarrow  # noqa: F401 (how columns get there)
    except ImportError:
        raise BadRequest(
            where="atoll sql",
            expected="the packages duckdb and nanoarrow: pip install 'atoll[sql]'",
            got="neither or one",
        ) from None
    return duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "memory_limit": MEMORY,
            "temp_directory": "",
        },
    )


@contextmanager
def told_by_the_database() -> Iterator[None]:
    """What DuckDB says of a query, its lack of memory included, as `BadRequest`."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise BadRequest(
            where="QUERY", expected="a SELECT that DuckDB runs", got=first_line(str(error))
        ) from None


def first_line(text: str) -> str:
    return text.split("\n\nLINE", 1)[0].replace("\n", " ")


# what a query names -------------------------------------------------------------------------------------------


def tree_of(database: "DuckDBPyConnection", query: str) -> dict[str, Any]:
    """A query as DuckDB understands it. Raises `BadRequest` for what is no SELECT."""
    found = database.execute("select json_serialize_sql(?)", [query]).fetchone()
    tree: dict[str, Any] = json.loads(found[0] if found else "{}")
    if tree.get("error"):
        raise BadRequest(where="QUERY", expected="a SELECT", got=first_line(tree["error_message"]))
    return tree


def plain_listing(query: str) -> bool:
    return " ".join(query.rstrip("; \n").lower().split()) in ("show tables", "show all tables")


def tables_of(tree: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Catalog, schema and name of each table in a query as it names them."""
    seen: set[tuple[str, str, str]] = set()
    for node in nodes(tree):
        if node.get("type") == "BASE_TABLE":
            name = node.get("catalog_name") or "", node["schema_name"], node["table_name"]
            if name not in seen:
                seen.add(name)
                yield name


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(below)


def placed(catalogs: dict[str, Moment], catalog: str, schema: str, name: str) -> tuple[str, str, str]:
    """Where a table lies that a query names so: in one query the same one may be named in several ways."""
    if not catalog and schema in catalogs:
        catalog, schema = schema, ""
    return catalog or NOW, schema or "main", name


def bring(database: "DuckDBPyConnection", past: Moment | None, catalog: str, schema: str, name: str) -> None:
    """Have a table that a query names in the database, if the node has it; what it has not, DuckDB says."""
    of = None if past is None else past.names().get((schema, name))
    if past is None or of is None:
        return
    table = past.table(of)
    fill(database, declare(database, catalog, schema, name, table), table)


def declare_all(database: "DuckDBPyConnection", catalogs: dict[str, Moment]) -> None:
    """Have every table there is in the database, without its rows: for a query that lists them."""
    for catalog, past in catalogs.items():
        for (schema, name), of in past.names().items():
            declare(database, catalog, schema, name, past.table(of))


def declare(database: "DuckDBPyConnection", catalog: str, schema: str, name: str, table: Table) -> str:
    """Make a table of these columns; gives how it is named in full."""
    database.execute(f"create schema if not exists {quoted(catalog)}.{quoted(schema)}")
    target = ".".join(map(quoted, (catalog, schema, name)))
    columns = ", ".join(f"{quoted(column.name)} {_TYPES[column.kind]}" for column in table.columns)
    database.execute(f"create table if not exists {target} ({columns})")
    return target


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def fill(database: "DuckDBPyConnection", target: str, table: Table) -> None:
    for batch in table.batches():
        database.register("batch", arrow(table.columns, batch))
        database.execute(f"insert into {target} select * from batch")
        database.unregister("batch")


def arrow(columns: tuple[Column, ...], batch: Batch) -> Any:
    """The batch in Arrow's layout, which DuckDB reads in place."""
    import nanoarrow

    kinds = {
        "text": nanoarrow.string(), "json": nanoarrow.string(), "integer": nanoarrow.uint64(), "number": nanoarrow.string(),
        "real": nanoarrow.float64(), "truth": nanoarrow.bool_(), "moment": nanoarrow.timestamp("us"),
    }  # fmt: skip
    types = [kinds[column.kind] for column in columns]
    schema = nanoarrow.struct({column.name: kind for column, kind in zip(columns, types, strict=True)})
    values = [nanoarrow.c_array(each, kind) for each, kind in zip(batch.columns, types, strict=True)]
    return nanoarrow.ArrayStream(nanoarrow.c_array_from_buffers(schema, len(batch), [None], children=values))


# the answer ---------------------------------------------------------------------------------------------------


def tell(result: "DuckDBPyConnection", as_json: bool) -> None:
    names = [column[0] for column in result.description or ()]
    rows = result.fetchall()
    if as_json:
        fields = distinct(names)
        print(printing.json([dict(zip(fields, map(plain, row), strict=True)) for row in rows]))
        return
    columns: list[printing.Column[tuple[Any, ...]]] = [
        printing.Column(name, lambda row, at=at: "-" if row[at] is None else row[at], fold=True)  # type: ignore[misc]
        for at, name in enumerate(names)
    ]
    printing.rows(rows, columns, False, "no rows")


def distinct(names: list[str]) -> list[str]:
    """A name for each column, also where several have the same: as DuckDB makes them for the columns of a table."""
    found: dict[str, None] = {}
    for name in names:
        number, field = 0, name
        while field in found:
            number += 1
            field = f"{name}_{number}"
        found[field] = None
    return list(found)


def plain(value: object) -> object:
    """A value of DuckDB's as JSON has it."""
    return value if isinstance(value, int | float | str | bool | list | dict | None) else str(value)
