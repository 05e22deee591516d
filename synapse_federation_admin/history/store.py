# SPDX-License-Identifier: Apache-2.0
"""Reads what was recorded: failures, outages, and how much of the time all was well."""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin.destinations.query import FAILING
from synapse_federation_admin.destinations.statements import last_row_id
from synapse_federation_admin.history.kinds import from_bits
from synapse_federation_admin.history.values import Availability, AvailableDay
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.failures import RecordedFailure
from synapse_federation_admin.storage.outages import Outage, OutageEnd
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql, can_be_stored

T = TypeVar("T")

logger = logging.getLogger(__name__)

_DAY_MS = 86_400_000

# How many days of availability are told.
_DAYS = 14

# Of how many destinations one transaction reads the outages.
_NAMES = 50

# How many rows one transaction looks at on SQLite: some 10 ms.
_ROWS = 40_000


async def if_readable(reading: Awaitable[T], otherwise: T) -> T:
    """Return what was recorded; something else if that cannot be read.

    For what is told beside other things, which do without the tables of this module.
    """
    try:
        return await reading
    except CancelledError:
        raise
    except Exception as e:
        logger.warning("What was recorded cannot be read: %s", e)
        return otherwise


class HistoryStore:
    """Reads what was recorded. Every method raises what the database raises."""

    def __init__(self, homeserver: Homeserver, tables: Tables) -> None:
        self._homeserver = homeserver
        self._tables = tables

    async def failures(
        self, destinations: Sequence[str]
    ) -> dict[str, list[RecordedFailure]]:
        """Return the failures of some destinations, of each the last kind first.

        At most one for each kind. Destinations without any are left out.
        """
        names = list(filter(can_be_stored, destinations))

        def failures_txn(txn: LoggingTransaction) -> dict[str, list[RecordedFailure]]:
            txn.execute(
                "SELECT destination, kind, message, first_ts, last_ts, count, "  # noqa: S608
                "instance, issuer FROM federation_admin_failures "
                f"WHERE destination IN ({', '.join('?' * len(names))}) "
                "ORDER BY last_ts DESC, kind",
                tuple(names),
            )
            found = defaultdict(list)
            for destination, *row in txn.fetchall():
                found[destination].append(RecordedFailure(*row))
            return dict(found)

        return await self._run("failures", failures_txn) if names else {}

    async def last_failure(self, destination: str) -> RecordedFailure | None:
        """Return the last failure of a destination; None if none can be read."""
        found = await if_readable(self.failures([destination]), {})
        return found[destination][0] if found else None

    async def last_success_ts(self, destination: str) -> int | None:
        """Return when a destination last answered well, to within five minutes."""

        def last_success_txn(txn: LoggingTransaction) -> int | None:
            txn.execute(
                "SELECT last_ts FROM federation_admin_successes WHERE destination = ?",
                (destination,),
            )
            row = txn.fetchone()
            return int(row[0]) if row else None

        if not can_be_stored(destination):
            return None
        return await self._run("successes", last_success_txn)

    async def outages(
        self, destination: str, before_ts: int | None, limit: int
    ) -> list[Outage]:
        """Return the outages of a destination, the newest first.

        Args:
            destination: The server name.
            before_ts: Those that began before; None: all.
            limit: The most to return.
        """

        def outages_txn(txn: LoggingTransaction) -> list[Outage]:
            before = "" if before_ts is None else "AND start_ts < ?"
            args = () if before_ts is None else (before_ts,)
            txn.execute(
                "SELECT start_ts, end_ts, ended, kinds FROM federation_admin_outages "  # noqa: S608
                f"WHERE destination = ? {before} ORDER BY start_ts DESC LIMIT ?",
                (destination, *args, limit),
            )
            return [
                Outage(
                    start_ts, end_ts, OutageEnd(ended) if ended else None, from_bits(k)
                )
                for start_ts, end_ts, ended, k in txn.fetchall()
            ]

        if not can_be_stored(destination):
            return []
        return await self._run("outages", outages_txn)

    async def recorded_since_ts(self) -> int | None:
        """Return since when outages are recorded; None if that has not begun yet."""
        return await self._run("recording", _since_txn)

    async def availability(
        self, destinations: Sequence[str]
    ) -> dict[str, Availability]:
        """Return how much of the last 14 days some destinations were not failing.

        Days are those of UTC; the present one is as long as it has lasted.
        """
        names = list(filter(can_be_stored, destinations))
        now_ts = self._homeserver.now_ms()
        today_ts = now_ts - now_ts % _DAY_MS
        begins = [today_ts - day * _DAY_MS for day in reversed(range(_DAYS))]
        since_ts = await self.recorded_since_ts()
        found: dict[str, Availability] = {}
        for begin in range(0, len(names), _NAMES):
            found |= await self._run(
                "availability",
                partial(
                    _availability_txn,
                    names=names[begin : begin + _NAMES],
                    begins=begins,
                    since_ts=since_ts,
                    now_ts=now_ts,
                ),
            )
        return found

    async def failing_by_kind(self) -> dict[str, int]:
        """Return how many destinations fail for which reason, where that is known."""
        counts: dict[str, int] = defaultdict(int)
        for piece in await self._pieces():
            for kind, count in await self._run(
                "failing_by_kind", partial(_count_kinds_txn, piece)
            ):
                counts[kind] += count
        return dict(counts)

    async def _pieces(self) -> list[Sql]:
        """Return conditions that each hold for some of the rows d, together for all."""
        if self._homeserver.is_postgres:
            return [Sql("TRUE")]
        last = await self._run("failing_by_kind", last_row_id)
        return [
            Sql("d.rowid > ? AND d.rowid <= ?", (begin, begin + _ROWS))
            for begin in range(0, last, _ROWS)
        ]

    async def _run(self, what: str, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._tables.run(f"federation_admin_{what}", func)


def _count_kinds_txn(piece: Sql, txn: LoggingTransaction) -> list[tuple[str, int]]:
    # On SQLite, the order of a CROSS JOIN is kept: one table as it lies on the disk.
    txn.execute(
        "SELECT o.last_kind, COUNT(*) FROM destinations AS d "  # noqa: S608
        "CROSS JOIN federation_admin_outages AS o "
        "WHERE o.destination = d.destination AND o.end_ts IS NULL "
        f"AND o.last_kind IS NOT NULL AND {FAILING} AND {piece.text} "
        "GROUP BY o.last_kind",
        piece.args,
    )
    return txn.fetchall()


def _since_txn(txn: LoggingTransaction) -> int | None:
    txn.execute("SELECT since_ts FROM federation_admin_recording")
    row = txn.fetchone()
    return int(row[0]) if row else None


def _availability_txn(
    txn: LoggingTransaction,
    names: Sequence[str],
    begins: Sequence[int],
    since_ts: int | None,
    now_ts: int,
) -> dict[str, Availability]:
    """Return the availability of some destinations.

    Args:
        txn: The transaction.
        names: The destinations.
        begins: When each day begins.
        since_ts: Since when outages are recorded; None if they are not.
        now_ts: The time.
    """
    # For how long each was failing on each day, in ms.
    down = {name: [0] * len(begins) for name in names}
    if since_ts is not None:
        first_ts = max(begins[0], since_ts)
        txn.execute(
            "SELECT destination, start_ts, end_ts FROM federation_admin_outages "  # noqa: S608
            f"WHERE destination IN ({', '.join('?' * len(names))}) "
            "AND (end_ts IS NULL OR end_ts > ?)",
            (*names, first_ts),
        )
        for name, start_ts, end_ts in txn.fetchall():
            upto_ts = min(now_ts, now_ts if end_ts is None else end_ts)
            from_ts = max(start_ts, first_ts)
            while from_ts < upto_ts:
                day = (from_ts - begins[0]) // _DAY_MS
                next_ts = min(begins[0] + (day + 1) * _DAY_MS, upto_ts)
                down[name][day] += next_ts - from_ts
                from_ts = next_ts
    recorded = [
        0
        if since_ts is None
        else max(0, min(begin_ts + _DAY_MS, now_ts) - max(begin_ts, since_ts))
        for begin_ts in begins
    ]
    return {
        name: Availability(
            since_ts=None if since_ts is None else max(since_ts, begins[0]),
            share=_share(sum(recorded), sum(down[name])),
            days=tuple(
                AvailableDay(*day)
                for day in zip(begins, map(_share, recorded, down[name]), strict=True)
            ),
        )
        for name in names
    }


def _share(recorded_ms: int, down_ms: int) -> float | None:
    if not recorded_ms:
        return None
    # Cut, not rounded: what was down for a second was not always up.
    return int(max(0, recorded_ms - down_ms) * 10_000 / recorded_ms) / 10_000
