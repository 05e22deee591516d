# SPDX-License-Identifier: Apache-2.0
"""Knows which rows of Synapse's table `destinations` bear what is no server name.

Any user can have such rows written. No database can tell exactly what is a server name:
so it finds what may be none, which is little, and the names are looked at here. That is
a pass over the table. What a name is does not change, so that what was found serves for
ten times as long as it took to find it, if that is long at all.

SQLite takes some seconds for a pass over a million rows, and the homeserver has one
connection: there it is made in pieces, and then of new rows only.
"""

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.server_name import is_server_name
from synapse_federation_admin.storage.sql import Sql

# What may be no server name: all that is none, and of what is one, names with a port
# and IPv6 addresses, and long ones. By whether it is PostgreSQL.
MAY_BE_INVALID = {
    True: "(destination ~ '[^0-9A-Za-z.-]|[.][.]|^[.]|[.]$' "
    "OR LENGTH(destination) > 63 OR destination = '')",
    False: "(destination GLOB '*[^0-9A-Za-z.-]*' OR destination GLOB '*..*' "
    "OR destination GLOB '.*' OR destination GLOB '*.' "
    "OR LENGTH(destination) > 63 OR destination = '')",
}

# On SQLite, how many rows are passed in one transaction, and how often all of them are:
# a new row may get the number of one that was deleted.
_PIECE = 20_000
_ANEW_MS = 3_600_000
_LAST_ROW = Sql("SELECT COALESCE(MAX(rowid), 0) FROM destinations")


class InvalidNames:
    """Knows the names of rows that are none of servers."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self._found = Costly(
            homeserver,
            "federation_admin_invalid_names",
            self._find,
            waits_for_first=True,
        )
        # On SQLite, up to which row all were passed, and when that began.
        self._passed_to = 0
        self._begun_ms = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Those found last; at most `limits.INVALID_NAMES`."""
        return self._found.latest or ()

    async def find(self) -> tuple[str, ...]:
        """Find them, unless it is too soon. Raises what the database raises."""
        return await self._found.get() or ()

    async def _find(self) -> tuple[str, ...]:
        if self._homeserver.is_postgres:
            return await self._find_in(Sql("TRUE"))
        return await self._find_in_pieces(self._homeserver.now_ms())

    async def _find_in_pieces(self, now_ms: int) -> tuple[str, ...]:
        ((last,),) = await self._homeserver.run_db_interaction(
            "federation_admin_invalid_names", _LAST_ROW.select_txn
        )
        passed_to, found = self._passed_to, list(self.names)
        if last < passed_to or not 0 <= now_ms - self._begun_ms < _ANEW_MS:
            passed_to, found, self._begun_ms = 0, [], now_ms
        for row in range(passed_to, last, _PIECE):
            which = Sql("rowid > ? AND rowid <= ?", (row, min(row + _PIECE, last)))
            found += await self._find_in(which)
        self._passed_to = last
        return tuple(found[: limits.INVALID_NAMES])

    async def _find_in(self, rows: Sql) -> tuple[str, ...]:
        """Find those of some rows."""
        which = f"{rows.text} AND {MAY_BE_INVALID[self._homeserver.is_postgres]}"

        def find_txn(txn: LoggingTransaction) -> tuple[str, ...]:
            txn.execute(
                f"SELECT destination FROM destinations WHERE {which}",  # noqa: S608
                rows.args,
            )
            found: list[str] = []
            while some := txn.fetchmany(limits.INVALID_NAMES):
                found += [name for (name,) in some if not is_server_name(name)]
                if len(found) >= limits.INVALID_NAMES:
                    break
            return tuple(found[: limits.INVALID_NAMES])

        return await self._homeserver.run_db_interaction(
            "federation_admin_invalid_names", find_txn
        )
