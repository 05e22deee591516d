# SPDX-License-Identifier: Apache-2.0
"""Asks the database. Answers always come from the tables, never from a cache."""

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations import query as sql
from synapse_federation_admin.destinations.query import Sql
from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.models import (
    Destination,
    DestinationQuery,
    DestinationRoom,
    Direction,
    Page,
)


class DestinationStore:
    """Reads Synapse's tables `destinations` and `destination_rooms`.

    Every method runs one transaction and raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver

    async def get(self, name: str) -> Destination | None:
        """Return the destination of exactly this name, or None if there is none."""
        if not sql.can_be_stored(name):
            return None

        def get_txn(txn: LoggingTransaction) -> Destination | None:
            _execute(txn, sql.select_destination(name))
            row = txn.fetchone()
            return Destination(*row) if row else None

        return await self._homeserver.run_db_interaction(
            "federation_admin_get_destination", get_txn
        )

    async def list(self, query: DestinationQuery) -> Page[Destination]:
        """Return one page of the destinations, and how many the filter keeps."""
        if not sql.can_be_stored(query.name_contains):
            return Page([], total=0)

        def list_txn(txn: LoggingTransaction) -> Page[Destination]:
            total = _count(txn, sql.count_destinations(query))
            if query.limit == 0 or query.offset >= total:
                return Page([], total)
            _execute(txn, sql.select_destinations(query))
            return Page([Destination(*row) for row in txn], total)

        return await self._homeserver.run_db_interaction(
            "federation_admin_list_destinations", list_txn
        )

    async def list_rooms(
        self, name: str, *, offset: int, limit: int, direction: Direction
    ) -> Page[DestinationRoom]:
        """Return one page of a destination's rooms, sorted by room ID.

        Args:
            name: The exact name of a destination that there is.
            offset: How many rooms to leave out at the start.
            limit: The most rooms to return.
            direction: The direction of the sort.
        """

        def list_rooms_txn(txn: LoggingTransaction) -> Page[DestinationRoom]:
            total = _count(txn, sql.count_rooms(name))
            if limit == 0 or offset >= total:
                return Page([], total)
            _execute(
                txn,
                sql.select_rooms(name, offset=offset, limit=limit, direction=direction),
            )
            return Page([DestinationRoom(*row) for row in txn], total)

        return await self._homeserver.run_db_interaction(
            "federation_admin_list_destination_rooms", list_rooms_txn
        )


def _execute(txn: LoggingTransaction, statement: Sql) -> None:
    txn.execute(statement.text, statement.args)


def _count(txn: LoggingTransaction, statement: Sql) -> int:
    _execute(txn, statement)
    row = txn.fetchone()
    assert row is not None
    return int(row[0])
