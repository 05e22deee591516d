# SPDX-License-Identifier: Apache-2.0
"""When destinations were failing: `federation_admin_outages`.

It has a row for each outage but those of which Synapse's own row says all that there is
to say: that the destination fails, and since when. Such an outage gets its row before
that is cleared (`begin_missing_txn`), or when a failure is recorded. A homeserver that
has known half a million dead servers for years has no rows for them.

Since when outages are recorded is the one row of `federation_admin_recording`. This
file alone names these tables, and so has all statements of them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, NamedTuple

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import UNKNOWN_KIND, FailureKind
from synapse_federation_admin.homeserver.database import on_postgres
from synapse_federation_admin.storage.outage_ends import (
    OutageEnd,
    answered_since,
    ended_outages,
)
from synapse_federation_admin.storage.records import FAILURES, RecordedFailure
from synapse_federation_admin.storage.sql import (
    AHEAD_MS,
    FAILING,
    FAILING_SINCE,
    FITS,
    MOMENT_MS,
    Expired,
    Sql,
    any_of,
    existing_tables,
    marks,
    rows_of,
)

_TABLE = "federation_admin_outages"
_RECORDING = "federation_admin_recording"

_DAY_MS = 86_400_000

# How long it may take until the end of an outage is written, which is found once a
# minute.
_WRITTEN_MS = 90_000

# Those that last, for statements of others. `last_kind` is why; NULL if not known.
OPEN_OUTAGES = (
    f"(SELECT destination, start_ts, last_kind FROM {_TABLE} WHERE end_ts IS NULL)"  # noqa: S608
)

# Those that are old by when they ended; and those of after a time, which nobody can
# know, and that they are recorded since then.
OLD = Expired(_TABLE, "destination, start_ts", "end_ts < ?")
BEYOND = (
    Expired(_TABLE, "destination, start_ts", "start_ts > ? OR end_ts > ?"),
    Expired(_RECORDING, "only_row", "since_ts > ?"),
)


class Outage(NamedTuple):
    """A time for which a destination was failing.

    Those that follow closely are one.

    Attributes:
        start_ts: When it began.
        end_ts: When it ended; None until that is found out, mostly within a minute.
        up_ms: For how long of it the destination was not failing.
        ended: `recovered` by itself, `reset` by an admin, or `forgotten`; None while it
            lasts.
        kinds: Every kind of failure seen in it, as they were first seen; none if it is
            not known why it failed.
    """

    start_ts: int
    end_ts: int | None
    up_ms: int
    ended: Annotated[str, OutageEnd] | None
    kinds: tuple[Annotated[str, FailureKind], ...]


class CameBack(NamedTuple):
    """A destination whose outage has ended.

    Attributes:
        destination: The server name.
        ended: `recovered` by itself, `reset` by an admin, or `forgotten`.
        ts: When it ended.
    """

    destination: str
    ended: Annotated[str, OutageEnd]
    ts: int


# Outages that last and have no row, as `OPEN_OUTAGES`.
_MISSING = f"""(
    SELECT d.destination,
        COALESCE(
            (
                SELECT MAX(before.end_ts) + 1 FROM {_TABLE} AS before
                WHERE before.destination = d.destination
                AND before.end_ts > d.failure_ts
            ),
            d.failure_ts,
            d.retry_last_ts
        ) AS start_ts,
        (
            SELECT f.kind FROM {FAILURES} AS f
            WHERE f.destination = d.destination
            AND f.last_ts >= COALESCE(d.failure_ts, d.retry_last_ts) - {MOMENT_MS}
            ORDER BY f.last_ts DESC LIMIT 1
        ) AS last_kind
    FROM destinations AS d
    WHERE {FAILING}
    AND {FITS}
    AND NOT EXISTS (
        SELECT 1 FROM {OPEN_OUTAGES} AS o WHERE o.destination = d.destination
    )
)"""  # noqa: S608

# When an outage began, and ended; None while it lasts; and for how long of it the
# destination was not failing.
Span = tuple[int, int | None, int]


# -- what is read ---------------------------------------------------------------------


def select_txn(
    txn: LoggingTransaction, destination: str, before_ts: int | None, limit: int
) -> list[Outage]:
    """Return the outages of a destination, the newest first.

    Args:
        txn: The transaction.
        destination: The server name.
        before_ts: Those that began before; None: all.
        limit: The most to return.
    """
    before = "" if before_ts is None else "AND start_ts < ?"
    args = (destination,) if before_ts is None else (destination, before_ts)
    txn.execute(
        "SELECT start_ts, end_ts, up_ms, ended, kinds "  # noqa: S608
        f"FROM {_TABLE} WHERE destination = ? {before} UNION ALL "
        "SELECT start_ts, NULL, 0, NULL, COALESCE(last_kind, '') "
        f"FROM {_MISSING} AS o WHERE destination = ? {before} "
        "ORDER BY start_ts DESC LIMIT ?",
        (*args, *args, limit),
    )
    return [
        Outage(start_ts, end_ts, up_ms, ended, tuple(kinds.split()))
        for start_ts, end_ts, up_ms, ended, kinds in txn.fetchall()
    ]


def spans_txn(
    txn: LoggingTransaction, destinations: Sequence[str], since_ts: int
) -> Mapping[str, list[Span]]:
    """Return the outages of each of some destinations that have not ended by a time."""
    these = f"destination IN ({marks(destinations)})"
    txn.execute(
        f"SELECT destination, start_ts, end_ts, up_ms FROM {_TABLE} "  # noqa: S608
        f"WHERE {these} AND (end_ts IS NULL OR end_ts > ?) UNION ALL "
        f"SELECT destination, start_ts, NULL, 0 FROM {_MISSING} AS o WHERE {these}",
        (*destinations, since_ts, *destinations),
    )
    found: dict[str, list[Span]] = {name: [] for name in destinations}
    for name, start_ts, end_ts, up_ms in txn.fetchall():
        found[name].append((start_ts, end_ts, up_ms))
    return found


def ended_since_txn(
    txn: LoggingTransaction, after_ts: int, now_ts: int, limit: int
) -> list[CameBack]:
    """Return which outages ended after a time, up to now; the newest first.

    Also those of which that is not written yet, as the destination has just answered.
    """
    over = ended_outages(OPEN_OUTAGES, answered_since(now_ts - _WRITTEN_MS), now_ts)
    # What has no time of its own has now.
    txn.execute(
        f"SELECT destination, ended, end_ts FROM ({over.text}) AS over "  # noqa: S608
        "WHERE end_ts > ? AND end_ts < ? LIMIT ?",
        (*over.args, after_ts, now_ts, limit),
    )
    rows = txn.fetchall()
    txn.execute(
        f"SELECT destination, ended, end_ts FROM {_TABLE} "  # noqa: S608
        "WHERE end_ts IS NOT NULL AND end_ts > ? AND end_ts <= ? "
        "ORDER BY end_ts DESC LIMIT ?",
        (after_ts, now_ts + AHEAD_MS, limit),
    )
    rows += txn.fetchall()
    return sorted((CameBack(*row) for row in rows), key=lambda each: -each.ts)[:limit]


def count_kinds_txn(
    txn: LoggingTransaction, after_ts: Sequence[int]
) -> dict[str, list[int]]:
    """Return how many destinations fail for which reason, where that is known.

    Args:
        txn: The transaction.
        after_ts: Count also those which began to fail after each of these times.

    Returns:
        By reason, how many began after each of the times, and last all.
    """
    younger = f"COUNT(*) FILTER (WHERE {FAILING_SINCE} > ?), " * len(after_ts)
    # On SQLite, the order of a CROSS JOIN is kept: most destinations have no outage.
    txn.execute(
        f"SELECT o.last_kind, {younger} COUNT(*) FROM {OPEN_OUTAGES} AS o "  # noqa: S608
        f"CROSS JOIN destinations AS d WHERE o.destination = d.destination "
        f"AND o.last_kind IS NOT NULL AND {FAILING} GROUP BY o.last_kind",
        after_ts,
    )
    return {kind: list(map(int, counts)) for kind, *counts in txn.fetchall()}


def recorded_since_txn(txn: LoggingTransaction, now_ts: int) -> int | None:
    """Return since when outages are recorded; None if that is not known.

    It has not begun yet, or that was written by a clock that was ahead.
    """
    txn.execute(
        f"SELECT since_ts FROM {_RECORDING} WHERE since_ts <= ?",  # noqa: S608
        (now_ts + AHEAD_MS,),
    )
    row = txn.fetchone()
    return int(row[0]) if row else None


def fails_for(kinds: Collection[str]) -> Sql:
    """Return the condition that a row of `destinations` fails for one of some reasons.

    The reason is that of its open outage.

    Args:
        kinds: The reasons. `unknown` is for a row that has no known one.
    """
    outage = (
        f"SELECT 1 FROM {OPEN_OUTAGES} AS o "  # noqa: S608
        "WHERE o.destination = destinations.destination AND"
    )
    known = sorted(set(kinds) - {UNKNOWN_KIND})
    kept = []
    if known:
        kept.append(f"EXISTS ({outage} o.last_kind IN ({marks(known)}))")
    if UNKNOWN_KIND in kinds:
        kept.append(f"NOT EXISTS ({outage} o.last_kind IS NOT NULL)")
    return Sql(f"({' OR '.join(kept)})", tuple(known))


# -- how they begin -------------------------------------------------------------------


def begin_recording_txn(txn: LoggingTransaction, now_ts: int) -> None:
    """Write since when outages are recorded, if that has not been written yet."""
    txn.execute(
        f"INSERT INTO {_RECORDING} (only_row, since_ts) VALUES (1, ?) "  # noqa: S608
        "ON CONFLICT (only_row) DO NOTHING",
        (now_ts,),
    )


def end_recording_txn(txn: LoggingTransaction) -> None:
    """Forget since when outages are recorded: they are not any more.

    Of the time until they are again nobody knows whether a destination was failing, and
    one row tells no gap.
    """
    if _RECORDING in existing_tables(txn):
        txn.execute(f"DELETE FROM {_RECORDING}")  # noqa: S608


def record_txn(
    txn: LoggingTransaction,
    failures: Mapping[str, Sequence[RecordedFailure]],
) -> None:
    """Write that destinations fail: their outages begin, or have one more kind.

    Args:
        txn: The transaction. Each statement has to see the newest.
        failures: By destination, those of each kind, the last one last; in an order
            that all writers have.
    """
    if not failures:
        return
    rows = rows_of(
        [
            (name, min(failure.first_ts for failure in of), of[-1].last_ts)
            for name, of in failures.items()
        ]
    )
    # Both databases name the columns of VALUES so. Since when it fails Synapse's row
    # knows best. What is written only after the outage has ended in which it failed,
    # because the job was quicker, begins none.
    new = Sql(
        f"""
        SELECT new.column1 AS destination, d.destination IS NOT NULL AS fails,
            new.column3 AS last_ts, CAST(NULL AS TEXT) AS kind,
            CASE WHEN d.failure_ts < new.column2 + {MOMENT_MS} THEN d.failure_ts
                ELSE new.column2 END AS since_ts
        FROM ({rows.text}) AS new
        LEFT JOIN destinations AS d ON d.destination = new.column1 AND {FAILING}
        """,  # noqa: S608
        rows.args,
    )
    _begin_txn(txn, new)
    # Locked, so that no kind gets lost that another process adds meanwhile.
    which = any_of("destination", list(failures))
    txn.execute(
        f"SELECT destination, kinds, last_kind FROM {_TABLE} "  # noqa: S608
        f"WHERE end_ts IS NULL AND {which.text} "
        f"ORDER BY destination {'FOR UPDATE' if on_postgres(txn) else ''}",
        which.args,
    )
    changed = []
    for destination, known, last_kind in txn.fetchall():
        kinds = [failure.kind for failure in failures[destination]]
        # Each once, as they were first seen.
        seen = " ".join(dict.fromkeys([*known.split(), *kinds]))
        if (seen, kinds[-1]) != (known, last_kind):
            changed.append((seen, kinds[-1], destination))
    txn.execute_batch(
        f"UPDATE {_TABLE} SET kinds = ?, last_kind = ? "  # noqa: S608
        "WHERE destination = ? AND end_ts IS NULL",
        changed,
    )


def _begin_txn(txn: LoggingTransaction, new: Sql) -> None:
    """Begin outages of destinations that have none which lasts.

    If the last one has ended shortly before, or too many began within a day, that one
    goes on. So a server that answers and fails in turn has one, and a reset that turns
    out to have been in vain has ended nothing.

    Args:
        txn: The transaction.
        new: The SELECT of the destinations, in an order that all writers have: whether
            Synapse's row for it says that it fails now (`fails`), since when it does
            (`since_ts`), when it last failed (`last_ts`), and why (`kind`), if known.
    """
    txn.execute(
        f"""
        UPDATE {_TABLE} AS known SET end_ts = NULL, ended = NULL,
            up_ms = up_ms + CASE WHEN new.since_ts > known.end_ts
                THEN new.since_ts - known.end_ts ELSE 0 END
        FROM ({new.text}) AS new
        WHERE known.destination = new.destination
        AND known.start_ts = (
            SELECT MAX(o.start_ts) FROM {_TABLE} AS o
            WHERE o.destination = new.destination
        )
        AND known.start_ts <= new.last_ts
        AND (new.fails OR known.end_ts < new.last_ts)
        AND (
            known.end_ts > new.since_ts - ?
            OR ? <= (
                SELECT COUNT(*) FROM {_TABLE} AS o
                WHERE o.destination = new.destination
                AND o.start_ts > new.since_ts - {_DAY_MS}
            )
        )
        """,  # noqa: S608
        (*new.args, limits.OUTAGES_APART_MS, limits.OUTAGES_A_DAY),
    )
    txn.execute(
        f"INSERT INTO {_TABLE} (destination, start_ts, kinds, last_kind) "  # noqa: S608
        "SELECT destination, since_ts, COALESCE(kind, ''), kind "
        f"FROM ({new.text}) AS new WHERE NOT EXISTS ("
        f"SELECT 1 FROM {_TABLE} AS o WHERE o.destination = new.destination "
        "AND (o.end_ts IS NULL "
        "OR (o.end_ts >= new.last_ts AND o.start_ts <= new.last_ts))"
        ") ON CONFLICT DO NOTHING",
        new.args,
    )


def add_up_txn(txn: LoggingTransaction, up_ms: Mapping[str, int]) -> None:
    """Write for how long, in ms, destinations were not failing in what lasts now.

    Args:
        txn: The transaction.
        up_ms: By destination, in an order that all writers have.
    """
    txn.execute_batch(
        f"UPDATE {_TABLE} SET up_ms = up_ms + ? "  # noqa: S608
        "WHERE destination = ? AND end_ts IS NULL",
        [(ms, name) for name, ms in up_ms.items() if ms],
    )


def begin_missing_txn(
    txn: LoggingTransaction, destinations: Sequence[str], now_ts: int
) -> None:
    """Write the outages of some destinations that last and have no row yet.

    What Synapse says to have begun after now begins now.
    """
    since = "CASE WHEN start_ts > ? THEN ? ELSE start_ts END"
    _begin_txn(
        txn,
        Sql(
            f"SELECT destination, TRUE AS fails, {since} AS since_ts, "  # noqa: S608
            f"{since} AS last_ts, last_kind AS kind FROM {_MISSING} AS o "
            f"WHERE destination IN ({marks(destinations)}) ORDER BY destination",
            (*(now_ts,) * 4, *destinations),
        ),
    )


def begin_since_txn(txn: LoggingTransaction, failing_since: Mapping[str, int]) -> None:
    """Write outages of destinations whose row says no more since when they failed.

    Those that have an outage that lasts, or one that has ended since, have got theirs.
    """
    rows = rows_of(sorted(failing_since.items()))
    _begin_txn(
        txn,
        Sql(
            "SELECT column1 AS destination, FALSE AS fails, column2 AS since_ts, "  # noqa: S608
            f"column2 AS last_ts, CAST(NULL AS TEXT) AS kind FROM ({rows.text}) AS new",
            rows.args,
        ),
    )


# -- how they end ---------------------------------------------------------------------


def end_txn(txn: LoggingTransaction, which: Sql, now_ts: int, limit: int) -> int:
    """End outages that are over; return how many.

    Args:
        txn: The transaction.
        which: As for `ended_outages`.
        now_ts: The time.
        limit: The most to end.
    """
    over = ended_outages(OPEN_OUTAGES, which, now_ts)
    txn.execute(
        f"UPDATE {_TABLE} AS ending SET ended = over.ended, "  # noqa: S608
        "end_ts = CASE WHEN over.end_ts > over.start_ts "
        "THEN over.end_ts ELSE over.start_ts END "
        f"FROM ({over.text} LIMIT ?) AS over "
        "WHERE ending.destination = over.destination "
        "AND ending.start_ts = over.start_ts AND ending.end_ts IS NULL",
        (*over.args, limit),
    )
    return txn.rowcount
