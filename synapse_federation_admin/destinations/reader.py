# SPDX-License-Identifier: Apache-2.0
"""Reads sorted, filtered lists of destinations in pieces that hold nobody up.

On PostgreSQL a piece is one statement. On SQLite, where the whole homeserver shares one
connection, a list that no index serves is read in small pieces, each in a transaction
of its own, between which the homeserver's own work goes on.
"""

from collections.abc import AsyncGenerator, Sequence

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.order import (
    Segment,
    segments,
    whole_order,
)
from synapse_federation_admin.destinations.query import (
    BEYOND,
    DESTINATION_COLUMNS,
    Sql,
    all_of,
    can_be_stored,
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

# How many rows one transaction looks at on SQLite, some 10 ms: of those next to each
# other by name, and of those next to each other in the table, which it reads far
# faster.
_WINDOW = 4000
_TABLE_PIECE = 20_000

# A page looks through so many windows before it takes one pass over the table instead.
_MAX_WINDOWS = 3
_FIRST_WINDOW = 1000

# How many rows a long list takes at a time: where the database goes straight to them,
# where an optional index leads it there, and where each time costs a pass.
_PIECE = 1000
_INDEXED_PIECE = 4000
_PASS_PIECE = 20_000

# How many index entries one transaction skips on SQLite.
_HOP = 200_000

# How many of the requests that cost a pass over the table may use the database at once.
_MAX_PASSES = 2


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
            async for rows in self._windows(wanted, sort, after, limit):
                yield rows
            return
        size = _PIECE
        if not sort.is_by_name:
            size = _PASS_PIECE
            (segment, *_) = segments(sort, after, split_ties=True)
            usable = await self._homeserver.run_db_interaction(
                "federation_admin_indexes", self._usable_indexes
            )
            if segment.index in usable and not wanted.has_pattern:
                size = _INDEXED_PIECE
        left = limit
        while left is None or left > 0:
            count = size if left is None else min(size, left)
            rows = await self._read_as_pass(wanted, sort, after, count, False)
            for begin in range(0, len(rows), _PIECE):
                yield rows[begin : begin + _PIECE]
            if len(rows) < count:
                return
            after = sort.position_of(rows[-1])
            left = None if left is None else left - count

    async def _windows(
        self,
        wanted: DestinationFilter,
        sort: Sort,
        position: Position | None,
        limit: int | None,
    ) -> AsyncGenerator[list[Destination], None]:
        """Read a long list by name that a filter thins out."""
        (segment,) = segments(sort, position, split_ties=False)
        after = segment.after
        left = _WINDOW if limit is None else limit
        while left:
            async with self._passes("read"):
                after, rows = await self._read_window(
                    wanted, segment, after, _WINDOW, left
                )
            if rows:
                yield rows
            if after is None:
                return
            if limit is not None:
                left -= len(rows)

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
                where = self._conditions(wanted)
                return await self._homeserver.run_db_interaction(
                    "federation_admin_count_destinations",
                    lambda txn: _count(txn, where),
                )
            total = 0
            async for piece in self._row_pieces():
                where = [*self._conditions(wanted), piece]
                total += await self._homeserver.run_db_interaction(
                    "federation_admin_count_destinations",
                    lambda txn, where=where: _count(txn, where),  # type: ignore[misc]
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
            where = [*segment.where, *self._conditions(wanted)]
            rows += _select(txn, source, where, segment.order, limit - len(rows))
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
        if not self._homeserver.is_postgres or skipped < _PIECE:
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
        where = [*segment.conditions, *self._conditions(wanted)]

        def window_txn(
            txn: LoggingTransaction,
        ) -> tuple[str | None, list[Destination]]:
            end = _name_at(txn, after, segment.names, size)
            window = [*where, *_between(after, end, segment.names)]
            return end, _select(txn, "destinations", window, segment.order, limit)

        return await self._homeserver.run_db_interaction(
            "federation_admin_list_destinations", window_txn
        )

    async def _read_top(
        self, wanted: DestinationFilter, sort: Sort, segment: Segment, limit: int
    ) -> list[Destination]:
        """Read the first rows of a segment in one pass over the table."""
        where = [*segment.where, *self._conditions(wanted)]
        top: list[Destination] = []
        async for piece in self._row_pieces():

            def top_txn(
                txn: LoggingTransaction,
                piece: Sql = piece,
                top: list[Destination] = top,
            ) -> list[Destination]:
                better = [piece, *where]
                if len(top) == limit:
                    better.append(segment.before(sort.position_of(top[-1])))
                source = "destinations NOT INDEXED"
                found = _select(txn, source, better, segment.order, limit)
                return _merge(sort, segment, top, found)[:limit] if found else top

            top = await self._homeserver.run_db_interaction(
                "federation_admin_list_destinations", top_txn
            )
        return top

    async def _row_pieces(self) -> AsyncGenerator[Sql, None]:
        """Yield conditions that cut the table into pieces."""
        last = await self._homeserver.run_db_interaction(
            "federation_admin_last_destination", _last_row_id
        )
        for begin in range(0, last, _TABLE_PIECE):
            yield Sql("rowid > ? AND rowid <= ?", (begin, begin + _TABLE_PIECE))


def _is_possible(wanted: DestinationFilter) -> bool:
    return can_be_stored(wanted.name_contains) and can_be_stored(wanted.name_glob)


def _select(
    txn: LoggingTransaction,
    source: str,
    where: Sequence[Sql],
    order: str,
    limit: int,
    offset: int = 0,
) -> list[Destination]:
    condition = all_of(where)
    txn.execute(
        f"SELECT {DESTINATION_COLUMNS} FROM {source} WHERE {condition.text} "  # noqa: S608
        f"ORDER BY {order} LIMIT ? OFFSET ?",
        (*condition.args, limit, offset),
    )
    return [Destination(*row) for row in txn.fetchall()]


def _count(txn: LoggingTransaction, where: Sequence[Sql]) -> int:
    condition = all_of(where)
    txn.execute(
        f"SELECT COUNT(*) FROM destinations WHERE {condition.text}",  # noqa: S608
        condition.args,
    )
    row = txn.fetchone()
    assert row is not None
    return int(row[0])


def _name_at(
    txn: LoggingTransaction, after: str | None, direction: Direction, count: int
) -> str | None:
    """Return the name of the `count`th row behind a name; None if there are fewer."""
    condition = all_of(_between(after, None, direction))
    txn.execute(
        f"SELECT destination FROM destinations WHERE {condition.text} "  # noqa: S608
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
