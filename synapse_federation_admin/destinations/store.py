# SPDX-License-Identifier: Apache-2.0
"""Asks for one destination, and its rooms. Answers come from tables, never a cache."""

from collections.abc import AsyncGenerator, Hashable, Sequence
from functools import partial
from typing import Any

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import BEYOND, rows_txn
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationRoom,
    Direction,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import Sql, any_of, can_be_stored

# How many rooms one transaction reads.
_PIECE = 4000


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
        return rows_txn(txn, [Sql("destination = ?", (name,))]).get(name)

    async def get_many(self, names: Sequence[str]) -> dict[str, Destination]:
        """Return, by name, the rows that there are of some names.

        Raises:
            Exception: Whatever the database raises.
        """
        return await self._homeserver.run_db_interaction(
            "federation_admin_get_destinations",
            partial(rows_txn, conditions=[any_of("destination", names)]),
        )

    async def last_inbound_ts(self, name: str) -> int | None:
        """Return when a server last sent us a transaction, in ms since the epoch.

        Synapse keeps that for a day (`synapse/storage/databases/main/transactions.py`,
        `_cleanup_transactions`): None says that it has sent none since.

        Raises:
            Exception: Whatever the database raises.
        """
        if not can_be_stored(name):
            return None
        # Newest first, as the index has them: mostly one of the first is of it.
        newest = Sql(
            "SELECT ts FROM received_transactions "
            "WHERE origin = ? AND ts IS NOT NULL ORDER BY ts DESC LIMIT 1",
            (name,),
        )
        found = await self._homeserver.run_db_interaction(
            "federation_admin_last_inbound", newest.select_txn
        )
        return found[0][0] if found else None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RoomList:
    """The rooms in which something was ever queued for a destination, by room ID."""

    homeserver: Homeserver
    destination: str
    direction: Direction

    @property
    def key(self) -> Hashable:
        """Equal for equal lists."""
        return (self.destination, self.direction)

    async def count(self) -> int:
        """Count all rows."""
        ((count,),) = await self._select("COUNT(*)", "")
        return int(count)

    async def pieces(
        self, after: str | None, limit: int
    ) -> AsyncGenerator[list[DestinationRoom], None]:
        """Read the next rows, piece by piece."""
        comparison, order = BEYOND[self.direction]
        while limit > 0:
            count = min(_PIECE, limit)
            found = await self._select(
                "room_id, stream_ordering",
                f"{f'AND room_id {comparison} ?' if after is not None else ''} "
                f"ORDER BY room_id {order} LIMIT ?",
                *([] if after is None else [after]),
                count,
            )
            if found:
                yield [DestinationRoom(*row) for row in found]
            if len(found) < count:
                return
            after = found[-1][0]
            limit -= count

    async def position_at(self, offset: int, total: int) -> str | None:  # noqa: ARG002
        """Return the room ID of the row before an offset."""
        order = BEYOND[self.direction][1]
        found = await self._select(
            "room_id", f"ORDER BY room_id {order} LIMIT 1 OFFSET ?", offset - 1
        )
        return found[0][0] if found else None

    def position_of(self, row: DestinationRoom) -> str:
        """Return the position behind a row."""
        return row.room_id

    async def _select(
        self, columns: str, rest: str, *args: str | int
    ) -> list[tuple[Any, ...]]:
        statement = Sql(
            f"SELECT {columns} FROM destination_rooms WHERE destination = ? {rest}",  # noqa: S608
            (self.destination, *args),
        )
        return await self.homeserver.run_db_interaction(
            "federation_admin_list_destination_rooms", statement.select_txn
        )
