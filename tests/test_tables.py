# SPDX-License-Identifier: Apache-2.0
"""The module's own tables: made and upgraded by whoever comes first."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from unittest import mock

import psycopg2
import pytest
from module_case import ModuleTestCase
from psycopg2.extensions import (
    ISOLATION_LEVEL_READ_COMMITTED,
    ISOLATION_LEVEL_REPEATABLE_READ,
)
from synapse.storage.database import LoggingTransaction

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import schema as module
from synapse_federation_admin.storage.schema import Tables


class Ended(Exception):
    """The process has ended."""


class InterruptedTransaction:
    """A transaction whose process ends after some statements.

    Statements that take a lock do not count: there are none on SQLite.
    """

    def __init__(self, txn: LoggingTransaction, most: int) -> None:
        self._txn = txn
        self._left = most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def execute(self, statement: str, args: Any = ()) -> None:
        if "pg_advisory" not in statement:
            self._left -= 1
        if self._left < 0:
            raise Ended
        self._txn.execute(statement, args)


class PlainTransaction:
    """A transaction of a connection of our own, as Synapse's shows it."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def execute(self, statement: str, args: Any = ()) -> None:
        self._cursor.execute(statement.replace("?", "%s"), args)

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def fetchall(self) -> Any:
        return self._cursor.fetchall()


@pytest.mark.database
class TablesTestCase(ModuleTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.homeserver = Homeserver(self.hs.get_module_api())

    def ready(self) -> None:
        self.get_success(Tables(self.homeserver).ready())

    def versions(self) -> list[int]:
        rows = self.get_success(
            self.store.db_pool.simple_select_list(
                "federation_admin_schema", None, ("version",)
            )
        )
        return [version for (version,) in rows]

    def drop(self) -> None:
        for name in (
            *("audit", "attempts", "runs", "run_queue", "schema", "failures"),
            *("successes", "outages", "addresses", "recording"),
        ):
            self.run_sql(f"DROP TABLE IF EXISTS federation_admin_{name}")

    def test_created_at_start(self) -> None:
        """They are made when the module is loaded."""
        self.assertEqual(self.versions(), [len(module._VERSIONS)])
        for name in ("audit", "attempts", "runs", "run_queue"):
            self.run_sql(f"SELECT COUNT(*) FROM federation_admin_{name}")

    def test_nothing_to_do(self) -> None:
        """Where they are there, they are only looked at: nothing is written or locked.

        Their content stays.
        """
        self.run_sql(
            "INSERT INTO federation_admin_attempts "
            "(destination, attempt_id, instance, started_ts) VALUES ('a', 'b', 'c', 1)"
        )
        upgrade = module._upgrade
        try:
            module._upgrade = None  # type: ignore[assignment]
            self.ready()
        finally:
            module._upgrade = upgrade
        self.assertEqual(
            self.get_success(
                self.store.db_pool.simple_select_one_onecol(
                    "federation_admin_attempts", None, "COUNT(*)"
                )
            ),
            1,
        )

    def test_interrupted(self) -> None:
        """What was made in part is completed."""
        self.run_sql("DELETE FROM federation_admin_schema")
        self.run_sql("DROP TABLE federation_admin_run_queue")
        self.ready()
        self.assertEqual(self.versions(), [len(module._VERSIONS)])
        self.run_sql("SELECT COUNT(*) FROM federation_admin_run_queue")

    def test_interrupted_anywhere(self) -> None:
        """Whichever statement was the last, the next call makes what is missing.

        On PostgreSQL nothing is left of those before it; on SQLite, all.
        """
        upgrade = module._upgrade
        statements = sum(map(len, module._VERSIONS)) + len(module._VERSIONS) + 2
        for most in range(statements):
            self.drop()

            def interrupted(txn: Any, is_postgres: bool, most: int = most) -> None:
                upgrade(InterruptedTransaction(txn, most), is_postgres)  # type: ignore[arg-type]

            with mock.patch.object(module, "_upgrade", interrupted):
                self.get_failure(Tables(self.homeserver).ready(), Ended)
            if self.is_postgres:
                self.assertEqual(self.count_tables(), 0)
            self.ready()
            self.assertEqual(self.versions(), [len(module._VERSIONS)])
            self.assertEqual(self.count_tables(), 10)

    def count_tables(self) -> int:
        (count,) = self.select(
            "SELECT COUNT(*) FROM pg_tables WHERE tablename LIKE ?"
            if self.is_postgres
            else "SELECT COUNT(*) FROM sqlite_master "
            "WHERE type = 'table' AND name LIKE ?",
            "federation_admin_%",
        )
        return int(count)

    def select(self, statement: str, *args: str) -> tuple[Any, ...]:
        """Return the first row."""

        def select_txn(txn: LoggingTransaction) -> Any:
            txn.execute(statement, args)
            return txn.fetchone()

        return self.get_success(self.homeserver.run_db_interaction("test", select_txn))

    def test_upgraded(self) -> None:
        """Those of an earlier version get what is new, once; their content stays."""
        self.run_sql(
            "INSERT INTO federation_admin_attempts "
            "(destination, attempt_id, instance, started_ts) VALUES ('a', 'b', 'c', 1)"
        )
        # Each of them fails if it is run again.
        newer = (
            *module._VERSIONS,
            ("ALTER TABLE federation_admin_attempts ADD COLUMN x INTEGER",),
            ("ALTER TABLE federation_admin_attempts ADD COLUMN y INTEGER",),
        )
        with mock.patch.object(module, "_VERSIONS", newer[:-1]):
            self.ready()
        with mock.patch.object(module, "_VERSIONS", newer):
            self.ready()
            self.ready()
        self.assertEqual(self.versions(), [len(newer)])
        row = self.select("SELECT started_ts, x, y FROM federation_admin_attempts")
        self.assertEqual(row, (1, None, None))
        # And this version of the module is then too old for them.
        error = self.get_failure(Tables(self.homeserver).ready(), RuntimeError)
        self.assertIn("later version", str(error.value))

    def test_read_only(self) -> None:
        """A second call writes nothing: it works where nothing can be written."""
        for_good, at_end = (
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            )
            if self.is_postgres
            else ("PRAGMA query_only = ON", "PRAGMA query_only = OFF")
        )
        self.run_sql(for_good)
        try:
            self.ready()
            with self.assertRaises(AssertionError):
                self.run_sql("DELETE FROM federation_admin_schema")
        finally:
            self.run_sql(at_end)
        self.assertEqual(self.versions(), [len(module._VERSIONS)])

    def test_later_version(self) -> None:
        """Those of a later version of the module are refused, with a sentence."""
        self.run_sql("UPDATE federation_admin_schema SET version = 99")
        error = self.get_failure(Tables(self.homeserver).ready(), RuntimeError)
        self.assertIn("later version", str(error.value))

    def test_tried_again(self) -> None:
        """If the database fails, the next who needs them tries again."""
        self.drop()
        tables = Tables(self.homeserver)
        upgrade = module._upgrade

        def fail(*_: Any) -> None:
            raise RuntimeError("no database")

        try:
            module._upgrade = fail
            self.get_failure(tables.ready(), RuntimeError)
        finally:
            module._upgrade = upgrade
        self.get_success(tables.ready())
        self.assertEqual(self.versions(), [len(module._VERSIONS)])

    def connect(self, level: int = ISOLATION_LEVEL_READ_COMMITTED) -> Any:
        """Connect with PostgreSQL, past Synapse."""
        args = self.hs.config.database.databases[0].config["args"]
        connection = psycopg2.connect(
            host=args["host"], user=args["user"], dbname=args["dbname"]
        )
        connection.set_isolation_level(level)
        return connection

    @contextmanager
    def another_makes_them(self) -> Iterator[None]:
        """Have another process make them, and commit once somebody waits for it."""
        self.drop()
        with closing(self.connect()) as holder, closing(self.connect()) as observer:
            module._upgrade(PlainTransaction(holder.cursor()), True)  # type: ignore[arg-type]
            observer.autocommit = True

            def commit() -> None:
                cursor = observer.cursor()
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline:
                    cursor.execute("SELECT COUNT(*) FROM pg_locks WHERE NOT granted")
                    if cursor.fetchone() != (0,):
                        break
                    time.sleep(0.01)
                holder.commit()

            thread = threading.Thread(target=commit)
            thread.start()
            try:
                yield
            finally:
                thread.join()

    def test_waits_for_another(self) -> None:
        """While another process makes them, it is waited for, and then all is well."""
        if not self.is_postgres:
            return
        upgrade = mock.Mock(wraps=module._upgrade)
        with (
            self.another_makes_them(),
            mock.patch.object(module, "_upgrade", upgrade),
        ):
            self.ready()
        # Synapse had no failure to try again after.
        upgrade.assert_called_once()
        self.assertEqual(self.versions(), [len(module._VERSIONS)])

    def test_why_so(self) -> None:
        """Without the lock, or with Synapse's usual isolation, that would fail."""
        if not self.is_postgres:
            return
        for level, takes_lock, expected in (
            (ISOLATION_LEVEL_READ_COMMITTED, False, psycopg2.errors.UniqueViolation),
            (
                ISOLATION_LEVEL_REPEATABLE_READ,
                True,
                psycopg2.errors.SerializationFailure,
            ),
        ):
            with (
                closing(self.connect(level)) as connection,
                self.another_makes_them(),
                self.assertRaises(expected),
            ):
                module._upgrade(PlainTransaction(connection.cursor()), takes_lock)  # type: ignore[arg-type]

    def test_at_once(self) -> None:
        """Several processes that make them at once do not get in each other's way."""
        if not self.is_postgres:
            # There is one process on SQLite.
            return
        self.drop()
        barrier = threading.Barrier(6, timeout=30)
        errors: list[Exception] = []

        def make() -> None:
            connection = self.connect()
            try:
                barrier.wait()
                with connection, connection.cursor() as cursor:
                    module._upgrade(PlainTransaction(cursor), True)  # type: ignore[arg-type]
            except Exception as e:
                errors.append(e)
            finally:
                connection.close()

        threads = [threading.Thread(target=make) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual(errors, [])
        self.assertEqual(self.versions(), [len(module._VERSIONS)])
        self.ready()
