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
from typing import Any, ClassVar

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

    name: ClassVar[str]

    @property
    def title(self) -> str:
        """The database and its version."""
        raise NotImplementedError

    def drop(self, name: str) -> None:
        """Delete a copy that no Synapse uses any more, if there is one."""
        raise NotImplementedError

    def _fill(self, count: int) -> None:
        """Fill the original."""
        raise NotImplementedError

    def _copy(self, name: str) -> Json:
        """Make a copy; return what homeserver.yaml has of it."""
        raise NotImplementedError

    def build(self, count: int) -> None:
        """Fill the original, or find it filled."""
        marker = self.kept / f"{self.name}.json"
        wanted = {"rows": count, "recipe": rows.RECIPE}
        if marker.exists():
            built = json.loads(marker.read_text())
            if time.time() - built.pop("built_s") < _KEPT_S and built == wanted:
                return
        marker.unlink(missing_ok=True)
        say(f"Filling {self.title} with {count:,} destinations")
        self._fill(count)
        marker.write_text(json.dumps({**wanted, "built_s": time.time()}))

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
        self.drop(name)
        return SynapseServer(
            self._folder(name),
            self.certificates,
            module_config=config,
            extra_config={**_SYNAPSE, **self._copy(name)},
            wrapper=wrapper,
            environment={"PYTHONPATH": str(checkout)} if checkout else None,
        )

    def _folder(self, name: str) -> Path:
        return self.folder / f"{self.name}-{name}"


class SqliteCopies(Copies):
    """Copies of a file."""

    name = "sqlite"

    @property
    def title(self) -> str:
        """The database and its version."""
        return f"SQLite {sqlite3.sqlite_version}"

    @property
    def _original(self) -> Path:
        return self.kept / "sqlite" / "homeserver.db"

    def drop(self, name: str) -> None:
        """Delete a copy that no Synapse uses any more, if there is one."""
        shutil.rmtree(self._folder(name), ignore_errors=True)

    def _fill(self, count: int) -> None:
        home = self._original.parent
        shutil.rmtree(home, ignore_errors=True)
        with (
            SynapseServer(
                home, self.certificates, module_config=None, extra_config=_SYNAPSE
            ),
            closing(sqlite3.connect(self._original)) as connection,
        ):
            _wait_for_updates(lambda q: connection.execute(q).fetchone() == (0,))
        rows.fill(rows.SqliteSink(self._original), count, int(time.time() * 1000))

    def _copy(self, name: str) -> Json:
        folder = self._folder(name)
        folder.mkdir(mode=0o700)
        shutil.copyfile(self._original, folder / "homeserver.db")
        return {}


@frozen
class PostgresCopies(Copies):
    """Copies that PostgreSQL makes of a template."""

    postgres: Postgres

    name = "postgres"

    @property
    def version(self) -> str:
        """The server's version, as a number."""
        with self._connected("postgres") as cursor:
            cursor.execute("SHOW server_version")
            return str(cursor.fetchone()[0]).split()[0]

    @property
    def title(self) -> str:
        """The database and its version."""
        return f"PostgreSQL {self.version}"

    def database(self, name: str) -> Database:
        """Return one of the databases."""
        return Database(
            host=str(self.postgres._socket_folder), user="postgres", name=name
        )

    def drop(self, name: str) -> None:
        """Delete a copy that no Synapse uses any more, if there is one."""
        with self._connected("postgres") as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")

    def _fill(self, count: int) -> None:
        self.drop("filled")
        database = self.postgres.create_database("filled")
        with (
            SynapseServer(
                self._folder("filled"),
                self.certificates,
                module_config=None,
                extra_config={**_SYNAPSE, "database": _configured(database)},
            ),
            self._connected("filled") as cursor,
        ):

            def none_left(query: str) -> bool:
                cursor.execute(query)
                return bool(cursor.fetchone() == (0,))

            _wait_for_updates(none_left)
        sink = rows.PostgresSink(
            host=database.host, user=database.user, dbname=database.name
        )
        rows.fill(sink, count, int(time.time() * 1000))

    def _copy(self, name: str) -> Json:
        with self._connected("postgres") as cursor:
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE filled STRATEGY file_copy")
        return {"database": _configured(self.database(name))}

    @contextmanager
    def _connected(self, name: str) -> Iterator[Any]:
        connection = psycopg2.connect(
            host=str(self.postgres._socket_folder), user="postgres", dbname=name
        )
        connection.autocommit = True
        try:
            yield connection.cursor()
        finally:
            connection.close()


def _configured(database: Database) -> Json:
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
