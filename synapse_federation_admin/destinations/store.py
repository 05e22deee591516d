# SPDX-License-Identifier: Apache-2.0
"""Asks for one destination. Answers come from the tables, never from a cache."""

from collections.abc import AsyncGenerator, Hashable, Sequence

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations import query as sql
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationRoom,
    Direction,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import Sql, can_be_stored

_PIECE = 1000


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
        _execute(txn, sql.select_destination(name))
        row = txn.fetchone()
        return Destination(*row) if row else None

    async def known(self, names: Sequence[str]) -> set[str]:
        """Return those of some names for which there is a row; not for very many.

        Raises:
            Exception: Whatever the database raises.
        """
        statement = sql.select_known(names)

        def known_txn(txn: LoggingTransaction) -> set[str]:
            _execute(txn, statement)
            return {name for (name,) in txn.fetchall()}

        if not names:
            return set()
        return await self._homeserver.run_db_interaction(
            "federation_admin_known_destinations", known_txn
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

    def rooms(self, destination: str, direction: Direction) -> "RoomListing":
        """Return the list of the rooms of a destination that there is."""
        return RoomListing(self._homeserver, destination, direction)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RoomListing:
    """The rooms in which something was ever queued for a destination, by room ID.

    See `synapse_federation_admin.destinations.lists.Listing`.
    """

    homeserver: Homeserver
    destination: str
    direction: Direction

    @property
    def key(self) -> Hashable:
        """Equal for equal lists."""
        return (self.destination, self.direction)

    async def count(self) -> int:
        """Count all rows."""

        def count_txn(txn: LoggingTransaction) -> int:
            _execute(txn, sql.count_rooms(self.destination))
            row = txn.fetchone()
            assert row is not None
            return int(row[0])

        return await self.homeserver.run_db_interaction(
            "federation_admin_count_destination_rooms", count_txn
        )

    async def read(self, after: str | None, limit: int) -> list[DestinationRoom]:
        """Return the next rows."""
        statement = sql.select_rooms(
            self.destination, after=after, limit=limit, direction=self.direction
        )

        def read_txn(txn: LoggingTransaction) -> list[DestinationRoom]:
            _execute(txn, statement)
            return [DestinationRoom(*row) for row in txn.fetchall()]

        return await self.homeserver.run_db_interaction(
            "federation_admin_list_destination_rooms", read_txn
        )

    async def pieces(
        self, after: str | None, limit: int
    ) -> AsyncGenerator[list[DestinationRoom], None]:
        """Read many rows, piece by piece."""
        while limit > 0:
            count = min(_PIECE, limit)
            rows = await self.read(after, count)
            if rows:
                yield rows
            if len(rows) < count:
                return
            after = rows[-1].room_id
            limit -= count

    async def position_at(self, offset: int, total: int) -> str | None:  # noqa: ARG002
        """Return the room ID of the row before an offset."""
        statement = sql.select_room_at(self.destination, offset - 1, self.direction)

        def position_txn(txn: LoggingTransaction) -> str | None:
            _execute(txn, statement)
            row = txn.fetchone()
            return row[0] if row else None

        return await self.homeserver.run_db_interaction(
            "federation_admin_list_destination_rooms", position_txn
        )

    def position_of(self, row: DestinationRoom) -> str:
        """Return the position behind a row."""
        return row.room_id


def _execute(txn: LoggingTransaction, statement: Sql) -> None:
    txn.execute(statement.text, statement.args)
