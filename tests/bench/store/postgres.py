"""PostgreSQL, started by hand in a temporary folder as an unprivileged user, driven by its own C client
(pgbench).

In its favour: prepared statements, all three rows in one statement and one round trip, no vacuum, no
checkpoint, no replication, connections settled before the timing starts. Durability is its default: fsync,
synchronous_commit and full_page_writes are on.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..frame import Block, Contestant, Unavailable
from ..leased import Leased
from ..placement import Placement
from .work import KEYS, VALUE

SETTINGS = {
    "listen_addresses": "''",
    "shared_buffers": "256MB",
    "max_connections": "100",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1d",
    "autovacuum": "off",
    "jit": "off",
}
SCHEMA = """
CREATE TABLE history (revision bigint PRIMARY KEY, key text NOT NULL, value text NOT NULL);
CREATE TABLE latest (key text, revision bigint, PRIMARY KEY (key, revision));
CREATE TABLE provenance (revision bigint PRIMARY KEY, who bytea NOT NULL);
CREATE TABLE import (key text, revision bigint, value text NOT NULL, PRIMARY KEY (key, revision));
CREATE SEQUENCE revision CACHE 1;
"""
TRANSACTION = (
    f"\\set key random(0, {KEYS - 1})\n"
    "WITH new AS (INSERT INTO history SELECT nextval('revision'), 'rating/' || lpad((:key)::text, 8, '0'), "
    f"'{VALUE.decode()}' RETURNING revision, key), "
    "known AS (INSERT INTO latest SELECT key, revision FROM new) "
    "INSERT INTO provenance SELECT revision, decode(repeat('00', 32), 'hex') FROM new;\n"
)
IMPORT = (
    "\\set first random(0, {keys} - 1)\n"
    "WITH one AS (SELECT nextval('revision') AS revision), "
    "new AS (INSERT INTO import SELECT 'import/' || lpad((:first + row)::text, 8, '0'), revision, "
    f"'{VALUE.decode()}' FROM one, generate_series(0, {{rows}} - 1) AS row) "
    "INSERT INTO provenance SELECT revision, decode(repeat('00', 32), 'hex') FROM one;\n"
)
"""History and index are one table here: a transaction has one revision and many keys."""
SETTLED = 10
"""First transactions of a connection, not counted: a new backend has cold caches and plans its statement."""


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise Unavailable("PostgreSQL's server is not installed: apt-get install postgresql-15")
    return found[-1].parent


def _user() -> str | None:
    """PostgreSQL refuses to run as root; the first of its own user and nobody that exists."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in ("postgres", "nobody") if name in names), None)
    if user is None:
        raise Unavailable(
            "PostgreSQL does not run as root and there is no user postgres or nobody to run it as"
        )
    return user


class Cluster(Leased):
    """One server for all contestants of a run; it is up while any of them is open."""

    def __init__(self, scratch: Path) -> None:
        super().__init__()
        self.folder = scratch / "postgres"

    def run(self, program: str, *arguments: str, text: str | None = None) -> str:
        """Runs one of its programs as its user; raises RuntimeError with what it printed if it fails."""
        command = [str(self.programs / program), *arguments]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, user=self.user, cwd=self.folder, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _start(self) -> None:
        self.programs, self.user = _programs(), _user()
        self.folder.mkdir()
        if self.user:
            shutil.chown(self.folder, self.user)
        self.run("initdb", "-D", "data", "-A", "trust", "-U", "bench", "-E", "UTF8", "--locale=C")
        options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
        self.run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", f"{options} -k {self.folder}", "start")
        self.run("psql", "-h", str(self.folder), "-U", "bench", "-q", "-d", "postgres", text=SCHEMA)
        (self.folder / "transaction.sql").write_text(TRANSACTION)

    def _stop(self) -> None:
        self.run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder)

    def transactions(self, connections: int, each: int, script: str = "transaction.sql") -> float:
        """Transactions a second while every connection is settled and busy, by pgbench's log of each."""
        where = ["-h", str(self.folder), "-U", "bench"]
        how = ["-n", "-M", "prepared", "-l", "-f", script, "-j", str(min(connections, 2))]
        self.run("pgbench", *where, *how, "-c", str(connections), "-t", str(each + SETTLED), "postgres")
        ends: dict[int, list[float]] = {}
        for log in self.folder.glob("pgbench_log.*"):
            for line in log.read_text().splitlines():
                client, _, _, _, second, microsecond = line.split()[:6]
                ends.setdefault(int(client), []).append(int(second) + int(microsecond) * 1e-6)
            log.unlink()
        start = max(times[SETTLED - 1] for times in ends.values())
        stop = min(times[-1] for times in ends.values())
        inside = sum(start < time <= stop for times in ends.values() for time in times)
        return inside / (stop - start)


def imports(cluster: Cluster, connections: int, keys: int, rows: int) -> Contestant:
    """Rows in transactions of so many; an operation is a row."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with cluster.lease():
            (cluster.folder / "import.sql").write_text(IMPORT.format(keys=keys, rows=rows))

            def block(n: int) -> float:
                return n / rows / cluster.transactions(connections, n // rows // connections, "import.sql")

            yield block

    return Contestant(f"PostgreSQL, {connections} connections", open_, least=50 * connections * rows)


def contestants(cluster: Cluster, connections: Sequence[int]) -> list[Contestant]:
    """One a number of connections; an operation is a transaction."""

    def contestant(count: int) -> Contestant:
        @contextmanager
        def open_(placement: Placement) -> Iterator[Block]:
            with cluster.lease():

                def block(n: int) -> float:
                    return n / cluster.transactions(count, n // count)

                yield block

        # Enough a connection that the window in which all of them are busy is most of the block.
        return Contestant(
            f"PostgreSQL, {count} connection{'s' if count > 1 else ''}", open_, least=50 * count
        )

    return [contestant(count) for count in connections]
