# SPDX-License-Identifier: Apache-2.0
"""The module's own tables: made and upgraded by whoever comes first."""

import threading
from sqlite3 import OperationalError
from typing import Any
from unittest import mock

import pytest
from module_case import DESTINATIONS, FAILING, NAME, V2, ModuleTestCase
from parameterized import parameterized
from synapse.storage.database import LoggingTransaction
from test_access import EVERY_ROUTE
from twisted.internet.defer import Deferred, fail

from synapse_federation_admin.homeserver.database import LockedError
from synapse_federation_admin.homeserver.federation import Federation
from synapse_federation_admin.storage import definitions, schema as module
from synapse_federation_admin.storage.definitions import (
    PREFIX,
    TABLES,
    VERSIONS,
    Version,
    add_column,
)
from synapse_federation_admin.storage.records import RecordedSuccess, add_successes_txn
from synapse_federation_admin.storage.schema import (
    SchemaVersion,
    Tables,
    TablesUnusableError,
)
from synapse_federation_admin.storage.sql import Sql, existing_tables

NEWEST = SchemaVersion(VERSIONS[-1].number, VERSIONS[-1].compat)


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


@pytest.mark.database
class TablesTestCase(ModuleTestCase):
    def default_config(self) -> dict[str, Any]:
        # Diagnoses would go out to nowhere.
        return {**super().default_config(), "federation_domain_whitelist": []}

    def ready(self) -> None:
        self.get_success(Tables(self.homeserver).ready())

    def version(self) -> SchemaVersion:
        return self.get_success(Tables(self.homeserver).stored_version())

    def existing(self) -> set[str]:
        found = self.get_success(
            self.homeserver.run_db_interaction("test", existing_tables)
        )
        return {name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)}

    def drop(self, *names: str) -> None:
        for name in names or TABLES:
            self.run_sql(f"DROP TABLE IF EXISTS {PREFIX}{name}")

    def interrupt(self, most: int) -> Tables:
        """Have whoever makes them end after so many statements, and return them."""
        upgrade = module._upgrade

        def interrupted(txn: Any, *args: Any) -> None:
            upgrade(InterruptedTransaction(txn, most), *args)  # type: ignore[arg-type]

        tables = Tables(self.homeserver)
        with mock.patch.object(module, "_upgrade", interrupted):
            self.get_failure(tables.ready(), Ended)
        return tables

    def test_interrupted_anywhere(self) -> None:
        """They are made at start; whichever statement was the last, the next call does.

        On PostgreSQL nothing is left of those before it; on SQLite, all.
        """
        self.assertEqual(self.version(), NEWEST)
        self.assertEqual(self.existing(), set(TABLES))
        for most in range(sum(map(len, TABLES.values())) + 2):
            self.drop()
            tables = self.interrupt(most)
            if self.is_postgres:
                self.assertEqual(self.existing(), set())
            self.get_success(tables.ready())
            self.assertEqual(self.version(), NEWEST)
            self.assertEqual(self.existing(), set(TABLES))

    def upgrade_to(self, compat: int) -> None:
        """Have a later version of the module bring its tables."""
        later = Version(
            NEWEST.version + 1,
            compat=compat,
            upgrade=lambda txn: add_column(
                txn, "recording", "x", "INTEGER NOT NULL DEFAULT 5"
            ),
        )
        with mock.patch.object(definitions, "VERSIONS", (*VERSIONS, later)):
            self.ready()
            self.ready()

    def test_compatible(self) -> None:
        """Those of a later version that is compatible are used as they are."""
        self.run_sql(f"DELETE FROM {PREFIX}recording")
        self.run_sql(f"INSERT INTO {PREFIX}recording VALUES (1, 17)")
        self.upgrade_to(compat=NEWEST.version)
        self.ready()
        later = SchemaVersion(NEWEST.version + 1, NEWEST.version)
        self.assertEqual(self.version(), later)
        self.assertEqual(self.run_sql(f"SELECT x FROM {PREFIX}recording")[0], (5,))
        # What of them is dropped, only the later version can make again.
        self.drop("addresses")
        error = self.get_failure(Tables(self.homeserver).ready(), TablesUnusableError)
        self.assertIn("missing", str(error.value))
        # If all of them are, everybody can, each their own.
        self.drop()
        self.ready()
        self.assertEqual(self.version(), NEWEST)
        self.upgrade_to(compat=NEWEST.version)
        self.assertEqual(self.version(), later)

    def test_dropped(self) -> None:
        """What is dropped while Synapse runs is made again by whoever uses it next."""
        tables = Tables(self.homeserver)
        self.get_success(tables.ready())
        for names in ((), ("addresses",), ("schema", "addresses")):
            for read_committed in (False, True):
                self.drop(*names)

                def insert(txn: LoggingTransaction) -> int:
                    txn.execute(f"INSERT INTO {PREFIX}addresses VALUES ('a', 1, '')")
                    return 7

                found = tables.run("test", insert, read_committed=read_committed)
                self.assertEqual(self.get_success(found), 7)
                self.assertEqual(self.existing(), set(TABLES))
        self.drop("schema")
        self.assertEqual(self.get_success(tables.stored_version()), NEWEST)

    def test_before_the_first_release(self) -> None:
        """What builds between version 2 and the first release recorded is made anew."""
        self.run_sql(f"ALTER TABLE {PREFIX}failures DROP COLUMN refused_bytes")
        self.run_sql(f"UPDATE {PREFIX}schema SET version = 5, compat_version = 3")
        tables = Tables(self.homeserver)
        read = f"SELECT refused_bytes FROM {PREFIX}failures"
        self.get_success(tables.run("test", lambda txn: txn.execute(read)))
        self.assertEqual(self.get_success(tables.stored_version()), NEWEST)

    def test_dropped_just_then(self) -> None:
        """Nor is it a bug where PostgreSQL stumbles, as it is dropped just then."""
        if not self.is_postgres:
            return
        stumbles = "cache lookup failed for relation 7' USING ERRCODE = 'XX000"
        statements = [f"DO $$ BEGIN RAISE '{stumbles}'; END $$", "SELECT 1"]
        run = self.tables.run("test", lambda txn: txn.execute(statements.pop(0)))
        self.get_success(run)
        self.assertEqual(statements, [])

    def test_dropped_while_it_runs(self) -> None:
        """Every answer is as ever after the tables were dropped: v1's, and ours."""
        destination = f"{DESTINATIONS}/down.example"
        v2 = "/_synapse/admin/v2/federation"
        for path in (
            *(DESTINATIONS, destination, f"{destination}/rooms"),
            *(
                f"{v2}/audit",
                f"{v2}/summary",
                f"{v2}/destinations/export?failure=other",
            ),
            f"{v2}/destinations?include=failure&include=availability",
            f"{v2}/destinations?failure=other&failure=unknown",
            f"{v2}/destinations/down.example",
            f"{v2}/destinations/down.example/outages",
        ):
            self.add_destination("down.example", 1, 2, 1)
            self.drop()
            self.assertEqual(self.ask("GET", path).code, 200, path)
            self.drop()
            self.assertEqual(self.reset().code, 200, path)
        self.assertEqual(len(self.get_json(f"{v2}/audit")["entries"]), 1)

    def test_index_dropped(self) -> None:
        """So does an index that is dropped, where a statement needs it."""
        self.run_sql(f"DROP INDEX {PREFIX}runs_unended")
        self.add_destination("down.example", 1, 2, 1)
        body = {"all_failing": True}
        path = "/_synapse/admin/v2/federation/reconnect"
        self.assertEqual(self.ask("POST", path, content=body).code, 200)
        self.assertEqual(self.ask("POST", path, content=body).code, 409)

    def test_replaced(self) -> None:
        """Where something else is in a table's place, every route tells so or works,
        v1 works, and once that is dropped the table is made again."""
        bodies = {
            "/federation/reconnect": {"all_failing": True},
            "/federation/cap_backoff": {"max_retry_interval_ms": 1},
            "/federation/forget": {"destinations": [NAME]},
        }
        # So would contacts.
        self.patch(Federation, "probe", mock.Mock(side_effect=OSError))
        told = set()
        for table in TABLES:
            self.drop(table)
            self.run_sql(f"CREATE VIEW {PREFIX}{table} AS SELECT 1 AS a")
            for method, path in EVERY_ROUTE:
                self.add_destination("a", *FAILING)
                body = next((b for end, b in bodies.items() if path.endswith(end)), {})
                channel = self.ask(method, path, content=body)
                if channel.code == 503:
                    told.add(table)
                    self.assertIn("says", channel.json_body["error"], path)
                else:
                    expected = (200,) if "/v1/" in path else (200, 400, 404, 409)
                    self.assertIn(channel.code, expected, (table, path))
            self.run_sql(f"DROP VIEW {PREFIX}{table}")
            self.drop()
            self.get_json(f"{V2}/audit")
        self.assertLessEqual(
            {"audit", "runs", "failures", "outages", "recording"}, told
        )

    def test_primary_key_dropped(self) -> None:
        """A primary key that was dropped is made again, as a unique index; on SQLite,
        and where rows are there twice, it is told what to do."""
        answer = RecordedSuccess(NAME, 1, None, NAME)

        def add_txn(txn: LoggingTransaction) -> None:
            for _ in range(2):
                add_successes_txn(txn, [answer])

        table = f"{PREFIX}successes"
        if self.is_postgres:
            for name in ("outages", "successes"):
                self.run_sql(
                    f"ALTER TABLE {PREFIX}{name} DROP CONSTRAINT {PREFIX}{name}_pkey"
                )
            self.get_success(self.tables.run("test", add_txn))
            made = self.run_sql(
                "SELECT indexdef FROM pg_indexes WHERE indexname IN "
                f"('{PREFIX}outages_pkey', '{table}_pkey') ORDER BY 1"
            )
            self.assertEqual(
                [definition.partition(" USING btree ")[2] for (definition,) in made],
                ["(destination, start_ts)", "(destination)"],
            )
            # Where a dump was loaded twice meanwhile, that is told.
            self.run_sql(f"DROP INDEX {table}_pkey")
            self.run_sql(f"INSERT INTO {table} SELECT * FROM {table}")
            said = f"{table}_pkey"
        else:
            # So does a table that was copied.
            self.run_sql(f"CREATE TABLE copied AS SELECT * FROM {table}")
            self.run_sql(f"DROP TABLE {table}")
            self.run_sql(f"ALTER TABLE copied RENAME TO {table}")
            said = "PRIMARY KEY"
        told = self.get_failure(self.tables.run("test", add_txn), TablesUnusableError)
        self.assertIn(said, str(told.value))
        self.run_sql(f"DROP TABLE {table}")
        self.get_success(self.tables.run("test", add_txn))

    def test_too_new_while_it_runs(self) -> None:
        """If a later version takes the tables over, v1 works; the rest is told why."""
        self.upgrade_to(compat=NEWEST.version + 1)
        self.drop("audit")
        self.add_destination("down.example", 1, 2, 1)
        self.assertEqual(len(self.names()), 1)
        self.assertEqual(self.reset().code, 200)
        channel = self.ask("GET", "/_synapse/admin/v2/federation/audit")
        self.assert_error(channel, 503, "M_UNKNOWN", "later version")

    @parameterized.expand([("hangs", Deferred), ("is away", lambda: fail(Ended()))])
    def test_status(self, what: str, stored: Any) -> None:
        """Whatever the database does, it is told soon what is known without it."""
        with mock.patch.object(Tables, "stored_version", mock.Mock(side_effect=stored)):
            channel = self.ask(
                "GET", "/_synapse/admin/v2/federation/status", await_result=False
            )
            self.pump(0.1)
        self.assertEqual(channel.code, 200, channel.result)
        tables = channel.json_body["tables"]
        self.assertIsNone(tables["database_version"])
        self.assertIn("the database", tables["reason"], what)
        self.assertTrue(channel.json_body["features"]["v1_reset"]["on"])

    def test_other_errors(self) -> None:
        """An error that has another reason is the caller's, and nothing is repeated."""
        func = mock.Mock(side_effect=KeyError("a"))
        self.get_failure(Tables(self.homeserver).run("test", func), KeyError)
        func.assert_called_once()

    def test_read_only(self) -> None:
        """Where they are there nothing is written, and a second call asks nothing."""
        for_good, at_end = (
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            )
            if self.is_postgres
            else ("PRAGMA query_only = ON", "PRAGMA query_only = OFF")
        )
        tables = Tables(self.homeserver)
        self.run_sql(for_good)
        try:
            self.get_success(tables.ready())
            with self.assertRaises(AssertionError):
                self.run_sql("DELETE FROM federation_admin_schema")
        finally:
            self.run_sql(at_end)
        with mock.patch.object(self.homeserver, "run_db_interaction") as asked:
            self.get_success(tables.ready())
        asked.assert_not_called()

    def test_denied(self) -> None:
        """Tables that belong to somebody else are told, and are no bug."""
        if not self.is_postgres:
            # It has no users.
            return

        def denied_txn(txn: LoggingTransaction) -> None:
            # With the transaction the role is gone.
            txn.execute("CREATE ROLE somebody_else")
            txn.execute("SET LOCAL ROLE somebody_else")
            txn.execute("SELECT * FROM federation_admin_audit")

        run = Tables(self.homeserver).run("test", denied_txn)
        error = self.get_failure(run, TablesUnusableError).value
        self.assertEqual(error.code, 503)
        self.assertIn("denied for table federation_admin_audit", error.msg)

    def test_locked(self) -> None:
        """A table that somebody else has locked holds nobody up: not v1's reset, which
        goes unrecorded, and no connection for long."""
        if not self.is_postgres:
            # There, the whole database is, for seconds each time.
            locked = mock.Mock(side_effect=OperationalError("database is locked"))
            error = self.get_failure(self.tables.run("test", locked), LockedError)
            self.assertTrue(self.homeserver.is_database_away(error.value))
            locked.assert_called_once()
            return
        self.add_destination(NAME, *FAILING)
        self.patch(module, "_LOCK_TIMEOUT", "50ms")
        with self.connected() as connection:
            connection.cursor().execute("LOCK TABLE federation_admin_audit")
            with self.assertNoLogs("synapse.storage.txn", "WARNING"):
                asked = self.ask("GET", f"{V2}/audit")
            self.assert_error(asked, 503, "M_UNKNOWN", "again")
            with self.assertLogs("synapse_federation_admin", "WARNING") as logs:
                self.assertEqual(self.reset().code, 200)
            self.assertIn("Cannot write to the audit", "".join(logs.output))
            # Nor does another that is to be made again, with all that there are.
            self.drop("recording")
            self.run_sql("SET statement_timeout = '5s'")
            since = Sql(f"SELECT since_ts FROM {PREFIX}recording")
            run = self.tables.run("test", since.select_txn)
            self.get_failure(run, LockedError)
        self.run_sql("RESET statement_timeout")
        self.assertEqual(self.audit(), [])
        self.assertIsNone(self.get_json(self.destination_path(NAME))["failure_ts"])

    def test_at_once(self) -> None:
        """Several processes that make them at once do not get in each other's way."""
        if not self.is_postgres:
            # There is one process on SQLite.
            return
        self.drop()
        barrier = threading.Barrier(6, timeout=120)
        errors: list[Exception] = []

        def make() -> None:
            try:
                with self.connected() as connection, connection:
                    txn = LoggingTransaction(
                        txn=connection.cursor(),
                        name="test",
                        database_engine=self.store.database_engine,
                        server_name=self.hs.hostname,
                    )
                    barrier.wait()
                    module._upgrade(txn)
            except Exception as e:
                errors.append(e)

        threads = [threading.Thread(target=make) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual(errors, [])
        self.assertEqual(self.version(), NEWEST)
        self.ready()
