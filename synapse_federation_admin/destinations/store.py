# SPDX-License-Identifier: Apache-2.0
"""Asks for one destination. Answers come from the tables, never from a cache."""

from collections.abc import Sequence

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import DESTINATION_COLUMNS
from synapse_federation_admin.destinations.values import (
    Destination,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import any_of, can_be_stored


class DestinationStore:
    """Reads one row of Synapse's table `destinations`, and its `destination_rooms`."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver

    async def get(self, name: str) -> Destination | None:
        """Return the destination of exactly this name, or None if there is none.

        Raises:
            Exception: Whatever the database raises.
        """
        if not can_be_stored(name):
            return None
        return await self._homeserver.run_db_interaction(
            "federation_admin_get_destination", lambda txn: self.get_txn(txn, name)
        )

    @staticmethod
    def get_txn(txn: LoggingTransaction, name: str) -> Destination | None:
        """Return the same in a transaction, of a name that can be stored at all."""
        txn.execute(
            f"SELECT {DESTINATION_COLUMNS} FROM destinations WHERE destination = ?",  # noqa: S608
            (name,),
        )
        row = txn.fetchone()
        return Destination(*row) if row else None

    async def get_many(self, names: Sequence[str]) -> dict[str, Destination]:
        """Return, by name, the rows that there are of some names.

        Raises:
            Exception: Whatever the database raises.
        """
        wanted = any_of("destination", names, self._homeserver.is_postgres)

        def get_many_txn(txn: LoggingTransaction) -> dict[str, Destination]:
            txn.execute(
                f"SELECT {DESTINATION_COLUMNS} FROM destinations WHERE {wanted.text}",  # noqa: S608
                wanted.args,
            )
            return {row[0]: Destination(*row) for row in txn.fetchall()}

        return await self._homeserver.run_db_interaction(
            "federation_admin_get_destinations", get_many_txn
        )

    async def last_inbound_ts(self, name: str) -> int | None:
        """Return when a server last sent us a transaction, in ms since the epoch.

        Synapse keeps that for a day (`synapse/storage/databases/main/transactions.py`,
        `_cleanup_transactions`): None says that it has sent none since.

        Raises:
            Exception: Whatever the database raises.
        """

        def newest_txn(txn: LoggingTransaction) -> int | None:
            # Newest first, as the index has them: mostly one of the first is of it.
            txn.execute(
                "SELECT ts FROM received_transactions "
                "WHERE origin = ? AND ts IS NOT NULL ORDER BY ts DESC LIMIT 1",
                (name,),
            )
            row = txn.fetchone()
            return row[0] if row else None

        if not can_be_stored(name):
            return None
        return await self._homeserver.run_db_interaction(
            "federation_admin_last_inbound", newest_txn
        )
