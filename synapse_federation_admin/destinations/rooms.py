# SPDX-License-Identifier: Apache-2.0
"""Reads the rooms in which something was ever queued for a destination."""

from collections.abc import AsyncGenerator, Hashable
from typing import Any

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import BEYOND
from synapse_federation_admin.destinations.values import DestinationRoom, Direction
from synapse_federation_admin.homeserver.homeserver import Homeserver

# How many rooms one transaction reads.
_PIECE = 4000


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
        def select_txn(txn: LoggingTransaction) -> list[tuple[Any, ...]]:
            txn.execute(
                f"SELECT {columns} FROM destination_rooms "  # noqa: S608
                f"WHERE destination = ? {rest}",
                (self.destination, *args),
            )
            return txn.fetchall()

        return await self.homeserver.run_db_interaction(
            "federation_admin_list_destination_rooms", select_txn
        )
