# SPDX-License-Identifier: Apache-2.0
"""The optional indexes: created, repaired and left alone, on both databases."""

import re
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg2
import pytest
from module_case import ModuleTestCase
from parameterized import parameterized
from synapse.server import HomeServer
from synapse.storage.database import LoggingTransaction
from synapse.util.clock import Clock
from twisted.internet.testing import MemoryReactor

from synapse_federation_admin.destinations.indexes import (
    _LOCK,
    INDEXES,
    DestinationIndexes,
    Index,
)
from synapse_federation_admin.destinations.values import IndexState
from synapse_federation_admin.homeserver.homeserver import Homeserver

pytestmark = pytest.mark.database

ALL_READY = {index.name: IndexState.READY for index in INDEXES}
ALL_MISSING = {index.name: IndexState.MISSING for index in INDEXES}
FIRST = INDEXES[0].name


class IndexesTestCase(ModuleTestCase):
    """With the builder, and what the database says of its indexes."""

    def prepare(self, reactor: MemoryReactor, clock: Clock, hs: HomeServer) -> None:
        super().prepare(reactor, clock, hs)
        self.homeserver = Homeserver(hs.get_module_api())
        self.indexes = DestinationIndexes(self.homeserver, True)

    def build(self) -> bool:
        return self.get_success(self.indexes.build())

    def states(self) -> dict[str, IndexState]:
        return self.get_success(self.indexes.states())

    def identities(self) -> dict[str, int]:
        """Return what tells an index from one of the same name that replaced it."""
        rows = self.run_sql(
            "SELECT relname, oid FROM pg_class WHERE relkind = 'i' "
            "AND relnamespace = 'public'::regnamespace "
            "AND substr(relname, 1, 17) = 'federation_admin_'"
            if self.is_postgres
            else "SELECT name, rootpage FROM sqlite_master "
            "WHERE substr(name, 1, 17) = 'federation_admin_'"
        )
        # The module's own tables have indexes, too.
        return {name: number for name, number in rows if name in ALL_READY}

    def other_session(self) -> Any:
        """Open a connection of our own to the same PostgreSQL database."""
        args = self.hs.config.database.databases[0].config["args"]
        connection = psycopg2.connect(
            host=args["host"], user=args["user"], dbname=args["dbname"]
        )
        connection.autocommit = True
        self.addCleanup(connection.close)
        return connection


class BuildTestCase(IndexesTestCase):
    """What building does."""

    def test_created(self) -> None:
        """What is missing is created, and building again changes nothing."""
        self.assertEqual(self.states(), ALL_MISSING)

        self.assertTrue(self.build())

        self.assertEqual(self.states(), ALL_READY)
        created = self.identities()
        self.assertEqual(set(created), set(ALL_READY))
        self.assertTrue(self.build())
        self.assertEqual(self.identities(), created)
        self.assertEqual(self.indexes.errors, {})

    def test_only_what_is_missing(self) -> None:
        """An index that is there is not built again when another is missing."""
        self.build()
        created = self.identities()
        self.run_sql(f"DROP INDEX {INDEXES[2].name}")
        self.assertEqual(self.states()[INDEXES[2].name], IndexState.MISSING)

        self.assertTrue(self.build())

        kept = {n: i for n, i in self.identities().items() if n != INDEXES[2].name}
        self.assertEqual(kept, {n: i for n, i in created.items() if n in kept})
        self.assertEqual(self.states(), ALL_READY)

    def test_serves(self) -> None:
        """Each index serves the rows that it is for, in its order, without a sort."""
        self.build()
        for index in INDEXES:
            descending = [index.columns] if " DESC" in index.columns else []
            for order in (index.columns, *descending):
                plan = self.plan(index, f"WHERE {index.where} ORDER BY {order}")
                used = "using" if self.is_postgres else "INDEX"
                self.assertIn(f"{used} {index.name}", plan)
                self.assertNotIn("Sort" if self.is_postgres else "B-TREE", plan)

    def plan(self, index: Index, select: str) -> str:
        """Return how the database reads rows, if it goes by an index."""
        if not self.is_postgres:
            return str(
                self.run_sql(
                    "EXPLAIN QUERY PLAN SELECT * FROM destinations "
                    f"INDEXED BY {index.name} {select}"
                )
            )

        def explain(txn: LoggingTransaction) -> str:
            for other in ("seqscan", "sort", "bitmapscan"):
                txn.execute(f"SET LOCAL enable_{other} = off")
            txn.execute(f"EXPLAIN SELECT * FROM destinations {select}")
            return str(txn.fetchall())

        return self.get_success(self.store.db_pool.runInteraction("test", explain))

    def test_name_taken(self) -> None:
        """An index that cannot be created is named, and keeps none from the others."""
        self.run_sql(f"CREATE INDEX {FIRST} ON destination_rooms (room_id)")

        with self.assertLogs("synapse_federation_admin", "WARNING") as logs:
            self.assertFalse(self.build())

        self.assertEqual(self.states(), {**ALL_READY, FIRST: IndexState.MISSING})
        self.assertEqual(list(self.indexes.errors), [FIRST])
        self.assertIn("already exists", self.indexes.errors[FIRST])
        self.assertIn(FIRST, "".join(logs.output))
        self.run_sql(f"DROP INDEX {FIRST}")
        self.assertTrue(self.build())
        self.assertEqual(self.indexes.errors, {})


class PostgresTestCase(IndexesTestCase):
    """What there is on PostgreSQL only: on SQLite these prove nothing."""

    def invalidate(self, name: str) -> None:
        """Make an index look as one of which the build was interrupted."""
        self.run_sql(
            "UPDATE pg_index SET indisvalid = false "
            f"WHERE indexrelid = '{name}'::regclass"
        )

    def test_invalid_leftover(self) -> None:
        """An index that an interrupted build has left is dropped and built again."""
        self.build()
        if not self.is_postgres:
            return
        created = self.identities()
        self.invalidate(FIRST)
        self.assertEqual(self.states(), {**ALL_READY, FIRST: IndexState.BUILDING})

        self.assertTrue(self.build())

        self.assertEqual(self.states(), ALL_READY)
        rebuilt = self.identities()
        self.assertNotEqual(rebuilt.pop(FIRST), created.pop(FIRST))
        self.assertEqual(rebuilt, created)

    def test_other_schema(self) -> None:
        """Indexes of the same names in another schema are taken for none of ours."""
        if not self.is_postgres:
            return
        self.run_sql("CREATE SCHEMA elsewhere")
        self.run_sql("CREATE TABLE elsewhere.destinations (LIKE destinations)")
        for index in INDEXES:
            self.run_sql(
                index.create().replace("ON destinations", "ON elsewhere.destinations")
            )
        self.assertEqual(self.states(), ALL_MISSING)
        self.invalidate(f"elsewhere.{FIRST}")

        self.assertTrue(self.build())

        self.assertEqual(self.states(), ALL_READY)
        left = self.run_sql(
            "SELECT indisvalid FROM pg_index WHERE indrelid = "
            "'elsewhere.destinations'::regclass ORDER BY indisvalid"
        )
        self.assertEqual(left, [(False,), *[(True,)] * (len(INDEXES) - 1)])

    def test_one_process_at_a_time(self) -> None:
        """While another session builds, nothing is touched, and that is no error."""
        if not self.is_postgres:
            return
        self.build()
        self.invalidate(FIRST)
        created = self.identities()
        other = self.other_session().cursor()
        other.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))

        self.assertFalse(self.build())

        self.assertEqual(self.identities(), created)
        self.assertEqual(self.states()[FIRST], IndexState.BUILDING)
        self.assertEqual(self.indexes.errors, {})
        other.execute("SELECT pg_advisory_unlock_all()")
        self.assertTrue(self.build())

    @parameterized.expand([(False,), (True,)])
    def test_session(self, fails: bool) -> None:
        """No limit of time while it builds; Synapse's own again afterwards, no lock."""
        if not self.is_postgres:
            return
        settings = (
            "SELECT current_setting('statement_timeout'), "
            "current_setting('lock_timeout'), "
            "current_setting('transaction_isolation')"
        )
        before = self.run_sql(settings)
        seen = []

        def look(txn: LoggingTransaction) -> None:
            txn.execute(settings)
            seen.extend(txn.fetchall())
            if fails:
                txn.execute("CREATE INDEX CONCURRENTLY ON nowhere (nothing)")

        self.assertNotEqual(before[0][0], "0")
        running = self.homeserver.run_outside_transactions(look)
        if fails:
            self.get_failure(running, psycopg2.errors.UndefinedTable)
        else:
            self.get_success(running)
        self.build()

        self.assertEqual(seen[0][:2], ("0", "0"))
        self.assertEqual(self.run_sql(settings), before)
        self.assertEqual(
            self.run_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
            [(0,)],
        )

    def test_lost_connection(self) -> None:
        """A connection that is lost in a build is a failure, and is replaced."""
        if not self.is_postgres:
            return

        def lose(txn: LoggingTransaction) -> None:
            txn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        self.get_failure(self.homeserver.run_outside_transactions(lose), Exception)

        self.assertTrue(self.build())

    def test_statistics(self) -> None:
        """PostgreSQL has looked at what the expression of an index gives."""
        if not self.is_postgres:
            return
        for number in range(10):
            self.add_destination(f"{number}.example", number + 1, 1, 1, 1)

        self.build()

        looked_at = self.run_sql(
            "SELECT count(*) FROM pg_stats "
            "WHERE tablename = 'federation_admin_next_retry_ts'"
        )
        self.assertEqual(looked_at, [(1,)])


class OffTestCase(IndexesTestCase):
    """Without `indexes: true`, as by default."""

    def test_off(self) -> None:
        """Nothing is created, nor looked at, and what there is stays."""
        self.run_sql(INDEXES[0].create())
        before = self.identities()

        with mock.patch.object(Homeserver, "run_in_background") as run:
            DestinationIndexes(self.homeserver, False).start()
        self.reactor.advance(3600)

        run.assert_not_called()
        self.assertEqual(self.identities(), before)


class OnTestCase(IndexesTestCase):
    """With `indexes: true`."""

    config = {"contact_on_reset": False, "indexes": True}

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.reactor.advance(1)

    def test_on(self) -> None:
        """Soon after start-up all indexes are created, without being asked for."""
        self.pass_time(30)

        self.assertEqual(self.states(), ALL_READY)

    def test_tried_again(self) -> None:
        """What failed is tried again, some minutes later."""
        self.run_sql(f"CREATE INDEX {FIRST} ON destination_rooms (room_id)")
        self.pass_time(60)
        self.assertEqual(self.states(), {**ALL_READY, FIRST: IndexState.MISSING})
        self.run_sql(f"DROP INDEX {FIRST}")

        self.pass_time(120)

        self.assertEqual(self.states(), ALL_READY)

    def fail(self, *, is_away: bool) -> None:
        """Have the database not answer, and wait longer than until the next attempt."""
        error = RuntimeError("no database")
        with (
            mock.patch.object(DestinationIndexes, "states", side_effect=error),
            mock.patch.object(Homeserver, "is_database_away", return_value=is_away),
        ):
            self.pass_time(60)
        self.assertEqual(self.identities(), {})
        self.pass_time(120)

    def test_database_is_away(self) -> None:
        """A database that cannot be asked does not end it."""
        self.fail(is_away=True)
        self.assertEqual(self.states(), ALL_READY)

    def test_bug(self) -> None:
        """A bug ends it, and is logged with its traceback."""
        with self.assertLogs("synapse_federation_admin", "ERROR") as logs:
            self.fail(is_away=False)
        self.assertIn("Traceback", logs.output[0])
        self.assertEqual(self.states(), ALL_MISSING)


class OtherProcessTestCase(IndexesTestCase):
    """With `indexes: true`, on a process that does not run background tasks."""

    config = {"contact_on_reset": False, "indexes": True}

    def default_config(self) -> dict[str, Any]:
        return {**super().default_config(), "run_background_tasks_on": "worker1"}

    def test_other_process(self) -> None:
        """It creates nothing, and knows the states."""
        self.reactor.advance(3600)

        self.assertEqual(self.states(), ALL_MISSING)
        self.build()
        self.assertEqual(self.states(), ALL_READY)


def test_documented() -> None:
    """docs/operations.md has every index, and for both databases how to drop it."""
    text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert table == [(i.name, i.columns, i.where) for i in INDEXES]
    for drop in ("DROP INDEX CONCURRENTLY IF EXISTS", "DROP INDEX IF EXISTS"):
        dropped = re.findall(rf"^{drop} (\w+);$", text, re.MULTILINE)
        assert dropped == [i.name for i in INDEXES]
    assert f"key {_LOCK}" in text
