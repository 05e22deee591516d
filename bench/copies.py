# SPDX-License-Identifier: Apache-2.0
"""Filled databases, and a copy of them for every server."""

import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import rows
from attrs import frozen

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.services import Database, Postgres
from synapse_federation_admin.playground.synapse import SynapseServer

Json = dict[str, Any]

# A kept database is built again when it is older: its times no longer look the same.
_KEPT_S = 24 * 60 * 60

# Nothing shall be sent to destinations that do not exist: nobody is federation sender.
_SYNAPSE: Json = {
    "server_name": rows.LOCAL_SERVER,
    "federation_sender_instances": ["nobody"],
    "background_updates": {"sleep_enabled": False},
}


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


@frozen
class Copies:
    """A filled database, and copies of it, one for each server."""

    kept: Path
    folder: Path
    certificates: CertificateAuthority

    @property
    def title(self) -> str:
        """The database and its version."""
        raise NotImplementedError

    def build(self, count: int) -> None:
        """Fill the original, or find it filled."""
        raise NotImplementedError

    def server(
        self,
        name: str,
        config: Json | None,
        wrapper: Sequence[str] = (),
        checkout: Path | None = None,
    ) -> SynapseServer:
        """Make a Synapse on a fresh copy.

        Args:
            name: the copy's name.
            config: the module's configuration; None for a Synapse without it.
            wrapper: a command that executes the one behind it, in its own process.
            checkout: where the module is taken from, if not from here.
        """
        raise NotImplementedError

    def drop(self, name: str) -> None:
        """Delete a copy that no Synapse uses any more, if there is one."""
        raise NotImplementedError

    def _synapse(
        self,
        folder: Path,
        config: Json | None,
        wrapper: Sequence[str] = (),
        checkout: Path | None = None,
        **extra: object,
    ) -> SynapseServer:
        return SynapseServer(
            folder,
            self.certificates,
            module_config=config,
            extra_config={**_SYNAPSE, **extra},
            wrapper=wrapper,
            environment={"PYTHONPATH": str(checkout)} if checkout else None,
        )

    def _fresh(self, marker: Path, count: int) -> bool:
        if not marker.exists():
            return False
        built = json.loads(marker.read_text())
        return bool(
            built["rows"] == count
            and built["recipe"] == rows.RECIPE
            and time.time() - built["built_s"] < _KEPT_S
        )

    def _mark(self, marker: Path, count: int) -> None:
        built = {"rows": count, "recipe": rows.RECIPE, "built_s": time.time()}
        marker.write_text(json.dumps(built))


class SqliteCopies(Copies):
    """Copies of a file."""

    @property
    def title(self) -> str:
        """The database and its version."""
        return f"SQLite {sqlite3.sqlite_version}"

    @property
    def _home(self) -> Path:
        return self.kept / "sqlite"

    def build(self, count: int) -> None:
        """Fill the original, or find it filled."""
        marker = self.kept / "sqlite.json"
        if self._fresh(marker, count):
            return
        marker.unlink(missing_ok=True)
        shutil.rmtree(self._home, ignore_errors=True)
        database = self._home / "homeserver.db"
        say(f"Filling SQLite with {count:,} destinations")
        with (
            self._synapse(self._home, None),
            closing(sqlite3.connect(database)) as connection,
        ):
            _wait_for_updates(lambda q: connection.execute(q).fetchone() == (0,))
        rows.fill(rows.SqliteSink(database), count, int(time.time() * 1000))
        self._mark(marker, count)

    def server(
        self,
        name: str,
        config: Json | None,
        wrapper: Sequence[str] = (),
        checkout: Path | None = None,
    ) -> SynapseServer:
        """Make a Synapse on a fresh copy."""
        folder = self._copy(name)
        folder.mkdir(mode=0o700)
        shutil.copyfile(self._home / "homeserver.db", folder / "homeserver.db")
        return self._synapse(folder, config, wrapper, checkout)

    def drop(self, name: str) -> None:
        """Delete a copy that no Synapse uses any more, if there is one."""
        shutil.rmtree(self._copy(name), ignore_errors=True)

    def _copy(self, name: str) -> Path:
        return self.folder / f"sqlite-{name}"


@frozen
class PostgresCopies(Copies):
    """Copies that PostgreSQL makes of a template."""

    postgres: Postgres

    @property
    def version(self) -> str:
        """The server's version, as a number."""
        with self._connected(self._database("postgres")) as cursor:
            cursor.execute("SHOW server_version")
            return str(cursor.fetchone()[0]).split()[0]

    @property
    def title(self) -> str:
        """The database and its version."""
        return f"PostgreSQL {self.version}"

    def build(self, count: int) -> None:
        """Fill the original, or find it filled."""
        marker = self.kept / "postgres.json"
        if self._fresh(marker, count):
            return
        marker.unlink(missing_ok=True)
        self.drop("filled")
        say(f"Filling PostgreSQL with {count:,} destinations")
        database = self.postgres.create_database("filled")
        folder = self.folder / "postgres-filled"
        with (
            self._synapse(folder, None, database=_database(database)),
            self._connected(database) as cursor,
        ):

            def none_left(query: str) -> bool:
                cursor.execute(query)
                return bool(cursor.fetchone() == (0,))

            _wait_for_updates(none_left)
        sink = rows.PostgresSink(
            host=database.host, user=database.user, dbname=database.name
        )
        rows.fill(sink, count, int(time.time() * 1000))
        self._mark(marker, count)

    def server(
        self,
        name: str,
        config: Json | None,
        wrapper: Sequence[str] = (),
        checkout: Path | None = None,
    ) -> SynapseServer:
        """Make a Synapse on a fresh copy."""
        self.drop(name)
        with self._connected(self._database("postgres")) as cursor:
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE filled STRATEGY file_copy")
        database = _database(self._database(name))
        return self._synapse(
            self.folder / f"postgres-{name}",
            config,
            wrapper,
            checkout,
            database=database,
        )

    def drop(self, name: str) -> None:
        """Delete a copy that no Synapse uses any more, if there is one."""
        with self._connected(self._database("postgres")) as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")

    def _database(self, name: str) -> Database:
        return Database(
            host=str(self.postgres._socket_folder), user="postgres", name=name
        )

    @contextmanager
    def _connected(self, database: Database) -> Iterator[Any]:
        connection = psycopg2.connect(
            host=database.host, user=database.user, dbname=database.name
        )
        connection.autocommit = True
        try:
            yield connection.cursor()
        finally:
            connection.close()


def _database(database: Database) -> Json:
    # "database" replaces that of the playground's configuration for SQLite.
    return {
        "name": "psycopg2",
        "args": {
            "host": database.host,
            "user": database.user,
            "database": database.name,
            "cp_min": 1,
            "cp_max": 5,
        },
    }


def _wait_for_updates(none_left: Callable[[str], bool]) -> None:
    """Wait until Synapse has finished its schema, some of which comes later."""
    query = "SELECT COUNT(*) FROM background_updates"
    wait_until(lambda: none_left(query), "background updates", 300, 0.2)
