# SPDX-License-Identifier: Apache-2.0
"""Reads lists of destinations: pages, long lists, counts and jumps.

Whatever may cost a pass over the table is read once for all who ask for the same at the
same time, and only a few such at a time.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.indexes import usable_indexes
from synapse_federation_admin.destinations.order import Segment, segments, whole_order
from synapse_federation_admin.destinations.prefetch import Fetch, prefetch
from synapse_federation_admin.destinations.query import (
    DESTINATION_COLUMNS,
    by_name,
    conditions,
    is_of_failing,
    names_between,
)
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    Position,
    Sort,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql, can_be_stored, where

T = TypeVar("T")

# Through how many names a page is looked for, before it takes a pass over the table.
_WINDOW = 8000

# How many rows a long list takes at a time: where the primary key leads the database to
# them, and where each time may cost a pass.
_PIECE = 4000
_PASS_PIECE = 20_000

# How many of the requests that cost a pass over the table may use the database at once.
_MAX_PASSES = 2

# How long PostgreSQL is not asked again which indexes there are.
_LOOK_AGAIN_MS = 10_000


class DestinationReader:
    """Reads from Synapse's table `destinations`, never from a cache.

    Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver, tables: Tables) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._passes = homeserver.linearizer("federation_admin_passes", _MAX_PASSES)
        self._indexes: Collection[str] = ()
        self._looked_ts = 0

    async def count(self, wanted: DestinationFilter) -> int:
        """Count what a filter keeps; once for all who ask at the same time."""
        if not await self._prepare(wanted):
            return 0

        def count_txn(txn: LoggingTransaction) -> int:
            kept = where(self._conditions(wanted))
            txn.execute(f"SELECT COUNT(*) FROM destinations {kept.text}", kept.args)  # noqa: S608
            ((count,),) = txn.fetchall()
            return int(count)

        return await self._homeserver.single_flight.run(
            "federation_admin_count", wanted, lambda: self._pass(count_txn)
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
        if limit == 0 or not await self._prepare(wanted):
            return []
        read_txn = self._reading(wanted, sort, after, limit, reverse)
        if sort.is_by_name and wanted.keeps_all:
            return await self._run(read_txn)
        return await self._homeserver.single_flight.run(
            "federation_admin_read",
            (wanted, sort, after, limit, reverse),
            lambda: self._pass(read_txn),
        )

    def _reading(
        self,
        wanted: DestinationFilter,
        sort: Sort,
        after: Position | None,
        limit: int,
        reverse: bool,
    ) -> Callable[[LoggingTransaction], list[Destination]]:
        """Return what reads the next rows of a list in a transaction."""

        def read_txn(txn: LoggingTransaction) -> list[Destination]:
            indexes = self._usable_indexes(txn)
            rows: list[Destination] = []
            for segment in segments(sort, after, indexes, reverse=reverse):
                if len(rows) < limit:
                    left = limit - len(rows)
                    rows += self._read_txn(txn, segment, wanted, left, indexes)
            return rows

        return read_txn

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
        if limit is not None and limit <= _PIECE:
            found = await self.read(wanted, sort, after, limit)
            if found:
                yield found
            return
        if not await self._prepare(wanted):
            return
        if sort.is_by_name and not wanted.keeps_all:
            fetch = self._windows(wanted, sort)
        else:
            fetch = self._blocks(
                wanted, sort, _PIECE if sort.is_by_name else _PASS_PIECE
            )
        async with aclosing(prefetch(fetch, after, limit)) as pieces:
            async for rows in pieces:
                for start in range(0, len(rows), _PIECE):
                    yield rows[start : start + _PIECE]

    def _blocks(self, wanted: DestinationFilter, sort: Sort, size: int) -> Fetch:
        """Return what reads a long list a number of rows at a time."""

        async def fetch(
            after: Position | None, most: int
        ) -> tuple[list[Destination], Position | None]:
            count = min(size, most)
            # Each for itself: what many wait for is kept for longer than it is needed.
            rows = await self._pass(self._reading(wanted, sort, after, count, False))
            return rows, sort.position_of(rows[-1]) if len(rows) == count else None

        return fetch

    def _windows(self, wanted: DestinationFilter, sort: Sort) -> Fetch:
        """Return what reads a long list by name that a filter thins out.

        It goes through the names: in the end it needs all of them.
        """

        async def fetch(
            after: Position | None, most: int
        ) -> tuple[list[Destination], Position | None]:
            (segment,) = segments(sort, after, (), reverse=False)
            end, rows = await self._pass(
                lambda txn: self._window_txn(txn, segment, wanted, _PIECE, most)
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

    async def _position_at(
        self, wanted: DestinationFilter, sort: Sort, skipped: int, reverse: bool
    ) -> Position | None:
        """Return the position of the row behind `skipped` others."""
        is_by_key = sort.is_by_name and wanted.keeps_all
        if is_by_key or (self._homeserver.is_postgres and skipped >= _PIECE):
            return await self._pass(
                partial(
                    self._skip_txn,
                    wanted=wanted,
                    sort=sort,
                    skipped=skipped,
                    reverse=reverse,
                )
            )
        # SQLite sorts what it skips: too much at once would take it long.
        position = None
        left = skipped + 1
        while left:
            count = min(left, _PASS_PIECE)
            rows = await self.read(wanted, sort, position, count, reverse=reverse)
            if len(rows) < count:
                return None
            left -= count
            position = sort.position_of(rows[-1])
        return position

    def _skip_txn(
        self,
        txn: LoggingTransaction,
        wanted: DestinationFilter,
        sort: Sort,
        skipped: int,
        reverse: bool,
    ) -> Position | None:
        kept = where(self._conditions(wanted))
        # The name alone is in the primary key, which is then all that is read.
        columns = "destination" if sort.is_by_name else DESTINATION_COLUMNS
        txn.execute(
            f"SELECT {columns} FROM destinations {kept.text} "  # noqa: S608
            f"ORDER BY {whole_order(sort, reverse=reverse)} LIMIT 1 OFFSET ?",
            (*kept.args, skipped),
        )
        row = txn.fetchone()
        if row is None:
            return None
        if sort.is_by_name:
            return Position(None, row[0])
        return sort.position_of(Destination(*row))

    def _read_txn(
        self,
        txn: LoggingTransaction,
        segment: Segment,
        wanted: DestinationFilter,
        limit: int,
        indexes: Collection[str],
    ) -> list[Destination]:
        """Read the first rows of a segment."""
        which = [*segment.where, *self._conditions(wanted)]
        source = self._source(segment, wanted, indexes)
        if source is not None:
            return _select(txn, source, which, segment.order, limit)
        rows: list[Destination] = []
        if segment.index is None:
            size = max(_WINDOW, 2 * limit)
            end, rows = self._window_txn(txn, segment, wanted, size, limit)
            if end is None or len(rows) == limit:
                return rows
            which += names_between(end, None, segment.names)
        source = "destinations"
        if not self._homeserver.is_postgres:
            # The primary key would lead it to each row, all over the file.
            source = "destinations NOT INDEXED"
        return rows + _select(txn, source, which, segment.order, limit - len(rows))

    def _source(
        self, segment: Segment, wanted: DestinationFilter, indexes: Collection[str]
    ) -> str | None:
        """Return the FROM of the statement that reads a segment at once.

        None if no index serves it, or if the primary key does, and nobody can know
        through how many rows.
        """
        if self._homeserver.is_postgres:
            # It knows which index serves, and how many rows meet all conditions but
            # those for names.
            is_guess = wanted.has_pattern and segment.index is None
            return None if is_guess else "destinations"
        index = segment.index
        if index is None and is_of_failing(wanted):
            index = "federation_admin_failing"
        if index in indexes and not wanted.has_pattern:
            return f"destinations INDEXED BY {index}"
        if wanted.keeps_all and not segment.conditions:
            return "destinations"
        return None

    def _window_txn(
        self,
        txn: LoggingTransaction,
        segment: Segment,
        wanted: DestinationFilter,
        size: int,
        limit: int,
    ) -> tuple[str | None, list[Destination]]:
        """Read what a segment by name has in the next rows of the table by name.

        Args:
            txn: The transaction.
            segment: The segment.
            wanted: Which rows to keep.
            size: How many rows of the table the window has.
            limit: The most rows to return.

        Returns:
            The name at the end of the window, or None if no row lies behind, and the
            rows.
        """
        behind = where(names_between(segment.after, None, segment.names))
        txn.execute(
            f"SELECT destination FROM destinations {behind.text} "  # noqa: S608
            f"ORDER BY {by_name(segment.names)} LIMIT 1 OFFSET ?",
            (*behind.args, size - 1),
        )
        row = txn.fetchone()
        end = row[0] if row else None
        which = [
            *segment.where,
            *names_between(None, end, segment.names),
            *self._conditions(wanted),
        ]
        return end, _select(txn, "destinations", which, segment.order, limit)

    def _conditions(self, wanted: DestinationFilter) -> list[Sql]:
        """Return the conditions of a filter, as of now."""
        return conditions(
            wanted,
            self._homeserver.now_ms(),
            like_folds_case=not self._homeserver.is_postgres,
        )

    def _usable_indexes(self, txn: LoggingTransaction) -> Collection[str]:
        """Return which of the optional indexes there are, ready for use.

        On PostgreSQL it is enough to know that roughly: it finds the best plan itself.
        """
        on_postgres = self._homeserver.is_postgres
        now_ms = self._homeserver.now_ms()
        if not on_postgres or not 0 <= now_ms - self._looked_ts < _LOOK_AGAIN_MS:
            self._indexes = usable_indexes(txn, on_postgres=on_postgres)
            self._looked_ts = now_ms
        return self._indexes

    async def _prepare(self, wanted: DestinationFilter) -> bool:
        """Have the tables be there that a filter looks into.

        Returns:
            Whether a row can meet the filter at all.
        """
        if wanted.failures:
            await self._tables.ready(anew=True)
        return can_be_stored(wanted.name_contains) and can_be_stored(wanted.name_glob)

    async def _pass(self, func: Callable[[LoggingTransaction], T]) -> T:
        """Run a transaction that may cost a pass over the table, in its turn."""
        async with self._passes("pass"):
            return await self._run(func)

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._homeserver.run_db_interaction(
            "federation_admin_list_destinations", func
        )


def _select(
    txn: LoggingTransaction, source: str, which: Sequence[Sql], order: str, limit: int
) -> list[Destination]:
    """Return rows.

    Args:
        txn: The transaction.
        source: What stands behind FROM: the table, and which index to read it by.
        which: The conditions.
        order: The ORDER BY.
        limit: The most rows to return.
    """
    kept = where(which)
    txn.execute(
        f"SELECT {DESTINATION_COLUMNS} FROM {source} {kept.text} "  # noqa: S608
        f"ORDER BY {order} LIMIT ?",
        (*kept.args, limit),
    )
    return list(map(Destination._make, txn.fetchall()))
