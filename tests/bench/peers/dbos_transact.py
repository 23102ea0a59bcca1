"""DBOS Transact, on SQLite and on PostgreSQL: a workflow whose steps do nothing, so that what is measured is the record
that they ran."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import children
from ..extras import need
from ..frame import Block
from ..placement import Placement
from ..store import postgres


@contextmanager
def on_sqlite(placement: Placement) -> Iterator[Block]:
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        _steps(f"sqlite:///{folder}/dbos.sqlite", placement) as block,
    ):
        yield block


@contextmanager
def on_postgres(cluster: postgres.Cluster, placement: Placement) -> Iterator[Block]:
    """In a database of its own, which it makes."""
    need("psycopg")
    with cluster.lease(), _steps(f"postgresql://bench@/dbos?host={cluster.folder}", placement) as block:
        yield block


@contextmanager
def _steps(url: str, placement: Placement) -> Iterator[Block]:
    need("dbos")
    with children.served("peers.dbos_transact", url, core=placement.server) as child:

        def block(n: int) -> float:
            assert child.stdin is not None and child.stdout is not None
            start = time.perf_counter()
            child.stdin.write(f"{n}\n".encode())
            child.stdin.flush()
            if not child.stdout.read(1):
                raise RuntimeError("DBOS ended in the middle of a block")
            return time.perf_counter() - start

        yield block


def main(arguments: list[str]) -> None:
    dbos = need("dbos")
    dbos.DBOS(
        config={
            "name": "bench",
            "system_database_url": arguments[0],
            "log_level": "ERROR",
            "console_log_level": "ERROR",
        }
    )

    @dbos.DBOS.step()
    def step(number: int) -> int:
        return number

    @dbos.DBOS.workflow()
    def run(count: int) -> int:
        for number in range(count):
            step(number)
        return count

    dbos.DBOS.launch()
    children.ready()
    for line in sys.stdin:
        run(int(line))
        children.ready()
    dbos.DBOS.destroy()
