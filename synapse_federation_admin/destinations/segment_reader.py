# SPDX-License-Identifier: Apache-2.0
"""Reads part of a sorted, filtered list of destinations so that it holds nobody up.

On PostgreSQL a segment is one statement. On SQLite, where the whole homeserver shares
one connection, a segment that no index serves is read in small pieces, each in a
transaction of its own, between which the homeserver's own work goes on.
"""

from collections.abc import AsyncGenerator

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations import sizes, statements
from synapse_federation_admin.destinations.order import Segment, segments
from synapse_federation_admin.destinations.query import (
    Sql,
    conditions,
    is_of_failing,
)
from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.models import (
    Destination,
    DestinationFilter,
    Direction,
    Position,
    Sort,
)

# How long PostgreSQL is not asked again which indexes there are.
_LOOK_AGAIN_MS = 10_000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Begun:
    """What a first transaction has read.

    Attributes:
        rows: The rows that it found.
        rest: The segments that are to be read in pieces.
    """

    rows: list[Destination]
    rest: list[Segment]


class SegmentReader:
    """Reads the rows of a list. Every method raises what the database raises."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self._indexes: set[str] = set()
        self._looked_ts = 0

    async def read(
        self,
        wanted: DestinationFilter,
        sort: Sort,
        after: Position | None,
        limit: int,
        reverse: bool,
    ) -> list[Destination]:
        """Read the next rows of a list.

        Args:
            wanted: Which rows the list holds.
            sort: The order of the list.
            after: Where to begin: behind this; None is at the start.
            limit: The most rows to return. All of them are held in memory.
            reverse: Read the list from its end.
        """
        begun = await self._homeserver.run_db_interaction(
            "federation_admin_list_destinations",
            lambda txn: self._begin_txn(txn, wanted, sort, after, limit, reverse),
        )
        rows = begun.rows
        for segment in begun.rest:
            if len(rows) < limit:
                found = await self._read_in_pieces(
                    wanted, sort, segment, limit - len(rows)
                )
                rows = rows + found
        return rows

    async def _read_in_pieces(
        self, wanted: DestinationFilter, sort: Sort, segment: Segment, limit: int
    ) -> list[Destination]:
        """Read a segment, by name through a few windows of names first."""
        rows: list[Destination] = []
        if segment.is_by_name:
            size = min(max(sizes.FIRST_WINDOW, 2 * limit), sizes.WINDOW)
            after = segment.after
            for _ in range(sizes.MAX_WINDOWS):
                after, found = await self.read_window(
                    wanted, segment, after, size, limit - len(rows)
                )
                rows += found
                if after is None or len(rows) == limit:
                    return rows
                size = min(2 * size, sizes.WINDOW)
            segment = attr.evolve(segment, after=after)
        read = self._read_whole if self._homeserver.is_postgres else self._read_top
        return rows + await read(wanted, sort, segment, limit - len(rows))

    async def _read_whole(
        self,
        wanted: DestinationFilter,
        sort: Sort,  # noqa: ARG002  # as _read_top
        segment: Segment,
        limit: int,
    ) -> list[Destination]:
        """Read a segment with one statement."""
        which = [*segment.where, *self.conditions(wanted)]
        return await self._homeserver.run_db_interaction(
            "federation_admin_list_destinations",
            lambda txn: statements.select(
                txn, "destinations", which, segment.order, limit
            ),
        )

    async def read_window(
        self,
        wanted: DestinationFilter,
        segment: Segment,
        after: str | None,
        size: int,
        limit: int,
    ) -> tuple[str | None, list[Destination]]:
        """Read what a segment by name has in the next rows of the table by name.

        Args:
            wanted: Which rows to keep.
            segment: The segment.
            after: The window begins behind this name; None is at the start.
            size: How many rows of the table the window has.
            limit: The most rows to return.

        Returns:
            The name at the end of the window, or None if no row lies behind, and the
            rows.
        """
        which = [*segment.conditions, *self.conditions(wanted)]

        def window_txn(
            txn: LoggingTransaction,
        ) -> tuple[str | None, list[Destination]]:
            end = statements.name_at(txn, after, segment.names, size)
            window = [*which, *statements.between(after, end, segment.names)]
            return end, statements.select(
                txn, "destinations", window, segment.order, limit
            )

        return await self._homeserver.run_db_interaction(
            "federation_admin_list_destinations", window_txn
        )

    async def _read_top(
        self, wanted: DestinationFilter, sort: Sort, segment: Segment, limit: int
    ) -> list[Destination]:
        """Read the first rows of a segment in one pass over the table."""
        which = [*segment.where, *self.conditions(wanted)]
        top: list[Destination] = []
        # The first pieces return `limit` rows each.
        size = sizes.TABLE_PIECE if limit <= sizes.LONG_PIECE else sizes.WINDOW
        async for piece in self.row_pieces(size):

            def top_txn(
                txn: LoggingTransaction,
                piece: Sql = piece,
                top: list[Destination] = top,
            ) -> list[Destination]:
                better = [piece, *which]
                if len(top) == limit:
                    better.append(segment.not_behind(sort.position_of(top[-1])))
                source = "destinations NOT INDEXED"
                found = statements.select(txn, source, better, segment.order, limit)
                return _merge(sort, segment, top, found)[:limit] if found else top

            top = await self._homeserver.run_db_interaction(
                "federation_admin_list_destinations", top_txn
            )
        return top

    async def row_pieces(self, size: int) -> AsyncGenerator[Sql, None]:
        """Yield conditions that cut the table into pieces."""
        last = await self._homeserver.run_db_interaction(
            "federation_admin_last_destination", statements.last_row_id
        )
        for begin in range(0, last, size):
            yield Sql("rowid > ? AND rowid <= ?", (begin, begin + size))

    def conditions(self, wanted: DestinationFilter) -> list[Sql]:
        """Return the conditions of a filter, as of now."""
        return conditions(
            wanted,
            self._homeserver.now_ms(),
            like_folds_case=not self._homeserver.is_postgres,
        )

    def _begin_txn(
        self,
        txn: LoggingTransaction,
        wanted: DestinationFilter,
        sort: Sort,
        after: Position | None,
        limit: int,
        reverse: bool,
    ) -> _Begun:
        """Read the segments that take one statement each, until one does not."""
        by_name = sort.is_by_name
        usable: set[str] = set()
        if not by_name or not wanted.keeps_all:
            usable = self._usable_indexes(txn)
        index = segments(sort, after, reverse=reverse, split_ties=True)[0].index
        rest = segments(sort, after, reverse=reverse, split_ties=index in usable)
        rows: list[Destination] = []
        while rest and len(rows) < limit:
            source = self._source(rest[0], wanted, usable)
            if source is None:
                return _Begun(rows, rest)
            segment = rest.pop(0)
            which = [*segment.where, *self.conditions(wanted)]
            rows += statements.select(
                txn, source, which, segment.order, limit - len(rows)
            )
        return _Begun(rows, [])

    def _usable_indexes(self, txn: LoggingTransaction) -> set[str]:
        """Return which of the optional indexes there are, ready for use.

        On PostgreSQL it is enough to know that roughly: it finds the best plan itself.
        """
        now_ms = self._homeserver.now_ms()
        on_postgres = self._homeserver.is_postgres
        age_ms = now_ms - self._looked_ts
        if not on_postgres or not 0 <= age_ms < _LOOK_AGAIN_MS:
            self._indexes = statements.usable_indexes(txn, on_postgres=on_postgres)
            self._looked_ts = now_ms
        return self._indexes

    def _source(
        self, segment: Segment, wanted: DestinationFilter, usable: set[str]
    ) -> str | None:
        """Return the FROM of the one statement that reads a segment.

        None if it is to be read in pieces.
        """
        if self._homeserver.is_postgres:
            # How many names a pattern fits PostgreSQL cannot know, and sorts all of
            # them where it would find enough among the next.
            is_guess = wanted.has_pattern and segment.is_by_name
            return None if is_guess else "destinations"
        index = segment.index
        if index is None and is_of_failing(wanted):
            index = "federation_admin_failing"
        if index in usable and not wanted.has_pattern:
            return f"destinations INDEXED BY {index}"
        if wanted.keeps_all and not segment.conditions:
            return "destinations"
        return None


def _merge(
    sort: Sort, segment: Segment, one: list[Destination], other: list[Destination]
) -> list[Destination]:
    """Merge two sorted parts of a segment, as SQLite compares names: by bytes."""
    rows = one + other
    rows.sort(
        key=lambda row: row.destination,
        reverse=segment.names is Direction.BACKWARDS,
    )
    if segment.value is not None:
        rows.sort(
            key=lambda row: sort.position_of(row).value or 0,
            reverse=segment.values is Direction.BACKWARDS,
        )
    return rows
