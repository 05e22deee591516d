# SPDX-License-Identifier: Apache-2.0
"""Sums all destinations up.

The destinations are counted for every answer. What waits for them may take seconds to
read, so an answer that would be late takes what was read before.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import (
    NEXT_RETRY_TS,
    NOT_FAILING,
)
from synapse_federation_admin.destinations.values import DestinationStatus
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import FAILING, Sql

T = TypeVar("T")

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

# On SQLite, in how many transactions the rooms that wait are counted: with a million
# destinations, one would hold the homeserver's only connection for over a second.
_PARTS = 4


class FailureAge(Enum):
    """For how long a destination has been failing; every failing one has exactly one.

    The age is that of `failure_ts`, or of `retry_last_ts` where that is NULL: since
    then at the latest it has been failing.
    """

    UNDER_1H = "<1h"
    UNDER_1D = "<1d"
    UNDER_7D = "<7d"
    FROM_7D = ">=7d"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class BacklogTotals:
    """What waits for all destinations together.

    Attributes:
        rooms: Pairs of destination and room with an event that it has not got and that
            Synapse will send by itself, once it can.
        rooms_never_caught_up: Such pairs in which it will not, because nothing has ever
            been delivered to the destination.
        to_device_messages: To-device messages that wait.
        oldest_to_device_ts: When the oldest of them was queued; None if none.
        oldest_stuck_to_device_ts: When the oldest of those was queued that are for
            destinations which do not fail; None if none.
        device_list_updates: Changes of local users' devices that wait.
    """

    rooms: int = 0
    rooms_never_caught_up: int = 0
    to_device_messages: int = 0
    oldest_to_device_ts: int | None = None
    oldest_stuck_to_device_ts: int | None = None
    device_list_updates: int = 0


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Unlisted:
    """Names for which something waits, but which Synapse has no row for.

    Attributes:
        total: How many there are.
        sample: Some of them, in no order.
    """

    total: int = 0
    sample: tuple[str, ...] = ()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class BacklogSummary:
    """What waits, in a few numbers.

    Attributes:
        as_of_ts: When reading it began.
        totals: What waits, for names without a row too.
        unlisted: The names without a row for which to-device messages or device list
            updates wait.
    """

    as_of_ts: int
    totals: BacklogTotals
    unlisted: Unlisted


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Counts:
    """How many destinations there are.

    Attributes:
        as_of_ts: The time at which statuses and ages are taken.
        total: How many destinations there are.
        by_status: How many of them have each status; all four are in it.
        failing_by_age: How many have been failing for how long; all four are in it.
    """

    as_of_ts: int
    total: int
    by_status: Mapping[DestinationStatus, int]
    failing_by_age: Mapping[FailureAge, int]

    @property
    def failing(self) -> int:
        """How many destinations are failing."""
        return sum(self.failing_by_age.values())


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Summary:
    """All destinations in a few numbers.

    Attributes:
        counts: The destinations, as they are now.
        backlog: What waits, which may be older; None if it is not known yet.
    """

    counts: Counts
    backlog: BacklogSummary | None


_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS

# By age, how long it is at most. FailureAge.FROM_7D is what is left.
_AGES_MS = {
    FailureAge.UNDER_1H: _HOUR_MS,
    FailureAge.UNDER_1D: _DAY_MS,
    FailureAge.UNDER_7D: 7 * _DAY_MS,
}


class SummaryStore:
    """Sums all destinations up.

    Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self._backlog: BacklogSummary | None = None
        # The times, in ms, at which no backlog is read, as the last one was costly.
        self._rest = range(0)

    async def get(self) -> Summary:
        """Return the summary; computed once for all who ask at the same time.

        Where the backlog takes long, it is read to the end for those who ask later.
        """
        began_ms = self._homeserver.now_ms()
        counts = await self._homeserver.single_flight.run(
            "federation_admin_summary", "counts", self._count
        )
        left_ms = began_ms + _ANSWER_MS - self._homeserver.now_ms()
        try:
            backlog = await self._homeserver.single_flight.run(
                "federation_admin_summary",
                "backlog",
                self._refresh_backlog,
                timeout_ms=max(left_ms, _LEAST_WAIT_MS),
            )
        except TimeoutError:
            backlog = self._backlog
        return Summary(counts, backlog)

    async def _count(self) -> Counts:
        now_ms = self._homeserver.now_ms()
        return await self._homeserver.run_db_interaction(
            "federation_admin_summary", partial(_count_txn, now_ms=now_ms)
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
        parts = [Sql("TRUE")]
        if not self._homeserver.is_postgres:
            parts = [Sql("w.rowid % ? = ?", (_PARTS, part)) for part in range(_PARTS)]
        rooms = never_caught_up = 0
        for part in parts:
            counts = await self._run(partial(_one, statement=_count_rooms(part)))
            rooms, never_caught_up = rooms + counts[0], never_caught_up + counts[1]
        to_device, oldest_ts, oldest_stuck_ts = await self._run(
            partial(_one, statement=_SUM_TO_DEVICE)
        )
        (device_lists,) = await self._run(partial(_one, statement=_COUNT_DEVICE_LISTS))
        return BacklogSummary(
            as_of_ts=now_ms,
            totals=BacklogTotals(
                rooms=rooms,
                rooms_never_caught_up=never_caught_up,
                to_device_messages=to_device,
                oldest_to_device_ts=oldest_ts,
                oldest_stuck_to_device_ts=oldest_stuck_ts,
                device_list_updates=device_lists,
            ),
            unlisted=await self._run(_unlisted_txn),
        )

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        """Run a transaction that reads part of the backlog."""

        def backlog_txn(txn: LoggingTransaction) -> T:
            if self._homeserver.is_postgres:
                # Nobody waits for it: one CPU is enough.
                txn.execute("SET LOCAL max_parallel_workers_per_gather = 0")
            return func(txn)

        return await self._homeserver.run_db_interaction(
            "federation_admin_summary_backlog", backlog_txn
        )


def _count_txn(txn: LoggingTransaction, now_ms: int) -> Counts:
    """Count all destinations, and those that fail apart: few, which cost more each."""
    younger = "COUNT(*) FILTER (WHERE COALESCE(failure_ts, retry_last_ts) > ?)"
    statement = Sql(
        "SELECT * FROM (SELECT COUNT(*), COUNT(last_successful_stream_ordering) "  # noqa: S608
        "FROM destinations) AS every, "
        "(SELECT COUNT(*), COUNT(last_successful_stream_ordering), "
        f"COUNT(*) FILTER (WHERE {NEXT_RETRY_TS} > ?), "
        f"{', '.join([younger] * len(_AGES_MS))} "
        f"FROM destinations WHERE {FAILING}) AS failing",
        (now_ms, *(now_ms - age_ms for age_ms in _AGES_MS.values())),
    )
    total, delivered, failing, failing_delivered, backing_off, *younger_than = _one(
        txn, statement
    )
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
        failing_by_age=_by_age(failing, younger_than),
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


def _count_rooms(part: Sql) -> Sql:
    """Count, of some rows of `destination_rooms` AS w, those that wait.

    Returns:
        The statement. It yields how many rows Synapse will send by itself, and how many
        it will not.
    """
    return Sql(
        "SELECT COUNT(*) FILTER (WHERE w.stream_ordering > "  # noqa: S608
        "d.last_successful_stream_ordering), "
        "COUNT(*) FILTER (WHERE d.last_successful_stream_ordering IS NULL) "
        "FROM destination_rooms AS w "
        "LEFT JOIN destinations AS d ON d.destination = w.destination "
        f"WHERE {part.text}",
        part.args,
    )


# How many to-device messages wait, when the oldest was queued, and when the oldest was
# whose destination is not failing.
_SUM_TO_DEVICE = Sql(
    "SELECT CAST(COALESCE(SUM(w.messages), 0) AS BIGINT), MIN(w.oldest_ts), "  # noqa: S608
    f"MIN(w.oldest_ts) FILTER (WHERE {NOT_FAILING}) FROM ("
    "SELECT destination, COUNT(*) AS messages, MIN(queued_ts) AS oldest_ts "
    "FROM device_federation_outbox GROUP BY destination"
    ") AS w LEFT JOIN destinations d ON d.destination = w.destination"
)

_COUNT_DEVICE_LISTS = Sql("SELECT COUNT(*) FROM device_lists_outbound_pokes")


def _unlisted_txn(txn: LoggingTransaction) -> Unlisted:
    """Find all names that something waits for, and that have no row."""
    txn.execute(
        "SELECT destination, COUNT(*) OVER () FROM ("
        "SELECT destination FROM device_federation_outbox "
        "UNION SELECT destination FROM device_lists_outbound_pokes) AS w "
        "WHERE NOT EXISTS ("
        "SELECT 1 FROM destinations d WHERE d.destination = w.destination) LIMIT ?",
        (_SAMPLE,),
    )
    rows = txn.fetchall()
    return Unlisted(rows[0][1] if rows else 0, tuple(name for name, _ in rows))


def _one(txn: LoggingTransaction, statement: Sql) -> list[Any]:
    """Return the one row that a statement yields."""
    txn.execute(statement.text, statement.args)
    (row,) = txn.fetchall()
    return list(row)
