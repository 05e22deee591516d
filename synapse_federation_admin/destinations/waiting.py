# SPDX-License-Identifier: Apache-2.0
"""Lists the failing destinations for which something waits, where most waits first."""

from bisect import bisect_right
from collections.abc import AsyncGenerator

from synapse_federation_admin.destinations.attention import Attention, place
from synapse_federation_admin.destinations.reader import DestinationList
from synapse_federation_admin.destinations.values import Destination, Position
from synapse_federation_admin.storage.sql import in_pieces

# Among how many of them rows are looked for at a time.
_LOOKED_FOR = 500


class WaitingList:
    """Those of a list for which something waited when that was last looked for.

    It is read as a `DestinationList` is; a position has how much waited.

    Attributes:
        found: What was found; None while nothing is known yet.
    """

    def __init__(self, destinations: DestinationList, found: Attention | None) -> None:
        self.found = found
        self._destinations = destinations
        # How much waited for those that were read.
        self._counts: dict[str, int] = {}

    def position_of(self, row: Destination) -> Position:
        """Return the position behind a row that was read."""
        return Position(self._counts[row.destination], row.destination)

    async def count(self) -> int:
        """Count all rows, once for what was found."""
        if self.found is None:
            return 0
        totals, wanted = self.found.totals, self._destinations.wanted
        if wanted not in totals:
            totals[wanted] = sum([len(piece) async for piece in self.pieces(None)])
        return totals[wanted]

    async def read(self, after: Position | None, limit: int) -> list[Destination]:
        """Read the next rows; see `DestinationList`."""
        rows: list[Destination] = []
        async for piece in self.pieces(after):
            rows += piece
            if len(rows) >= limit:
                break
        return rows[:limit]

    async def pieces(
        self, after: Position | None
    ) -> AsyncGenerator[list[Destination], None]:
        """Read all rows, piece by piece; see `DestinationList`."""
        left = self.found.waiting if self.found else ()
        if after is not None:
            # What stood there need not be there any more.
            last = place((after.value or 0, after.destination))
            left = left[bisect_right(left, last, key=place) :]
        for some in in_pieces(left, _LOOKED_FOR):
            rows = await self._destinations.among([name for _, name in some])
            self._counts.update((name, count) for count, name in some)
            if rows:
                yield [rows[name] for _, name in some if name in rows]
