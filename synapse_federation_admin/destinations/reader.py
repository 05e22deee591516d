# SPDX-License-Identifier: Apache-2.0
"""Reads lists of destinations: pages, long lists, counts and jumps.

Whatever may cost a pass over the table is read once for all who ask for the same at the
same time, and only a few such at a time.

One file of over 400 lines: by which way a page is found is decided at one place.
"""

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import attr
from synapse.module_api import (
    LoggingTransaction,
    make_deferred_yieldable,
    run_in_background,
)
from twisted.internet.defer import Deferred

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.indexes import DestinationIndexes
from synapse_federation_admin.destinations.invalid import InvalidNames
from synapse_federation_admin.destinations.order import Segment, segments
from synapse_federation_admin.destinations.query import (
    DESTINATION_COLUMNS,
    by_name,
    conditions,
    is_of_failing,
    names_between,
    rows_txn,
)
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    Position,
    Sort,
)
from synapse_federation_admin.homeserver.features import Feature, Features
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import (
    FAILING,
    Sql,
    any_of,
    can_be_stored,
    where,
)

T = TypeVar("T")

# Through how many names a page is looked for at first, and then, on SQLite; PostgreSQL
# ends at the last row that is wanted, and begins with the second. And through how many
# at the most, where that is likely to find the rest. After so many times, it takes a
# pass over the table.
_WINDOWS = (1000, 8000)
_LARGEST_WINDOW = 32_000
_MOST_WINDOWS = 3

# How many rows a long list takes at a time: where the primary key leads the database to
# them, and where each time may cost a pass.
_PIECE = 4000
_PASS_PIECE = 20_000

# From how many skipped rows on SQLite sorts faster without a LIMIT: 0.6 s in place of
# 2.7 in the midst of a million. With one it keeps what it skips in a tree.
_LONG = 50_000


class DestinationReader:
    """Reads from Synapse's table `destinations`, never from a cache.

    Attributes:
        homeserver: The homeserver.
        tables: The tables of the module's own.
        indexes: The optional indexes.
        invalid: The names that are none of servers.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        tables: Tables,
        features: Features,
        indexes: DestinationIndexes,
        invalid: InvalidNames,
    ) -> None:
        self.homeserver = homeserver
        self.tables = tables
        self.indexes = indexes
        self.invalid = invalid
        self._features = features
        self._passes = homeserver.linearizer(
            "federation_admin_passes", limits.TABLE_PASSES
        )

    def of(self, wanted: DestinationFilter, sort: Sort) -> "DestinationList":
        """Return the list of what a filter keeps, in an order; nothing is read yet.

        Raises:
            FeatureOffError: The filter is for what is not recorded.
        """
        if wanted.failures:
            self._features.require(Feature.HISTORY)
        return DestinationList(self, wanted, sort)

    async def pass_over(self, read: Callable[[], Awaitable[T]]) -> T:
        """Await what may cost a pass over the table, in its turn."""
        async with self._passes("pass"):
            return await read()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class DestinationList:
    """The destinations that a filter keeps, in an order.

    Every method raises what the database raises.
    """

    _reader: DestinationReader
    wanted: DestinationFilter
    sort: Sort

    @property
    def key(self) -> Hashable:
        """Equal for equal lists."""
        return (self.wanted, self.sort)

    def position_of(self, row: Destination) -> Position:
        """Return the position behind a row."""
        return self.sort.position_of(row)

    async def count(self) -> int:
        """Count all rows; once for all who ask at the same time."""
        if not await self._prepare():
            return 0

        def count_txn(txn: LoggingTransaction) -> int:
            kept = where(self._conditions())
            statement = f"SELECT COUNT(*) FROM destinations {kept.text}"  # noqa: S608
            ((count,),) = Sql(statement, kept.args).select_txn(txn)
            return int(count)

        return await self._once("count", (), count_txn)

    async def read(self, after: Position | None, limit: int) -> list[Destination]:
        """Read the next rows; once for all who ask at the same time.

        Args:
            after: Where to begin: behind this; None is at the start.
            limit: The most rows to return. All of them are held in memory.
        """
        if limit == 0 or not await self._prepare():
            return []
        read_txn = partial(self._read_txn, after=after, limit=limit)
        if self._is_by_key:
            return await self._run(read_txn)
        return await self._once("read", (after, limit), read_txn)

    async def among(self, names: Sequence[str]) -> dict[str, Destination]:
        """Return, by name, those of some names that fail and that the filter keeps."""
        if not names or not await self._prepare():
            return {}
        these = [any_of("destination", names), Sql(FAILING), *self._conditions()]
        return await self._run(partial(rows_txn, conditions=these))

    async def pieces(
        self, after: Position | None, limit: int = sys.maxsize
    ) -> AsyncGenerator[list[Destination], None]:
        """Read a long list, piece by piece, at the pace of who asks for the pieces.

        No transaction outlives a piece. A row that is there all along is in one piece,
        unless the value that it is sorted by changes. The next rows are read while the
        last are used: else the database rests while rows are written, and the other way
        round.

        Args:
            after: Where to begin: behind this; None is at the start.
            limit: The most rows to return in all.
        """
        if limit <= _PIECE:
            found = await self.read(after, limit)
            if found:
                yield found
            return
        if not await self._prepare():
            return
        most = _PIECE if self._is_by_key else _PASS_PIECE
        size = min(most, limit)
        pending: Deferred[list[Destination]] | None = self._begin_to_read(after, size)
        try:
            while pending is not None:
                reading, pending = pending, None
                rows = await make_deferred_yieldable(reading)
                limit -= len(rows)
                if len(rows) == size and limit:
                    size = min(most, limit)
                    pending = self._begin_to_read(self.position_of(rows[-1]), size)
                for start in range(0, len(rows), _PIECE):
                    yield rows[start : start + _PIECE]
        finally:
            if pending is not None:
                # Nobody wants it any more. It ends before the request does.
                pending.addErrback(lambda _: None)
                await make_deferred_yieldable(pending)

    def _begin_to_read(
        self, after: Position | None, limit: int
    ) -> "Deferred[list[Destination]]":
        """Begin to read rows, for oneself alone.

        What many wait for is kept for longer than it is needed.
        """
        read_txn = partial(self._read_txn, after=after, limit=limit)
        return run_in_background(self._reader.pass_over, partial(self._run, read_txn))

    async def position_at(self, offset: int, total: int) -> Position | None:
        """Return the position behind the first `offset` rows.

        The list is read from the nearer end.

        Args:
            offset: How many rows lie before: from 1 to `total` - 1.
            total: How many rows the list holds.

        Returns:
            The position; None if there are not that many rows any more.
        """
        reverse = offset > total - offset
        skipped = total - offset if reverse else offset - 1
        skip_txn = partial(self._skip_txn, skipped=skipped, reverse=reverse)
        return await self._once("position", (skipped, reverse), skip_txn)

    # -- in a transaction ---------------------------------------------------------

    def _skip_txn(
        self, txn: LoggingTransaction, skipped: int, reverse: bool
    ) -> Position | None:
        """Return the position of the row behind `skipped` others."""
        # The name alone is in the primary key, which is then all that is read.
        columns = "destination" if self.sort.is_by_name else DESTINATION_COLUMNS
        parts = segments(self.sort, None, reverse=reverse)
        for segment in parts:
            kept = where([*segment.where, *self._conditions()])
            if segment is not parts[-1]:
                # No further than is needed to know that it lies in this segment.
                txn.execute(
                    "SELECT COUNT(*) FROM (SELECT 1 FROM destinations "  # noqa: S608
                    f"{kept.text} LIMIT ?) AS ahead",
                    (*kept.args, skipped + 1),
                )
                ((count,),) = txn.fetchall()
                if count <= skipped:
                    skipped -= count
                    continue
            has_limit = (
                self._reader.homeserver.is_postgres
                or not segment.has_value
                or skipped < _LONG
            )
            limit = f"LIMIT 1 OFFSET {skipped}" if has_limit else ""
            txn.execute(
                f"SELECT {columns} FROM destinations {kept.text} "  # noqa: S608
                f"ORDER BY {segment.order} {limit}",
                kept.args,
            )
            row = next(islice(txn, 0 if has_limit else skipped, None), None)
            if row is None:
                return None
            if self.sort.is_by_name:
                return Position(None, row[0])
            return self.position_of(Destination(*row))
        return None

    def _read_txn(
        self, txn: LoggingTransaction, after: Position | None, limit: int
    ) -> list[Destination]:
        """Return the next rows, segment by segment."""
        rows: list[Destination] = []
        for segment in segments(
            self.sort, after, indexed=self._reader.indexes.are_ready
        ):
            if len(rows) < limit:
                rows += self._segment_txn(txn, segment, limit - len(rows))
        return rows

    def _segment_txn(
        self, txn: LoggingTransaction, segment: Segment, limit: int
    ) -> list[Destination]:
        """Return the first rows of a segment."""
        which = [*segment.where, *self._conditions()]
        source, order = Sql("destinations"), segment.order
        rows: list[Destination] = []
        is_postgres = self._reader.homeserver.is_postgres
        if self._is_guess(segment):
            after, looked, size = segment.after, 0, _WINDOWS[is_postgres]
            for _ in range(_MOST_WINDOWS):
                size = max(size, 2 * limit)
                found, end = self._window_txn(
                    txn, segment, after, size, limit - len(rows)
                )
                rows += found
                if end is None or len(rows) == limit:
                    return rows
                after, looked, size = end, looked + size, _WINDOWS[1]
                if looked >= size:
                    # Twice as many as hold the rest, if it goes on like this.
                    size = 2 * looked * (limit - len(rows)) // max(len(rows), 1)
                    if size > _LARGEST_WINDOW:
                        break
            which += names_between(after, None, segment.names)
            # The primary key would lead it to each row, all over the file.
            if is_postgres:
                order = order.replace("destination", "destination || ''")
            else:
                source = Sql("destinations NOT INDEXED")
        return rows + _select(txn, source, which, order, limit - len(rows))

    def _window_txn(
        self,
        txn: LoggingTransaction,
        segment: Segment,
        after: str | None,
        size: int,
        limit: int,
    ) -> tuple[list[Destination], str | None]:
        """Return the first rows of a segment that are among the next `size` names.

        Returns:
            The rows, and the last of those names; None if none lies behind, or if there
            are enough rows.
        """
        which = [*segment.where, *self._conditions()]
        behind = where(names_between(after, None, segment.names))
        by = f"{behind.text} ORDER BY {by_name(segment.names)}"
        names = "SELECT destination FROM destinations"
        last = Sql(f"{names} {by} LIMIT 1 OFFSET {size - 1}", behind.args)
        if not self._reader.homeserver.is_postgres:
            # It counts quickly, and tells by the name alone whether to read a row.
            found = last.select_txn(txn)
            end = found[0][0] if found else None
            which += names_between(after, end, segment.names)
            table = Sql("destinations")
            return _select(txn, table, which, segment.order, limit), end
        # It is read up to the last row that is wanted, and counted only then.
        window = Sql(
            f"(SELECT {DESTINATION_COLUMNS} FROM destinations {by} "  # noqa: S608
            f"LIMIT {size}) AS destinations",
            behind.args,
        )
        rows = _select(txn, window, which, segment.order, limit)
        found = last.select_txn(txn) if len(rows) < limit else []
        return rows, found[0][0] if found else None

    def _is_guess(self, segment: Segment) -> bool:
        """Tell whether nobody can know through how many rows a segment is read.

        Then it is looked for in some rows of the table by name first.
        """
        are_indexed = self._reader.indexes.are_ready
        if segment.has_value or (are_indexed and is_of_failing(self.wanted)):
            # Sorted, or by an index.
            return False
        return bool(segment.conditions) or not self.wanted.keeps_all

    def _conditions(self) -> list[Sql]:
        """Return the conditions of the filter, as of now."""
        homeserver = self._reader.homeserver
        return conditions(
            self.wanted,
            homeserver.now_ms(),
            self._reader.invalid.names,
            is_postgres=homeserver.is_postgres,
        )

    # -- how it comes to one ------------------------------------------------------

    @property
    def _is_by_key(self) -> bool:
        """Whether the primary key alone leads to each page."""
        return self.sort.is_by_name and self.wanted.keeps_all

    async def _prepare(self) -> bool:
        """Have known what has to be, for the filter.

        Returns:
            Whether a row can meet the filter at all.
        """
        if self.wanted.statuses:
            await self._reader.invalid.find()
        return can_be_stored(self.wanted.name_contains + self.wanted.name_glob)

    async def _once(
        self, what: str, which: Hashable, func: Callable[[LoggingTransaction], T]
    ) -> T:
        """Run what may cost a pass, once for all who ask for it at the same time."""
        return await self._reader.homeserver.single_flight.run(
            f"federation_admin_{what}",
            (self.key, which),
            lambda: self._reader.pass_over(partial(self._run, func)),
        )

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        """Run a transaction; our own tables are needed by some filters only."""
        reader = self._reader
        own = self.wanted.failures
        run = reader.tables.run if own else reader.homeserver.run_db_interaction
        return await run("federation_admin_list_destinations", func)


def _select(
    txn: LoggingTransaction, source: Sql, which: Sequence[Sql], order: str, limit: int
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
        f"SELECT {DESTINATION_COLUMNS} FROM {source.text} {kept.text} "  # noqa: S608
        f"ORDER BY {order} LIMIT ?",
        (*source.args, *kept.args, limit),
    )
    return list(map(Destination._make, txn.fetchall()))
