# SPDX-License-Identifier: Apache-2.0
"""Sums all destinations up.

On PostgreSQL each table is one statement. On SQLite, where the whole homeserver shares
one connection, each is read in small pieces: the answer takes longer, and nobody else
waits for it.

The destinations are counted for every answer. What waits for them may take seconds to
read, so an answer that would be late takes what was read before.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.backlog import DEVICE_LISTS, TO_DEVICE, Queue
from synapse_federation_admin.destinations.query import (
    FAILING,
    NEXT_RETRY_TS,
    NOT_FAILING,
)
from synapse_federation_admin.destinations.values import (
    BacklogSummary,
    BacklogTotals,
    Counts,
    DestinationStatus,
    FailureAge,
    Summary,
    Unlisted,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import Sql

T = TypeVar("T")


class _Run(Protocol):
    """Runs a function in a transaction."""

    async def __call__(self, func: Callable[[LoggingTransaction], T]) -> T: ...


# How many rows, or names, one transaction looks at on SQLite: some 10 ms.
_DESTINATIONS = 40_000
_ROOMS = 4000
_TO_DEVICE = 2000
_NAMES = 1000

# How many names without a row are named.
_SAMPLE = 10

# After how long an answer goes without waiting for a new backlog; and how long it waits
# at least, which is enough for that of a small homeserver.
_ANSWER_MS = 250
_LEAST_WAIT_MS = 50

# Reading a backlog that takes less is always worth it. After one that takes longer, the
# next is not begun before so many times as long.
_CHEAP_MS = 50
_REST_FACTOR = 10

# On SQLite, how long and how often reading the backlog pauses before each piece while
# destinations are counted: that is what somebody waits for.
_PAUSE_MS = 10
_PAUSES = 10

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS

# By age, how long it is at most. FailureAge.FROM_7D is what is left.
_AGES_MS = {
    FailureAge.UNDER_1H: _HOUR_MS,
    FailureAge.UNDER_1D: _DAY_MS,
    FailureAge.UNDER_7D: 7 * _DAY_MS,
}

# The condition for all rows of a table.
_ALL = Sql("TRUE")


class SummaryStore:
    """Sums all destinations up.

    Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self._is_counting = False
        self._backlog: BacklogSummary | None = None
        # The times, in ms, at which no backlog is read, as the last one was costly.
        self._rest = range(0)

    async def get(self) -> Summary:
        """Return the summary; computed once for all who ask at the same time.

        Where the backlog takes long, it is read to the end for those who ask later.
        """
        began_ms = self._homeserver.now_ms()
        counts = await self._homeserver.compute_once(("summary", "counts"), self._count)
        left_ms = began_ms + _ANSWER_MS - self._homeserver.now_ms()
        try:
            backlog = await self._homeserver.compute_once(
                ("summary", "backlog"),
                self._refresh_backlog,
                timeout_ms=max(left_ms, _LEAST_WAIT_MS),
            )
        except TimeoutError:
            backlog = self._backlog
        return Summary(counts, backlog)

    async def _count(self) -> Counts:
        now_ms = self._homeserver.now_ms()
        self._is_counting = True
        try:
            sums = await self._sums(
                self._run,
                "destinations",
                _DESTINATIONS,
                lambda rows: count_destinations(rows, now_ms),
            )
        finally:
            self._is_counting = False
        total, delivered, failing, failing_delivered, backing_off, *younger = sums
        online = delivered - failing_delivered
        return Counts(
            as_of_ts=now_ms,
            total=total,
            by_status={
                DestinationStatus.ONLINE: online,
                DestinationStatus.UNKNOWN: total - failing - online,
                DestinationStatus.BACKING_OFF: backing_off,
                DestinationStatus.RETRY_DUE: failing - backing_off,
            },
            failing_by_age=_by_age(failing, younger),
        )

    async def _refresh_backlog(self) -> BacklogSummary | None:
        """Read the backlog, unless it is too soon; return the newest that there is."""
        began_ms = self._homeserver.now_ms()
        if began_ms in self._rest:
            return self._backlog
        try:
            self._backlog = await self._read_backlog(began_ms)
        finally:
            ended_ms = self._homeserver.now_ms()
            took_ms = ended_ms - began_ms
            rest_ms = _REST_FACTOR * took_ms if took_ms >= _CHEAP_MS else 0
            self._rest = range(ended_ms, ended_ms + rest_ms)
        return self._backlog

    async def _read_backlog(self, now_ms: int) -> BacklogSummary:
        sendable, never_sent = await self._sums(
            self._run_backlog, "destination_rooms", _ROOMS, count_rooms
        )
        to_device, oldest_ts, oldest_stuck_ts = await self._to_device()
        device_lists = await self._run_backlog(_count_device_lists)
        return BacklogSummary(
            as_of_ts=now_ms,
            totals=BacklogTotals(
                rooms=sendable,
                rooms_never_caught_up=never_sent,
                to_device_messages=to_device,
                oldest_to_device_ts=oldest_ts,
                oldest_stuck_to_device_ts=oldest_stuck_ts,
                device_list_updates=device_lists,
            ),
            unlisted=await self._unlisted(),
        )

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._homeserver.run_db_interaction(
            "federation_admin_summary", func
        )

    async def _run_backlog(self, func: Callable[[LoggingTransaction], T]) -> T:
        for _ in range(_PAUSES):
            if self._homeserver.is_postgres or not self._is_counting:
                break
            await self._homeserver.sleep_ms(_PAUSE_MS)

        def backlog_txn(txn: LoggingTransaction) -> T:
            if self._homeserver.is_postgres:
                # Nobody waits for it: one CPU is enough.
                txn.execute("SET LOCAL max_parallel_workers_per_gather = 0")
            return func(txn)

        return await self._homeserver.run_db_interaction(
            "federation_admin_summary_backlog", backlog_txn
        )

    async def _sums(
        self, run: _Run, table: str, size: int, select: Callable[[Sql], Sql]
    ) -> list[int]:
        """Run a statement that counts, over a table whose rows are rarely deleted.

        Args:
            run: What to run a transaction with.
            table: The table.
            size: How many rows to take at a time on SQLite.
            select: Makes the statement, for the rows that meet a condition.
        """
        if self._homeserver.is_postgres:
            statement = select(_ALL)
            return await run(lambda txn: _one(txn, statement))
        last = Sql(f"SELECT COALESCE(MAX(rowid), 0) FROM {table}")  # noqa: S608
        (last_row_id,) = await run(lambda txn: _one(txn, last))
        sums: list[int] = []
        # From one piece at least, so that there are zeros to return.
        for begin in range(0, max(last_row_id, 1), size):
            statement = select(
                Sql("x.rowid > ? AND x.rowid <= ?", (begin, begin + size))
            )
            counts = await run(lambda txn, s=statement: _one(txn, s))  # type: ignore[misc]
            sums = [
                a + b for a, b in zip(sums or [0] * len(counts), counts, strict=True)
            ]
        return sums

    async def _to_device(self) -> tuple[int, int | None, int | None]:
        """Return how many to-device messages wait, and when the oldest was queued.

        Returns:
            How many; the oldest's time; and that of the oldest for a destination which
            does not fail. Times are None if there is none.
        """
        if self._homeserver.is_postgres:
            statement = sum_to_device(_ALL)
            count, oldest_ts, stuck_ts = await self._run_backlog(
                lambda txn: _one(txn, statement)
            )
            return count, oldest_ts, stuck_ts
        total = 0
        oldest: list[int] = []
        oldest_stuck: list[int] = []
        after: int | None = 0
        while after is not None:
            # Delivered messages leave gaps, so a piece begins where the last one ended.
            def piece_txn(
                txn: LoggingTransaction, after: int = after
            ) -> tuple[int, int | None, int | None, int | None]:
                (upto,) = _one(txn, _end_of_rows(TO_DEVICE.table, after, _TO_DEVICE))
                rows = Sql("x.rowid > ? AND x.rowid <= ?", (after, upto))
                count, oldest_ts, stuck_ts = _one(txn, sum_to_device(rows))
                return count, oldest_ts, stuck_ts, upto

            count, oldest_ts, stuck_ts, after = await self._run_backlog(piece_txn)
            total += count
            oldest += [] if oldest_ts is None else [oldest_ts]
            oldest_stuck += [] if stuck_ts is None else [stuck_ts]
        return total, min(oldest, default=None), min(oldest_stuck, default=None)

    async def _unlisted(self) -> Unlisted:
        """Return the names that something waits for, and that have no row."""
        if self._homeserver.is_postgres:
            return await self._run_backlog(_unlisted)
        total = 0
        sample: list[str] = []
        # What is in both tables is counted in the first.
        for queue, other in ((TO_DEVICE, None), (DEVICE_LISTS, TO_DEVICE)):
            after: str | None = ""
            while after is not None:

                def piece_txn(
                    txn: LoggingTransaction,
                    after: str = after,
                    queue: Queue = queue,
                    other: Queue | None = other,
                ) -> tuple[list[str], str | None]:
                    return _unlisted_piece(txn, queue, other, after)

                names, after = await self._run_backlog(piece_txn)
                total += len(names)
                sample += names[: _SAMPLE - len(sample)]
        return Unlisted(total, tuple(sample))


def count_destinations(rows: Sql, now_ms: int) -> Sql:
    """Count some rows of `destinations` AS x.

    What is to be known of all rows is counted apart: the rest costs failing rows only.

    Returns:
        The statement. It yields how many rows there are, and to how many something has
        been delivered; then how many are failing, to how many of those something has
        been delivered, how many are backing off, and how many are failing for less than
        each of `_AGES_MS`.
    """
    ages = ["COUNT(*) FILTER (WHERE COALESCE(failure_ts, retry_last_ts) > ?)"] * len(
        _AGES_MS
    )
    return Sql(
        "SELECT * FROM (SELECT COUNT(*), COUNT(last_successful_stream_ordering) "  # noqa: S608
        f"FROM destinations x WHERE {rows.text}) every, "
        "(SELECT COUNT(*), COUNT(last_successful_stream_ordering), "
        f"COUNT(*) FILTER (WHERE {NEXT_RETRY_TS} > ?), {', '.join(ages)} "
        f"FROM destinations x WHERE {FAILING} AND {rows.text}) failing",
        (
            *rows.args,
            now_ms,
            *(now_ms - age_ms for age_ms in _AGES_MS.values()),
            *rows.args,
        ),
    )


def count_rooms(rows: Sql) -> Sql:
    """Count, of some rows of `destination_rooms` AS x, those that wait.

    Returns:
        The statement. It yields how many rows Synapse will send by itself, and how many
        it will not.
    """
    return Sql(
        "SELECT COUNT(*) FILTER (WHERE x.stream_ordering > "  # noqa: S608
        "d.last_successful_stream_ordering), "
        "COUNT(*) FILTER (WHERE d.last_successful_stream_ordering IS NULL) "
        "FROM destination_rooms x "
        "LEFT JOIN destinations d ON d.destination = x.destination "
        f"WHERE {rows.text}",
        rows.args,
    )


def sum_to_device(rows: Sql) -> Sql:
    """Count some rows of `device_federation_outbox` AS x, and find the oldest.

    Returns:
        The statement. It yields how many rows there are, when the oldest was queued,
        and when the oldest was whose destination is not failing.
    """
    return Sql(
        "SELECT CAST(COALESCE(SUM(w.messages), 0) AS BIGINT), MIN(w.oldest_ts), "  # noqa: S608
        f"MIN(w.oldest_ts) FILTER (WHERE {NOT_FAILING}) FROM ("
        "SELECT x.destination, COUNT(*) AS messages, MIN(x.queued_ts) AS oldest_ts "
        f"FROM device_federation_outbox x WHERE {rows.text} GROUP BY x.destination"
        ") AS w LEFT JOIN destinations d ON d.destination = w.destination",
        rows.args,
    )


def _by_age(failing: int, younger: list[int]) -> dict[FailureAge, int]:
    """Return how many destinations have each age.

    Args:
        failing: How many there are.
        younger: How many of them are younger than each of `_AGES_MS`.
    """
    found = {}
    before = 0
    for age, count in zip(_AGES_MS, younger, strict=True):
        found[age] = count - before
        before = count
    found[FailureAge.FROM_7D] = failing - before
    return found


def _one(txn: LoggingTransaction, statement: Sql) -> list[Any]:
    """Return the one row that a statement yields."""
    txn.execute(statement.text, statement.args)
    (row,) = txn.fetchall()
    return list(row)


def _count_device_lists(txn: LoggingTransaction) -> int:
    # On SQLite too, counting the entries of an index takes 1 ms for 100,000.
    txn.execute("SELECT COUNT(*) FROM device_lists_outbound_pokes")
    ((count,),) = txn.fetchall()
    return int(count)


def _end_of_rows(table: str, after: int, limit: int) -> Sql:
    return Sql(
        f"SELECT MAX(rowid) FROM (SELECT rowid FROM {table} NOT INDEXED "  # noqa: S608
        "WHERE rowid > ? ORDER BY rowid LIMIT ?)",
        (after, limit),
    )


def _unlisted(txn: LoggingTransaction) -> Unlisted:
    """Find all names that something waits for, and that have no row."""
    txn.execute(
        "SELECT destination, COUNT(*) OVER () FROM ("  # noqa: S608
        f"SELECT destination FROM {TO_DEVICE.table} "
        f"UNION SELECT destination FROM {DEVICE_LISTS.table}) x "
        "WHERE NOT EXISTS ("
        "SELECT 1 FROM destinations d WHERE d.destination = x.destination) LIMIT ?",
        (_SAMPLE,),
    )
    rows = txn.fetchall()
    return Unlisted(rows[0][1] if rows else 0, tuple(name for name, _ in rows))


def _unlisted_piece(
    txn: LoggingTransaction, queue: Queue, other: Queue | None, after: str
) -> tuple[list[str], str | None]:
    """Find those among the next names in a queue that have no row.

    The names are found by their index, one seek each: a name's rows are not read.

    Args:
        txn: The transaction.
        queue: The queue.
        other: A queue whose names are left out.
        after: The name behind which to begin.

    Returns:
        The names, and the last one that was looked at; None if there are no more.
    """
    known = "EXISTS (SELECT 1 FROM destinations WHERE destination = name)"
    if other is not None:
        known += f" OR EXISTS (SELECT 1 FROM {other.table} WHERE destination = name)"  # noqa: S608
    next_name = f"SELECT MIN(destination) FROM {queue.table} WHERE destination >"  # noqa: S608
    txn.execute(
        f"WITH RECURSIVE names (name) AS ({next_name} ? UNION ALL "  # noqa: S608
        f"SELECT ({next_name} name) FROM names WHERE name IS NOT NULL LIMIT ?) "
        f"SELECT name, {known} FROM names WHERE name IS NOT NULL ORDER BY name",
        (after, _NAMES),
    )
    rows = txn.fetchall()
    last = rows[-1][0] if len(rows) == _NAMES else None
    return [name for name, is_known in rows if not is_known], last
