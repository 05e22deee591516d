# SPDX-License-Identifier: Apache-2.0
"""The module's own tables: made and upgraded by whoever comes first."""

import threading
from typing import Any

import psycopg2
import pytest
from module_case import ModuleTestCase

from synapse_federation_admin import tables as module
from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.tables import Tables


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
        for name in ("audit", "attempts", "runs", "run_queue", "schema"):
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

    def test_at_once(self) -> None:
        """Several processes that make them at once do not get in each other's way."""
        if not self.is_postgres:
            # There is one process on SQLite.
            return
        self.drop()
        args = self.hs.config.database.databases[0].config["args"]
        barrier = threading.Barrier(6, timeout=30)
        errors: list[Exception] = []

        def make() -> None:
            connection = psycopg2.connect(
                host=args["host"], user=args["user"], dbname=args["dbname"]
            )
            try:
                connection.set_isolation_level(
                    psycopg2.extensions.ISOLATION_LEVEL_READ_COMMITTED
                )
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
