# SPDX-License-Identifier: Apache-2.0
"""Reads part of a sorted, filtered list of destinations so that it holds nobody up.

On PostgreSQL a segment is one statement. On SQLite, where the whole homeserver shares
one connection, a segment that no index serves is read in small pieces, each in a
transaction of its own, between which the homeserver's own work goes on.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from operator import attrgetter
from typing import TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations import sizes, statements
from synapse_federation_admin.destinations.order import Segment, segments
from synapse_federation_admin.destinations.query import conditions, is_of_failing
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    Direction,
    Position,
    Sort,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import Sql

T = TypeVar("T")

# How long PostgreSQL is not asked again which indexes there are.
_LOOK_AGAIN_MS = 10_000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Begun:
    """What a first transaction has read.

    Attributes:
        rows: The rows that it found.
        rest: The segments that are still to be read, the first of them in pieces.
        usable: The optional indexes that there are.
    """

    rows: list[Destination]
    rest: list[Segment]
    usable: set[str]


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
            left = limit - len(rows)
            if left:
                source = self._source(segment, wanted, begun.usable)
                if source is not None:
                    found = await self._read_whole(wanted, segment, source, left)
                else:
                    found = await self._read_in_pieces(wanted, sort, segment, left)
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
            windows = 0
            # A long list goes on by windows: it needs all of them, one time or another.
            while windows < sizes.MAX_WINDOWS or limit > sizes.LONG_PIECE:
                windows += 1
                after, found = await self.read_window(
                    wanted, segment, after, size, limit - len(rows)
                )
                rows += found
                if after is None or len(rows) == limit:
                    return rows
                size = min(2 * size, sizes.WINDOW)
            segment = attr.evolve(segment, after=after)
        left = limit - len(rows)
        if self._homeserver.is_postgres:
            found = await self._read_whole(wanted, segment, "destinations", left)
        else:
            found = await self._read_top(wanted, sort, segment, left)
        return rows + found

    async def _read_whole(
        self,
        wanted: DestinationFilter,
        segment: Segment,
        source: str,
        limit: int,
    ) -> list[Destination]:
        """Read a segment with one statement."""
        which = [*segment.where, *self.conditions(wanted)]
        return await self._homeserver.run_db_interaction(
            "federation_admin_list_destinations",
            lambda txn: statements.select(txn, source, which, segment.order, limit),
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
        """Read the first rows of a segment by passes over the table."""
        which = [*segment.where, *self.conditions(wanted)]
        guess = None
        if segment.value is not None and limit > sizes.LONG_PIECE:
            guess = await self._guess(segment, which, limit)
        if guess is None:
            return await self._read_pass(sort, segment, which, limit)
        up_to, beyond = segment.cut(guess)
        rows = await self._read_pass(sort, segment, [*which, up_to], limit)
        left = limit - len(rows)
        if left:
            rows += await self._read_pass(sort, segment, [*which, beyond], left)
        return rows

    async def _read_pass(
        self, sort: Sort, segment: Segment, which: list[Sql], limit: int
    ) -> list[Destination]:
        """Read the first rows of a segment in one pass over the table."""
        top: list[Destination] = []

        def read(txn: LoggingTransaction, piece: Sql) -> list[Destination]:
            better = [piece, *which]
            if len(top) == limit:
                better.append(segment.not_behind(sort.position_of(top[-1])))
            source = "destinations NOT INDEXED"
            return statements.select(txn, source, better, segment.order, limit)

        merge = _merging(sort, segment)
        async with aclosing(self.each_piece(read)) as pieces:
            async for found in pieces:
                if found:
                    top = merge(top, found)[:limit]
        return top

    async def _guess(
        self, segment: Segment, which: list[Sql], limit: int
    ) -> int | None:
        """Guess a value up to which a segment has `limit` rows, or some more.

        Without it, the first pieces of the table would return that many rows each.

        Returns:
            The value; None if the segment may have fewer rows.
        """
        last = await self._homeserver.run_db_interaction(
            "federation_admin_last_destination", statements.last_row_id
        )
        step = max(1, last // sizes.SAMPLE)
        sampled = [*which, Sql("rowid % ? = 0", (step,))]
        assert segment.value is not None
        read = partial(statements.values, expression=segment.value)
        values: list[int] = []
        async with aclosing(
            self.each_piece(lambda txn, piece: read(txn, which=[piece, *sampled]))
        ) as pieces:
            async for found in pieces:
                values += found
        values.sort(reverse=segment.values is Direction.BACKWARDS)
        index = limit * 6 // (step * 5) + 3
        return values[index] if index < len(values) else None

    async def each_piece(
        self, read: Callable[[LoggingTransaction, Sql], T]
    ) -> AsyncGenerator[T, None]:
        """Read the table in pieces, each in a transaction of some milliseconds.

        Args:
            read: Is given the condition of a piece.
        """
        last = await self._homeserver.run_db_interaction(
            "federation_admin_last_destination", statements.last_row_id
        )
        size = sizes.TABLE_PIECE
        begin = 0
        while begin < last:
            piece = Sql("rowid > ? AND rowid <= ?", (begin, begin + size))
            result, took_s = await self._homeserver.run_db_interaction(
                "federation_admin_list_destinations", partial(_timed, read, piece)
            )
            yield result
            begin += size
            if took_s < sizes.SHORT_S:
                size = min(2 * size, sizes.MAX_TABLE_PIECE)
            elif took_s > sizes.LONG_S:
                size = max(size // 2, sizes.MIN_TABLE_PIECE)

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
                return _Begun(rows, rest, usable)
            segment = rest.pop(0)
            which = [*segment.where, *self.conditions(wanted)]
            rows += statements.select(
                txn, source, which, segment.order, limit - len(rows)
            )
        return _Begun(rows, [], usable)

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


def _timed(
    read: Callable[[LoggingTransaction, Sql], T], piece: Sql, txn: LoggingTransaction
) -> tuple[T, float]:
    started = time.perf_counter()
    return read(txn, piece), time.perf_counter() - started


def _merging(
    sort: Sort, segment: Segment
) -> Callable[[list[Destination], list[Destination]], list[Destination]]:
    """Return what merges two sorted parts of a segment.

    Names are compared as SQLite does it: by bytes.
    """
    reverse = segment.names is Direction.BACKWARDS
    value = attrgetter(sort.order_by.value)
    # What is sorted in reverse, but shall ascend, is negated, and the other way round.
    negated = (segment.values is Direction.BACKWARDS) != reverse
    sign = -1 if negated else 1

    def by_value(row: Destination) -> tuple[int, str]:
        return sign * value(row), row.destination

    key = attrgetter("destination") if segment.value is None else by_value

    def merge(one: list[Destination], other: list[Destination]) -> list[Destination]:
        return sorted(one + other, key=key, reverse=reverse)

    return merge
