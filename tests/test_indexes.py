# SPDX-License-Identifier: Apache-2.0
"""The optional indexes: created and left alone, on both databases."""

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from module_case import ModuleTestCase

from synapse_federation_admin.destinations import indexes as module
from synapse_federation_admin.destinations.indexes import (
    INDEXES,
    DestinationIndexes,
    create_index,
)
from synapse_federation_admin.destinations.values import IndexState
from synapse_federation_admin.homeserver.homeserver import Homeserver

pytestmark = pytest.mark.database

ALL_READY = dict.fromkeys(INDEXES, IndexState.READY)
ALL_MISSING = dict.fromkeys(INDEXES, IndexState.MISSING)
FIRST, _, THIRD, *_ = INDEXES


class IndexesTestCase(ModuleTestCase):
    """With what the database says of the indexes."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.indexes = DestinationIndexes(self.homeserver, True)
        self.is_started = False

    def build(self) -> None:
        """Have it look, and create what is missing."""
        if not self.is_started:
            self.is_started = True
            self.indexes.start()
            self.reactor.advance(4)
        else:
            self.reactor.advance(3600)
        for _ in range(10):
            self.reactor.advance(1)

    def states(self) -> dict[str, IndexState]:
        return self.get_success(self.indexes.states())


class BuildTestCase(IndexesTestCase):
    """What building does."""

    def test_only_what_is_missing(self) -> None:
        """What is missing is created, and what is there is left as it is."""
        self.run_sql(create_index(THIRD))
        self.assertEqual(self.states(), {**ALL_MISSING, THIRD: IndexState.READY})

        with self.assertNoLogs("synapse_federation_admin", "WARNING"):
            self.build()
            self.build()

        self.assertEqual(self.states(), ALL_READY)
        self.assertEqual(self.indexes.errors, {})
        self.assertTrue(self.indexes.are_ready)

    def test_not_there(self) -> None:
        """No list counts on what is not there, on any process; later it may be."""
        with mock.patch.object(Homeserver, "runs_background_tasks", new=False):
            self.build()
            self.assertEqual(self.states(), ALL_MISSING)
            self.assertFalse(self.indexes.are_ready)
            for name in INDEXES:
                self.run_sql(create_index(name))
            self.build()
        self.assertTrue(self.indexes.are_ready)
        self.run_sql(f"DROP INDEX {FIRST}")
        self.build()
        self.assertTrue(self.indexes.are_ready)

    def test_serves(self) -> None:
        """Each index serves the rows that it is for, in its order, without a sort."""
        self.build()
        for name, (columns, where) in INDEXES.items():
            by = f"INDEXED BY {name}"
            descending = [columns] if " DESC" in columns else []
            for order in (columns, *descending):
                plan = self.plan(
                    f"SELECT * FROM destinations {'' if self.is_postgres else by} "
                    f"WHERE {where} ORDER BY {order}",
                    without=("seqscan", "sort", "bitmapscan"),
                )
                used = "using" if self.is_postgres else "INDEX"
                self.assertIn(f"{used} {name}", plan)
                self.assertNotIn("Sort" if self.is_postgres else "B-TREE", plan)

    def test_name_taken(self) -> None:
        """An index that cannot be created is told, and keeps none from the others."""
        self.run_sql(f"CREATE INDEX {FIRST} ON destination_rooms (room_id)")

        with self.assertLogs("synapse_federation_admin", "ERROR") as logs:
            self.build()

        self.assertEqual(self.states(), {**ALL_READY, FIRST: IndexState.MISSING})
        self.assertEqual(list(self.indexes.errors), [FIRST])
        self.assertIn("already exists", self.indexes.errors[FIRST])
        self.assertFalse(self.indexes.are_ready)
        (line,) = logs.output
        self.assertIn("already exists", line)
        self.assertIn(create_index(FIRST), line)


class PostgresTestCase(IndexesTestCase):
    """What there is on PostgreSQL only: on SQLite these prove nothing."""

    def test_other_schema(self) -> None:
        """Indexes of the same names in another schema are taken for none of ours."""
        if not self.is_postgres:
            return
        self.run_sql("CREATE SCHEMA elsewhere")
        self.run_sql("CREATE TABLE elsewhere.destinations (LIKE destinations)")
        for name in INDEXES:
            create = create_index(name)
            self.run_sql(create.replace("ON dest", "ON elsewhere.dest"))
        self.assertEqual(self.states(), ALL_MISSING)

        self.build()

        self.assertEqual(self.states(), ALL_READY)

    def test_table_in_use(self) -> None:
        """A build holds up nobody, nor waits for long, and what it leaves is replaced.

        What is left are indexes that are not valid: so nobody is locked out.
        """
        if not self.is_postgres:
            return
        invalid = "SELECT COUNT(*) FROM pg_index WHERE NOT indisvalid"
        with self.connected() as other:
            other.cursor().execute("LOCK TABLE destinations IN ROW EXCLUSIVE MODE")
            with (
                mock.patch.object(module, "_LOCK_TIMEOUT", "1ms"),
                self.assertLogs("synapse_federation_admin", "ERROR") as logs,
            ):
                self.build()
            self.assertEqual(len(logs.output), len(INDEXES))
            self.assertIn("lock timeout", logs.output[0])
            self.assertEqual(self.states(), ALL_MISSING)
            self.assertEqual(self.run_sql(invalid), [(len(INDEXES),)])

        self.build()

        self.assertEqual(self.states(), ALL_READY)
        self.assertEqual(self.run_sql(invalid), [(0,)])
        self.assertEqual(self.run_sql("SHOW lock_timeout"), [("0",)])

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


class StartTestCase(IndexesTestCase):
    """With `indexes: true`."""

    config = {"contact_on_reset": False, "indexes": True}

    def test_start(self) -> None:
        """Soon after the start all indexes are created."""
        for _ in range(10):
            self.reactor.advance(1)
        self.assertEqual(self.states(), ALL_READY)


class NoStartTestCase(IndexesTestCase):
    """Where nothing is to be created."""

    def test_no_start(self) -> None:
        """Not switched on: nothing is even looked at."""
        with mock.patch.object(Homeserver, "every") as every:
            DestinationIndexes(self.homeserver, False).start()
        every.assert_not_called()


def test_documented() -> None:
    """docs/operations.md has every index, and for both databases how to drop it."""
    text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert table == [(name, *index) for name, index in INDEXES.items()]
    for drop in ("DROP INDEX CONCURRENTLY IF EXISTS", "DROP INDEX IF EXISTS"):
        dropped = re.findall(rf"^{drop} (\w+);$", text, re.MULTILINE)
        assert dropped == list(INDEXES)
