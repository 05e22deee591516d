# SPDX-License-Identifier: Apache-2.0
"""Has Synapse's harness run Synapse's background updates once, not for every test.

Each test begins with a copy of a database that has the schema in it. On that the
harness runs the background updates that the schema leaves to do, some 240: almost half
of the time of a short test. So they are run once, by a homeserver without
modules, and its database is what is copied from then on.
"""

from contextlib import closing
from typing import Any
from unittest import mock

import psycopg2
from synapse.server import HomeServer
from synapse.storage.database import DatabasePool
from tests.utils import POSTGRES_BASE_DB, USE_POSTGRES_FOR_TESTS
from twisted.trial.reporter import TestResult

from tests import server, unittest


class _UpdatesTestCase(unittest.HomeserverTestCase):
    """A homeserver that has just started, with nothing in its database."""

    hs: HomeServer
    pool: DatabasePool

    def test_done(self) -> None:
        """The updates are done; on SQLite, the database becomes what is copied."""
        type(self).pool = pool = self.hs.get_datastores().main.db_pool
        done = pool.updates.has_completed_background_updates()
        self.assertTrue(self.get_success(done))
        if not USE_POSTGRES_FOR_TESTS:
            self.get_success(pool._db_pool.runWithConnection(_copy_to_template))


def _copy_to_template(connection: Any) -> None:
    connection._connection.backup(server.PREPPED_SQLITE_DB_CONN.conn)


def run_background_updates() -> None:
    """Put a database in which they are done in place of the one that is copied."""
    result = TestResult()
    # On PostgreSQL, the database is to be there afterwards.
    with mock.patch.object(server, "LEAVE_DB", True):
        _UpdatesTestCase("test_done").run(result)
    assert result.wasSuccessful(), [*result.errors, *result.failures]
    if USE_POSTGRES_FOR_TESTS:
        _make_template(_UpdatesTestCase.pool)


def _make_template(pool: DatabasePool) -> None:
    """Make PostgreSQL's database the one that is copied."""
    # Nobody may be connected to it.
    pool._db_pool.close()
    args = pool._database_config.config["args"]
    connection = psycopg2.connect(
        host=args["host"], user=args["user"], dbname="postgres"
    )
    with closing(connection), connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(f"DROP DATABASE {POSTGRES_BASE_DB}")
        cursor.execute(f"ALTER DATABASE {args['dbname']} RENAME TO {POSTGRES_BASE_DB}")
        # The harness connects to a database of this name, and puts it into its
        # statement. Files are copied in less than half the time that pages take.
        server.POSTGRES_BASE_DB = f"{POSTGRES_BASE_DB} STRATEGY file_copy"
        cursor.execute(f'CREATE DATABASE "{server.POSTGRES_BASE_DB}"')
