# SPDX-License-Identifier: Apache-2.0
"""Reads lists of destinations: pages, long lists, counts and jumps.

Whatever may cost a pass over the table is read once for all who ask for the same at the
same time, and only a few such at a time.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations import sizes, statements
from synapse_federation_admin.destinations.order import segments, whole_order
from synapse_federation_admin.destinations.read_ahead import Fetch, read_ahead
from synapse_federation_admin.destinations.segment_reader import SegmentReader
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    Position,
    Sort,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql, can_be_stored


class DestinationReader:
    """Reads from Synapse's table `destinations`, never from a cache.

    Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver, tables: Tables) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._segments = SegmentReader(homeserver)
        self._passes = homeserver.linearizer(
            "federation_admin_passes", sizes.MAX_PASSES
        )

    async def count(self, wanted: DestinationFilter) -> int:
        """Count what a filter keeps; once for all who ask at the same time."""
        if not _is_possible(wanted):
            return 0
        await self._prepare(wanted)
        return await self._homeserver.single_flight.run(
            "federation_admin_count", wanted, lambda: self._count(wanted)
        )

    async def read(
        self,
        wanted: DestinationFilter,
        sort: Sort,
        after: Position | None,
        limit: int,
        *,
        reverse: bool = False,
    ) -> list[Destination]:
        """Read the next rows of a list; once for all who ask at the same time.

        Args:
            wanted: Which rows the list holds.
            sort: The order of the list.
            after: Where to begin: behind this; None is at the start.
            limit: The most rows to return. All of them are held in memory.
            reverse: Read the list from its end.
        """
        if limit == 0 or not _is_possible(wanted):
            return []
        await self._prepare(wanted)
        if sort.is_by_name and wanted.keeps_all:
            return await self._segments.read(wanted, sort, after, limit, reverse)
        return await self._homeserver.single_flight.run(
            "federation_admin_read",
            (wanted, sort, after, limit, reverse),
            lambda: self._read_as_pass(wanted, sort, after, limit, reverse),
        )

    async def pieces(
        self,
        wanted: DestinationFilter,
        sort: Sort,
        after: Position | None,
        limit: int | None = None,
    ) -> AsyncGenerator[list[Destination], None]:
        """Read a long list, piece by piece, at the pace of who asks for the pieces.

        No transaction outlives a piece. A row that is there all along is in one piece,
        unless the value that it is sorted by changes.

        Args:
            wanted: Which rows the list holds.
            sort: The order of the list.
            after: Where to begin: behind this; None is at the start.
            limit: The most rows to return in all; None is no limit.
        """
        if not _is_possible(wanted):
            return
        await self._prepare(wanted)
        if sort.is_by_name and not wanted.keeps_all:
            fetch = self._windows(wanted, sort)
        else:
            size = await self._piece_size(wanted, sort, after)
            fetch = self._blocks(wanted, sort, size)
        async with aclosing(read_ahead(fetch, after, limit)) as pieces:
            async for rows in pieces:
                for start in range(0, len(rows), sizes.LONG_PIECE):
                    yield rows[start : start + sizes.LONG_PIECE]

    async def _prepare(self, wanted: DestinationFilter) -> None:
        """Have the tables be there that a filter looks into."""
        if wanted.failures:
            await self._tables.ready(anew=True)

    async def _piece_size(
        self, wanted: DestinationFilter, sort: Sort, after: Position | None
    ) -> int:
        """Return how many rows of a long list to take at a time."""
        if sort.is_by_name:
            return sizes.LONG_PIECE
        segment = segments(sort, after, split_ties=True)[0]
        usable = await self._homeserver.run_db_interaction(
            "federation_admin_indexes",
            partial(
                statements.usable_indexes, on_postgres=self._homeserver.is_postgres
            ),
        )
        is_indexed = segment.index in usable and not wanted.has_pattern
        return sizes.LONG_PIECE if is_indexed else sizes.PASS_PIECE

    def _blocks(self, wanted: DestinationFilter, sort: Sort, size: int) -> Fetch:
        """Return what reads a long list a number of rows at a time."""

        async def fetch(
            after: Position | None, most: int
        ) -> tuple[list[Destination], Position | None]:
            count = min(size, most)
            rows = await self._read_as_pass(wanted, sort, after, count, False)
            return rows, sort.position_of(rows[-1]) if len(rows) == count else None

        return fetch

    def _windows(self, wanted: DestinationFilter, sort: Sort) -> Fetch:
        """Return what reads a long list by name that a filter thins out."""

        async def fetch(
            after: Position | None, most: int
        ) -> tuple[list[Destination], Position | None]:
            (segment,) = segments(sort, after, split_ties=False)
            async with self._passes("pass"):
                end, rows = await self._segments.read_window(
                    wanted, segment, segment.after, sizes.WINDOW, most
                )
            return rows, None if end is None else Position(None, end)

        return fetch

    async def position_at(
        self, wanted: DestinationFilter, sort: Sort, offset: int, total: int
    ) -> Position | None:
        """Return the position behind the first `offset` rows of a list.

        The list is read from the nearer end.

        Args:
            wanted: Which rows the list holds.
            sort: The order of the list.
            offset: How many rows lie before: from 1 to `total` - 1.
            total: How many rows the list holds.

        Returns:
            The position; None if there are not that many rows any more.
        """
        reverse = offset > total - offset
        skipped = total - offset if reverse else offset - 1
        return await self._homeserver.single_flight.run(
            "federation_admin_position",
            (wanted, sort, skipped, reverse),
            lambda: self._position_at(wanted, sort, skipped, reverse),
        )

    async def _count(self, wanted: DestinationFilter) -> int:
        async with self._passes("pass"):
            if self._homeserver.is_postgres or wanted.keeps_all:
                which = self._segments.conditions(wanted)
                return await self._homeserver.run_db_interaction(
                    "federation_admin_count_destinations",
                    partial(statements.count, which=which),
                )
            total = 0

            def count(txn: LoggingTransaction, piece: Sql) -> int:
                which = [*self._segments.conditions(wanted), piece]
                return statements.count(txn, which)

            async with aclosing(self._segments.each_piece(count)) as pieces:
                async for counted in pieces:
                    total += counted
            return total

    async def _read_as_pass(
        self,
        wanted: DestinationFilter,
        sort: Sort,
        after: Position | None,
        limit: int,
        reverse: bool,
    ) -> list[Destination]:
        async with self._passes("pass"):
            return await self._segments.read(wanted, sort, after, limit, reverse)

    async def _position_at(
        self, wanted: DestinationFilter, sort: Sort, skipped: int, reverse: bool
    ) -> Position | None:
        """Return the position of the row behind `skipped` others."""
        if sort.is_by_name and wanted.keeps_all:
            return await self._hop(sort, skipped, reverse)
        if not self._homeserver.is_postgres or skipped < sizes.LONG_PIECE:
            position = None
            left = skipped + 1
            while left:
                count = min(left, sizes.PASS_PIECE)
                rows = await self._read_as_pass(wanted, sort, position, count, reverse)
                if len(rows) < count:
                    return None
                left -= count
                position = sort.position_of(rows[-1])
            return position
        async with self._passes("pass"):
            rows = await self._homeserver.run_db_interaction(
                "federation_admin_skip_destinations",
                lambda txn: statements.select(
                    txn,
                    "destinations",
                    self._segments.conditions(wanted),
                    whole_order(sort, reverse=reverse),
                    1,
                    skipped,
                ),
            )
        return sort.position_of(rows[0]) if rows else None

    async def _hop(self, sort: Sort, skipped: int, reverse: bool) -> Position | None:
        """Skip rows in the list of all by name: the primary key alone is read."""
        name: str | None = None
        left = skipped + 1
        while left:
            (segment,) = segments(
                sort,
                Position(None, name) if name is not None else None,
                reverse=reverse,
                split_ties=False,
            )
            count = left if self._homeserver.is_postgres else min(left, sizes.HOP)
            async with self._passes("pass"):
                name = await self._homeserver.run_db_interaction(
                    "federation_admin_skip_destinations",
                    partial(
                        statements.name_at,
                        after=segment.after,
                        direction=segment.names,
                        count=count,
                    ),
                )
            if name is None:
                return None
            left -= count
        assert name is not None
        return Position(None, name)


def _is_possible(wanted: DestinationFilter) -> bool:
    return can_be_stored(wanted.name_contains) and can_be_stored(wanted.name_glob)
