# SPDX-License-Identifier: Apache-2.0
"""Sums all destinations up.

Where counting them takes long, that is told to all who ask for some seconds. What waits
for them may take seconds to read, so an answer that would be late takes what was read
before.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.backlog import UNLISTED
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.destinations.invalid import InvalidNames
from synapse_federation_admin.destinations.query import (
    NEXT_RETRY_TS,
    NOT_FAILING,
    rows_txn,
)
from synapse_federation_admin.destinations.values import DestinationStatus
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import FAILING, FAILING_SINCE, Sql, any_of

# On SQLite, in how many transactions the rooms that wait are counted if that takes
# longer, or is not known yet: with a million destinations, one would hold the
# homeserver's only connection for over a second.
_PARTS = 4
_LONG_MS = 200


class FailureAge(Enum):
    """For how long a destination has been failing; every failing one has exactly one.

    The age is that of `failure_ts`, or of `retry_last_ts` where that is NULL: since
    then at the latest it has been failing.
    """

    UNDER_1H = "<1h"
    UNDER_1D = "<1d"
    UNDER_7D = "<7d"
    UNDER_30D = "<30d"
    FROM_30D = ">=30d"


class TotalBacklog(NamedTuple):
    """What waits for all destinations together.

    Attributes:
        as_of_ts: When reading it began.
        rooms: Pairs of destination and room with an event that it has not got and that
            Synapse will send by itself, once it can.
        oldest_event_ts: When the oldest of the newest events of `rooms` was received,
            which waits at least since; None if there is none.
        rooms_never_caught_up: Such pairs in which it will not, because nothing has ever
            been delivered to the destination.
        to_device_messages: To-device messages that wait.
        oldest_to_device_ts: When the oldest of them was queued; None if none.
        oldest_stuck_to_device_ts: When the oldest of those was queued that are for
            destinations which do not fail; None if none.
        device_list_updates: Changes of local users' devices that wait.
        unlisted: How many names there are without a row for which to-device messages or
            device list updates wait. All counts have what waits for them, too.
    """

    as_of_ts: int
    rooms: int = 0
    oldest_event_ts: int | None = None
    rooms_never_caught_up: int = 0
    to_device_messages: int = 0
    oldest_to_device_ts: int | None = None
    oldest_stuck_to_device_ts: int | None = None
    device_list_updates: int = 0
    unlisted: int = 0


class Summary(NamedTuple):
    """All destinations in a few numbers.

    Attributes:
        as_of_ts: The time at which statuses and ages are taken.
        total: How many destinations there are.
        by_status: How many of them have each status; all are in it.
        failing_by_age: How many have been failing for how long; all are in it.
        failing_by_kind: The same for each kind that is known; None if none can be read.
        backlog: What waits, which may be older; None if it is not known yet.
    """

    as_of_ts: int
    total: int
    by_status: Mapping[DestinationStatus, int]
    failing_by_age: Mapping[FailureAge, int]
    failing_by_kind: Mapping[str, Mapping[FailureAge, int]] | None = None
    backlog: TotalBacklog | None = None

    @property
    def failing(self) -> int:
        """How many destinations are failing."""
        return sum(self.failing_by_age.values())


_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS

# How long each age of FailureAge is at most; the last is what is left.
_AGES_MS = (_HOUR_MS, _DAY_MS, 7 * _DAY_MS, 30 * _DAY_MS)


def ages_begin_ts(now_ms: int) -> list[int]:
    """Return after which time what has each age began to fail, but for the oldest."""
    return [now_ms - age_ms for age_ms in _AGES_MS]


def by_age(younger: Sequence[int]) -> dict[FailureAge, int]:
    """Return how many have each age, by how many are at most so old; last, all."""
    return {
        age: count - before
        for age, count, before in zip(FailureAge, younger, [0, *younger], strict=False)
    }


# Counts what fails by kind and age, as of a time in ms; None if that cannot be read.
CountKinds = Callable[[int], Awaitable[Mapping[str, Mapping[FailureAge, int]] | None]]


class SummaryStore:
    """Sums all destinations up.

    Every method raises what the database raises.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        invalid: InvalidNames,
        count_kinds: CountKinds,
        has_backlog: Callable[[], bool],
    ) -> None:
        self._homeserver = homeserver
        self._has_backlog = has_backlog
        self._invalid = invalid
        self._count_kinds = count_kinds
        self._counts = Costly(
            homeserver, "federation_admin_summary", self._count, waits_always=True
        )
        self._backlog = Costly(
            homeserver,
            "federation_admin_summary_backlog",
            lambda: self._read_backlog(homeserver.now_ms()),
        )
        # How long the statements of the last backlog took: not how long they waited for
        # a connection, which says nothing of how long they would hold it.
        self._took_ms: float = _LONG_MS

    async def get(self) -> Summary:
        """Return the summary; computed once for all who ask at the same time.

        Where the backlog takes long, it is read to the end for those who ask later.
        """
        summary = await self._counts.get()
        assert summary is not None
        backlog = await self._backlog.get() if self._has_backlog() else None
        return summary._replace(backlog=backlog)

    def forget(self) -> None:
        """Count anew for who asks next: this process has changed some."""
        self._counts.forget()

    async def _count(self) -> Summary:
        names = await self._invalid.find()
        now_ms, invalid = self._homeserver.now_ms(), any_of("destination", names)

        def count_txn(txn: LoggingTransaction) -> Summary:
            self._use_one_cpu_txn(txn)
            return _count_txn(txn, now_ms, invalid)

        summary = await self._homeserver.run_db_interaction(
            "federation_admin_summary", count_txn
        )
        return summary._replace(failing_by_kind=await self._count_kinds(now_ms))

    async def _read_backlog(self, now_ms: int) -> TotalBacklog:
        parts = [Sql("TRUE")]
        if not self._homeserver.is_postgres and self._took_ms >= _LONG_MS:
            parts = [Sql("w.rowid % ? = ?", (_PARTS, part)) for part in range(_PARTS)]
        self._took_ms = 0
        *rest, last = map(_count_rooms, parts)
        counts = [found for part in rest for (found,) in await self._read(part)]
        (
            (last_count,),
            ((to_device, oldest_ts, oldest_stuck_ts),),
            ((device_lists,),),
            ((unlisted,),),
        ) = await self._read(last, _SUM_TO_DEVICE, _COUNT_DEVICE_LISTS, _COUNT_UNLISTED)
        counts.append(last_count)
        oldest = min((found for *_, found in counts if found is not None), default=None)
        oldest_event_ts = None
        if oldest is not None:
            (received,) = await self._read(_received(oldest))
            oldest_event_ts = received[0][0] if received else None
        return TotalBacklog(
            as_of_ts=now_ms,
            rooms=sum(count for count, *_ in counts),
            oldest_event_ts=oldest_event_ts,
            rooms_never_caught_up=sum(count for _, count, _ in counts),
            to_device_messages=to_device,
            oldest_to_device_ts=oldest_ts,
            oldest_stuck_to_device_ts=oldest_stuck_ts,
            device_list_updates=device_lists,
            unlisted=unlisted,
        )

    async def _read(self, *statements: Sql) -> list[list[tuple[Any, ...]]]:
        """Read parts of the backlog, in one transaction."""

        def read_txn(txn: LoggingTransaction) -> list[list[tuple[Any, ...]]]:
            self._use_one_cpu_txn(txn)
            began_s = time.perf_counter()
            found = []
            for statement in statements:
                found.append(statement.select_txn(txn))
            self._took_ms += (time.perf_counter() - began_s) * 1000
            return found

        return await self._homeserver.run_db_interaction(
            "federation_admin_summary_backlog", read_txn
        )

    def _use_one_cpu_txn(self, txn: LoggingTransaction) -> None:
        """Leave the others to the homeserver: what is read is good for some time."""
        if self._homeserver.is_postgres:
            txn.execute("SET LOCAL max_parallel_workers_per_gather = 0")


def _count_txn(txn: LoggingTransaction, now_ms: int, invalid: Sql) -> Summary:
    """Count all destinations, and those that fail apart: few, which cost more each.

    Args:
        txn: The transaction.
        now_ms: The time.
        invalid: The condition for those that bear no server name.
    """
    younger = f"COUNT(*) FILTER (WHERE {FAILING_SINCE} > ?)"
    txn.execute(
        "SELECT * FROM (SELECT COUNT(*), COUNT(last_successful_stream_ordering) "  # noqa: S608
        "FROM destinations) AS every, "
        "(SELECT COUNT(last_successful_stream_ordering), "
        f"COUNT(*) FILTER (WHERE {NEXT_RETRY_TS} > ?), "
        f"{', '.join([younger] * len(_AGES_MS))}, COUNT(*) "
        f"FROM destinations WHERE {FAILING}) AS failing",
        (now_ms, *ages_begin_ts(now_ms)),
    )
    ((total, delivered, failing_delivered, backing_off, *younger_than),) = txn
    failing = younger_than[-1]
    online = delivered - failing_delivered
    by_status = {
        DestinationStatus.INVALID: 0,
        DestinationStatus.ONLINE: online,
        DestinationStatus.UNKNOWN: total - failing - online,
        DestinationStatus.BACKING_OFF: backing_off,
        DestinationStatus.RETRY_DUE: failing - backing_off,
    }
    for row in rows_txn(txn, [invalid]).values():
        by_status[row.status_of_row(now_ms)] -= 1
        by_status[DestinationStatus.INVALID] += 1
    return Summary(
        as_of_ts=now_ms,
        total=total,
        by_status=by_status,
        failing_by_age=by_age(younger_than),
    )


def _count_rooms(part: Sql) -> Sql:
    """Count, of some rows of `destination_rooms` AS w, those that wait.

    Returns:
        The statement. It yields how many rows Synapse will send by itself, how many it
        will not, and the stream ordering of the oldest that it will.
    """
    return Sql(
        "SELECT COUNT(*) FILTER (WHERE w.stream_ordering > "  # noqa: S608
        "d.last_successful_stream_ordering), "
        "COUNT(*) FILTER (WHERE d.last_successful_stream_ordering IS NULL), "
        "MIN(w.stream_ordering) FILTER (WHERE w.stream_ordering > "
        "d.last_successful_stream_ordering) "
        "FROM destination_rooms AS w "
        "LEFT JOIN destinations AS d ON d.destination = w.destination "
        f"WHERE {part.text}",
        part.args,
    )


def _received(stream_ordering: int) -> Sql:
    """Find out when an event was received; if it is gone, the next that is there."""
    return Sql(
        "SELECT received_ts FROM events WHERE stream_ordering >= ? "
        "ORDER BY stream_ordering LIMIT 1",
        (stream_ordering,),
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


# How many names without a row there are.
_COUNT_UNLISTED = Sql(f"SELECT COUNT(*) FROM {UNLISTED} AS u")  # noqa: S608
