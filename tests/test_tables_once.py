# SPDX-License-Identifier: Apache-2.0
"""The tables are looked at once, not whenever they are used."""

from unittest import mock

import pytest
from module_case import ModuleTestCase

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import schema as module
from synapse_federation_admin.storage.schema import Tables


@pytest.mark.database
class OnceTestCase(ModuleTestCase):
    def test_looked_at_once(self) -> None:
        """Once they have been found, the database is not asked about them again."""
        homeserver = Homeserver(self.hs.get_module_api())
        tables = Tables(homeserver)
        self.get_success(tables.ready())
        with mock.patch.object(homeserver, "run_db_interaction") as asked:
            self.get_success(tables.ready())
        asked.assert_not_called()

    def test_all_but_version(self) -> None:
        """Where all is made but the version, only that is written."""
        self.run_sql(
            "INSERT INTO federation_admin_attempts "
            "(destination, attempt_id, instance, started_ts) VALUES ('a', 'b', 'c', 1)"
        )
        self.run_sql("DELETE FROM federation_admin_schema")
        self.get_success(Tables(Homeserver(self.hs.get_module_api())).ready())
        for table, column, expected in (
            ("federation_admin_schema", "version", len(module._VERSIONS)),
            ("federation_admin_attempts", "started_ts", 1),
        ):
            self.assertEqual(
                self.get_success(
                    self.store.db_pool.simple_select_onecol(table, None, column)
                ),
                [expected],
            )
