# SPDX-License-Identifier: Apache-2.0
"""Reads sorted, filtered lists of destinations in pieces that hold nobody up.

On PostgreSQL a piece is one statement. On SQLite, where the whole homeserver shares one
connection, a list that no index serves is read in small pieces, each in a transaction
of its own, between which the homeserver's own work goes on.
"""

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import attr
from synapse.module_api import (
    LoggingTransaction,
    make_deferred_yieldable,
    run_in_background,
)
from twisted.internet.defer import Deferred

from synapse_federation_admin.destinations.order import (
    Segment,
    segments,
    whole_order,
)
from synapse_federation_admin.destinations.query import (
    BEYOND,
    DESTINATION_COLUMNS,
    Sql,
    can_be_stored,
    conditions,
    is_of_failing,
    where,
)
from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.models import (
    Destination,
    DestinationFilter,
    Direction,
    Position,
    Sort,
)

# How many rows one transaction looks at on SQLite, some 10 ms: of those next to each
# other by name, and of those next to each other in the table, which it reads far
# faster.
_WINDOW = 4000
_TABLE_PIECE = 100_000

# A page looks through so many windows before it takes one pass over the table instead.
_MAX_WINDOWS = 3
_FIRST_WINDOW = 1000

# How many rows a long list takes at a time: where an index leads the database to them,
# and where each time costs a pass.
_LONG_PIECE = 4000
_PASS_PIECE = 20_000

# How many index entries one transaction skips on SQLite.
_HOP = 200_000

# How many of the requests that cost a pass over the table may use the database at once.
_MAX_PASSES = 2


# Reads rows of a list from behind a position on, at most so many, and tells the
# position behind them; None if there are no more.
_Fetch = Callable[
    [Position | None, int], Awaitable[tuple[list[Destination], Position | None]]
]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Begun:
    """What a first transaction has read.

    Attributes:
        rows: The rows that it found.
        rest: The segments that are to be read in pieces.
    """

    rows: list[Destination]
    rest: list[Segment]


class DestinationReader:
    """Reads from Synapse's table `destinations`, never from a cache.

    Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self._passes = homeserver.linearizer("federation_admin_passes", _MAX_PASSES)

    async def count(self, wanted: DestinationFilter) -> int:
        """Count what a filter keeps; once for all who ask at the same time."""
        if not _is_possible(wanted):
            return 0
        return await self._homeserver.compute_once(
            ("count", wanted), lambda: self._count(wanted)
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
        if sort.is_by_name and wanted.keeps_all:
            return await self._read(wanted, sort, after, limit, reverse)
        return await self._homeserver.compute_once(
            ("read", wanted, sort, after, limit, reverse),
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
        if sort.is_by_name and not wanted.keeps_all:
            fetch = self._windows(wanted, sort)
        else:
            size = await self._piece_size(wanted, sort, after)
            fetch = self._blocks(wanted, sort, size)
        async with aclosing(_read_ahead(fetch, after, limit)) as pieces:
            async for rows in pieces:
                for start in range(0, len(rows), _LONG_PIECE):
                    yield rows[start : start + _LONG_PIECE]

    async def _piece_size(
        self, wanted: DestinationFilter, sort: Sort, after: Position | None
    ) -> int:
        """Return how many rows of a long list to take at a time."""
        if sort.is_by_name:
            return _LONG_PIECE
        segment = segments(sort, after, split_ties=True)[0]
        usable = await self._homeserver.run_db_interaction(
            "federation_admin_indexes", self._usable_indexes
        )
        is_indexed = segment.index in usable and not wanted.has_pattern
        return _LONG_PIECE if is_indexed else _PASS_PIECE

    def _blocks(self, wanted: DestinationFilter, sort: Sort, size: int) -> _Fetch:
        """Return what reads a long list a number of rows at a time."""

        async def fetch(
            after: Position | None, most: int
        ) -> tuple[list[Destination], Position | None]:
            count = min(size, most)
            rows = await self._read_as_pass(wanted, sort, after, count, False)
            return rows, sort.position_of(rows[-1]) if len(rows) == count else None

        return fetch

    def _windows(self, wanted: DestinationFilter, sort: Sort) -> _Fetch:
        """Return what reads a long list by name that a filter thins out."""

        async def fetch(
            after: Position | None, most: int
        ) -> tuple[list[Destination], Position | None]:
            (segment,) = segments(sort, after, split_ties=False)
            async with self._passes("read"):
                end, rows = await self._read_window(
                    wanted, segment, segment.after, _WINDOW, most
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
        return await self._homeserver.compute_once(
            ("position", wanted, sort, skipped, reverse),
            lambda: self._position_at(wanted, sort, skipped, reverse),
        )

    # -- on either database ----------------------------------------------------------

    async def _count(self, wanted: DestinationFilter) -> int:
        async with self._passes("count"):
            if self._homeserver.is_postgres or wanted.keeps_all:
                which = self._conditions(wanted)
                return await self._homeserver.run_db_interaction(
                    "federation_admin_count_destinations",
                    lambda txn: _count(txn, which),
                )
            total = 0
            async for piece in self._row_pieces(_TABLE_PIECE):
                which = [*self._conditions(wanted), piece]
                total += await self._homeserver.run_db_interaction(
                    "federation_admin_count_destinations",
                    lambda txn, which=which: _count(txn, which),  # type: ignore[misc]
                )
            return total

    async def _read_as_pass(
        self,
        wanted: DestinationFilter,
        sort: Sort,
        after: Position | None,
        limit: int,
        reverse: bool,
    ) -> list[Destination]:
        async with self._passes("read"):
            return await self._read(wanted, sort, after, limit, reverse)

    async def _read(
        self,
        wanted: DestinationFilter,
        sort: Sort,
        after: Position | None,
        limit: int,
        reverse: bool,
    ) -> list[Destination]:
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
            which = [*segment.where, *self._conditions(wanted)]
            rows += _select(txn, source, which, segment.order, limit - len(rows))
        return _Begun(rows, [])

    def _source(
        self, segment: Segment, wanted: DestinationFilter, usable: set[str]
    ) -> str | None:
        """Return the FROM of the one statement that reads a segment.

        None if it is to be read in pieces.
        """
        if self._homeserver.is_postgres:
            return "destinations"
        index = segment.index
        if index is None and is_of_failing(wanted):
            index = "federation_admin_failing"
        if index in usable and not wanted.has_pattern:
            return f"destinations INDEXED BY {index}"
        if wanted.keeps_all and not segment.conditions:
            return "destinations"
        return None

    def _usable_indexes(self, txn: LoggingTransaction) -> set[str]:
        """Return which of the optional indexes there are, ready for use."""
        if self._homeserver.is_postgres:
            txn.execute(
                "SELECT c.relname FROM pg_index AS i "
                "INNER JOIN pg_class AS c ON c.oid = i.indexrelid "
                "WHERE i.indrelid = 'destinations'::regclass AND i.indisvalid"
            )
        else:
            txn.execute(
                "SELECT name FROM sqlite_master "
                "WHERE type = 'index' AND tbl_name = 'destinations'"
            )
        return {name for (name,) in txn}

    async def _position_at(
        self, wanted: DestinationFilter, sort: Sort, skipped: int, reverse: bool
    ) -> Position | None:
        """Return the position of the row behind `skipped` others."""
        if sort.is_by_name and wanted.keeps_all:
            return await self._hop(sort, skipped, reverse)
        if not self._homeserver.is_postgres or skipped < _LONG_PIECE:
            position = None
            left = skipped + 1
            while left:
                count = min(left, _PASS_PIECE)
                rows = await self._read_as_pass(wanted, sort, position, count, reverse)
                if len(rows) < count:
                    return None
                left -= count
                position = sort.position_of(rows[-1])
            return position
        async with self._passes("position"):
            rows = await self._homeserver.run_db_interaction(
                "federation_admin_skip_destinations",
                lambda txn: _select(
                    txn,
                    "destinations",
                    self._conditions(wanted),
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
            count = left if self._homeserver.is_postgres else min(left, _HOP)
            name = await self._homeserver.run_db_interaction(
                "federation_admin_skip_destinations",
                lambda txn, segment=segment, count=count: _name_at(  # type: ignore[misc]
                    txn, segment.after, segment.names, count
                ),
            )
            if name is None:
                return None
            left -= count
        assert name is not None
        return Position(None, name)

    def _conditions(self, wanted: DestinationFilter) -> list[Sql]:
        return conditions(
            wanted,
            self._homeserver.now_ms(),
            like_folds_case=not self._homeserver.is_postgres,
        )

    # -- on SQLite, in pieces --------------------------------------------------------

    async def _read_in_pieces(
        self, wanted: DestinationFilter, sort: Sort, segment: Segment, limit: int
    ) -> list[Destination]:
        if segment.value is not None:
            return await self._read_top(wanted, sort, segment, limit)
        rows: list[Destination] = []
        size = min(max(_FIRST_WINDOW, 2 * limit), _WINDOW)
        after = segment.after
        for _ in range(_MAX_WINDOWS):
            after, found = await self._read_window(
                wanted, segment, after, size, limit - len(rows)
            )
            rows += found
            if after is None or len(rows) == limit:
                return rows
            size = min(2 * size, _WINDOW)
        rest = attr.evolve(segment, after=after)
        return rows + await self._read_top(wanted, sort, rest, limit - len(rows))

    async def _read_window(
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
        which = [*segment.conditions, *self._conditions(wanted)]

        def window_txn(
            txn: LoggingTransaction,
        ) -> tuple[str | None, list[Destination]]:
            end = _name_at(txn, after, segment.names, size)
            window = [*which, *_between(after, end, segment.names)]
            return end, _select(txn, "destinations", window, segment.order, limit)

        return await self._homeserver.run_db_interaction(
            "federation_admin_list_destinations", window_txn
        )

    async def _read_top(
        self, wanted: DestinationFilter, sort: Sort, segment: Segment, limit: int
    ) -> list[Destination]:
        """Read the first rows of a segment in one pass over the table."""
        which = [*segment.where, *self._conditions(wanted)]
        top: list[Destination] = []
        # The first pieces return `limit` rows each.
        size = _TABLE_PIECE if limit <= _LONG_PIECE else _WINDOW
        async for piece in self._row_pieces(size):

            def top_txn(
                txn: LoggingTransaction,
                piece: Sql = piece,
                top: list[Destination] = top,
            ) -> list[Destination]:
                better = [piece, *which]
                if len(top) == limit:
                    better.append(segment.before(sort.position_of(top[-1])))
                source = "destinations NOT INDEXED"
                found = _select(txn, source, better, segment.order, limit)
                return _merge(sort, segment, top, found)[:limit] if found else top

            top = await self._homeserver.run_db_interaction(
                "federation_admin_list_destinations", top_txn
            )
        return top

    async def _row_pieces(self, size: int) -> AsyncGenerator[Sql, None]:
        """Yield conditions that cut the table into pieces."""
        last = await self._homeserver.run_db_interaction(
            "federation_admin_last_destination", _last_row_id
        )
        for begin in range(0, last, size):
            yield Sql("rowid > ? AND rowid <= ?", (begin, begin + size))


async def _read_ahead(
    fetch: _Fetch, after: Position | None, limit: int | None
) -> AsyncGenerator[list[Destination], None]:
    """Yield what a function fetches, and have it fetch the next while that is used."""
    left = limit if limit is not None else sys.maxsize
    pending: Deferred[tuple[list[Destination], Position | None]] | None
    pending = run_in_background(fetch, after, left) if left else None
    try:
        while pending is not None:
            rows, after = await make_deferred_yieldable(pending)
            pending = None
            left -= len(rows)
            if after is not None and left > 0:
                pending = run_in_background(fetch, after, left)
            if rows:
                yield rows
    finally:
        if pending is not None:
            # Nobody wants it any more. It ends before the request does.
            pending.addErrback(lambda _: None)
            await make_deferred_yieldable(pending)


def _is_possible(wanted: DestinationFilter) -> bool:
    return can_be_stored(wanted.name_contains) and can_be_stored(wanted.name_glob)


def _select(
    txn: LoggingTransaction,
    source: str,
    which: Sequence[Sql],
    order: str,
    limit: int,
    offset: int = 0,
) -> list[Destination]:
    condition = where(which)
    txn.execute(
        f"SELECT {DESTINATION_COLUMNS} FROM {source} {condition.text} "  # noqa: S608
        f"ORDER BY {order} LIMIT ? OFFSET ?",
        (*condition.args, limit, offset),
    )
    return list(map(Destination._make, txn.fetchall()))


def _count(txn: LoggingTransaction, which: Sequence[Sql]) -> int:
    condition = where(which)
    txn.execute(
        f"SELECT COUNT(*) FROM destinations {condition.text}",  # noqa: S608
        condition.args,
    )
    row = txn.fetchone()
    assert row is not None
    return int(row[0])


def _name_at(
    txn: LoggingTransaction, after: str | None, direction: Direction, count: int
) -> str | None:
    """Return the name of the `count`th row behind a name; None if there are fewer."""
    condition = where(_between(after, None, direction))
    txn.execute(
        f"SELECT destination FROM destinations {condition.text} "  # noqa: S608
        f"ORDER BY destination {BEYOND[direction][1]} LIMIT 1 OFFSET ?",
        (*condition.args, count - 1),
    )
    row = txn.fetchone()
    return row[0] if row else None


def _between(after: str | None, upto: str | None, direction: Direction) -> list[Sql]:
    """Return the conditions for names behind one, up to another and with it."""
    beyond, within = (">", "<=") if direction is Direction.FORWARDS else ("<", ">=")
    found = []
    if after is not None:
        found.append(Sql(f"destination {beyond} ?", (after,)))
    if upto is not None:
        found.append(Sql(f"destination {within} ?", (upto,)))
    return found


def _last_row_id(txn: LoggingTransaction) -> int:
    txn.execute("SELECT MAX(rowid) FROM destinations")
    row = txn.fetchone()
    return int(row[0] or 0) if row else 0


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
