# SPDX-License-Identifier: Apache-2.0
"""When destinations were failing: `federation_admin_outages`.

It has a row for each outage but those of which Synapse's own row says all that there is
to say: that the destination fails, and since when. Such an outage gets its row before
that is cleared (`begin_missing_txn`), or when a failure is recorded. A homeserver that
has known half a million dead servers for years has no rows for them.

Since when outages are recorded is the one row of `federation_admin_recording`. This
file alone names these tables.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import UNKNOWN_KIND, FailureKind
from synapse_federation_admin.storage.outage_ends import (
    MOMENT_MS,
    OutageEnd,
    ended_outages,
)
from synapse_federation_admin.storage.records import FAILURES, RecordedFailure
from synapse_federation_admin.storage.sql import (
    FAILING,
    Sql,
    any_of,
    delete_some,
    marks,
    rows_of_json,
)

_TABLE = "federation_admin_outages"
_RECORDING = "federation_admin_recording"

# Those that last, for statements of others. `last_kind` is why; NULL if not known.
OPEN_OUTAGES = (
    f"(SELECT destination, start_ts, last_kind FROM {_TABLE} WHERE end_ts IS NULL)"  # noqa: S608
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Outage:
    """A time for which a destination was failing.

    Attributes:
        start_ts: When it began.
        end_ts: When it ended; None while it lasts.
        ended: `recovered` by itself, `reset` by an admin, or `forgotten`; None while it
            lasts.
        kinds: Every kind of failure seen in it, as they were first seen; none if it is
            not known why it failed.
    """

    start_ts: int
    end_ts: int | None
    ended: Annotated[str, OutageEnd] | None
    kinds: tuple[Annotated[str, FailureKind], ...]


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
    AND LENGTH(d.destination) <= {limits.SERVER_NAME}
    AND NOT EXISTS (
        SELECT 1 FROM {OPEN_OUTAGES} AS o WHERE o.destination = d.destination
    )
)"""  # noqa: S608

# When an outage began, and ended; None while it lasts.
Span = tuple[int, int | None]


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
        "SELECT start_ts, end_ts, ended, kinds "  # noqa: S608
        f"FROM {_TABLE} WHERE destination = ? {before} UNION ALL "
        "SELECT start_ts, NULL, NULL, COALESCE(last_kind, '') "
        f"FROM {_MISSING} AS o WHERE destination = ? {before} "
        "ORDER BY start_ts DESC LIMIT ?",
        (*args, *args, limit),
    )
    return [
        Outage(start_ts, end_ts, ended, tuple(kinds.split()))
        for start_ts, end_ts, ended, kinds in txn.fetchall()
    ]


def spans_txn(
    txn: LoggingTransaction, destinations: Sequence[str], since_ts: int
) -> Mapping[str, list[Span]]:
    """Return the outages of each of some destinations that have not ended by a time."""
    these = f"destination IN ({marks(destinations)})"
    txn.execute(
        f"SELECT destination, start_ts, end_ts FROM {_TABLE} "  # noqa: S608
        f"WHERE {these} AND (end_ts IS NULL OR end_ts > ?) UNION ALL "
        f"SELECT destination, start_ts, NULL FROM {_MISSING} AS o WHERE {these}",
        (*destinations, since_ts, *destinations),
    )
    found: dict[str, list[Span]] = {name: [] for name in destinations}
    for name, *span in txn.fetchall():
        found[name].append((span[0], span[1]))
    return found


def count_kinds_txn(txn: LoggingTransaction) -> dict[str, int]:
    """Return how many destinations fail for which reason, where that is known."""
    # On SQLite, the order of a CROSS JOIN is kept: most destinations have no outage.
    txn.execute(
        f"SELECT o.last_kind, COUNT(*) FROM {OPEN_OUTAGES} AS o "  # noqa: S608
        f"CROSS JOIN destinations AS d WHERE o.destination = d.destination "
        f"AND o.last_kind IS NOT NULL AND {FAILING} GROUP BY o.last_kind"
    )
    return {kind: int(count) for kind, count in txn.fetchall()}


def recorded_since_txn(txn: LoggingTransaction) -> int | None:
    """Return since when outages are recorded; None if that has not begun yet."""
    txn.execute(f"SELECT since_ts FROM {_RECORDING}")  # noqa: S608
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
        "ON CONFLICT DO NOTHING",
        (now_ts,),
    )


def record_txn(
    txn: LoggingTransaction,
    failures: Mapping[str, Sequence[RecordedFailure]],
    *,
    is_postgres: bool,
    now_ts: int,
    settled_ts: int,
) -> None:
    """Write that destinations fail: their outages begin, or have one more kind.

    Args:
        txn: The transaction. Each statement has to see the newest.
        failures: By destination, those of each kind, the last one last; in an order
            that all writers have.
        is_postgres: Whether the database is PostgreSQL.
        now_ts: The time.
        settled_ts: As for `end_txn`.
    """
    rows = json.dumps(
        [
            {
                "destination": name,
                "first_ts": min(failure.first_ts for failure in of),
                "last_ts": of[-1].last_ts,
            }
            for name, of in failures.items()
        ]
    )
    columns = {"destination": "text", "first_ts": "bigint", "last_ts": "bigint"}
    new = rows_of_json("new", columns, is_postgres)
    # What fails anew is no part of an outage that is over.
    anew = (
        f"o.destination IN (SELECT new.destination FROM {new}) "  # noqa: S608
        f"AND d.{FAILING} AND d.failure_ts IS NOT NULL"
    )
    end_txn(txn, Sql(anew, (rows,)), len(failures), now_ts, settled_ts)
    txn.execute(_BEGIN.replace("{new}", new), (rows,))
    # Locked, so that no kind gets lost that another process adds meanwhile.
    which = any_of("destination", list(failures), is_postgres)
    txn.execute(
        f"SELECT destination, kinds, last_kind FROM {_TABLE} "  # noqa: S608
        f"WHERE end_ts IS NULL AND {which.text} "
        f"ORDER BY destination {'FOR UPDATE' if is_postgres else ''}",
        which.args,
    )
    changed = []
    for destination, known, last_kind in txn.fetchall():
        kinds = [failure.kind for failure in failures[destination]]
        seen = _words(known.split(), kinds)
        if (seen, kinds[-1]) != (known, last_kind):
            changed.append((seen, kinds[-1], destination))
    txn.execute_batch(
        f"UPDATE {_TABLE} SET kinds = ?, last_kind = ? "  # noqa: S608
        "WHERE destination = ? AND end_ts IS NULL",
        changed,
    )


def _words(*kinds: Sequence[str]) -> str:
    """Return kinds as they are stored: each once, as they were first seen."""
    return " ".join(dict.fromkeys(kind for some in kinds for kind in some))


# Since when it fails Synapse's row knows best; but where that is about an outage that
# has ended, this is another one. What is written only after the outage has ended in
# which it failed, because another process or the job was quicker, begins none.
_BEGIN = f"""
    INSERT INTO {_TABLE} (destination, start_ts, kinds)
    SELECT new.destination,
        CASE
            WHEN d.failure_ts < new.first_ts + {MOMENT_MS} AND NOT EXISTS (
                SELECT 1 FROM {_TABLE} AS before
                WHERE before.destination = new.destination
                AND before.end_ts > d.failure_ts
            ) THEN d.failure_ts
            ELSE COALESCE(
                (
                    SELECT MAX(before.end_ts) + 1 FROM {_TABLE} AS before
                    WHERE before.destination = new.destination
                    AND before.end_ts > new.first_ts
                ),
                new.first_ts
            )
        END,
        ''
    FROM {{new}} LEFT JOIN destinations AS d ON d.destination = new.destination
    WHERE NOT EXISTS (
        SELECT 1 FROM {_TABLE} AS o
        WHERE o.destination = new.destination
        AND (o.end_ts IS NULL OR o.end_ts >= new.last_ts)
    )
    ON CONFLICT DO NOTHING
"""  # noqa: S608


def begin_missing_txn(
    txn: LoggingTransaction, which: Sql, limit: int | None = None
) -> int:
    """Write outages that last and have no row yet; return how many.

    In the order of `record_txn`, so that neither waits for the other in a circle.

    Args:
        txn: The transaction.
        which: Of which destinations.
        limit: The most to write; None: all.
    """
    txn.execute(
        f"INSERT INTO {_TABLE} (destination, start_ts, kinds, last_kind) "  # noqa: S608
        "SELECT destination, start_ts, COALESCE(last_kind, ''), last_kind "
        f"FROM {_MISSING} AS o WHERE {which.text} "
        f"ORDER BY destination {'' if limit is None else 'LIMIT ?'} "
        "ON CONFLICT DO NOTHING",
        which.args if limit is None else (*which.args, limit),
    )
    return txn.rowcount


def ended_since(ts: int) -> Sql:
    """Return the condition that an outage of a destination has ended since a time."""
    return Sql(
        f"destination IN (SELECT destination FROM {_TABLE} WHERE end_ts > ?)",  # noqa: S608
        (ts,),
    )


def begin_since_txn(txn: LoggingTransaction, failing_since: Mapping[str, int]) -> None:
    """Write outages of destinations whose row says no more since when they failed.

    Those that have an outage that lasts, or one that has ended since, have got theirs.
    """
    txn.execute_batch(
        f"INSERT INTO {_TABLE} (destination, start_ts, kinds) "  # noqa: S608
        "SELECT ?, ?, '' WHERE NOT EXISTS ("
        f"SELECT 1 FROM {_TABLE} WHERE destination = ? "
        "AND (end_ts IS NULL OR end_ts > ?)) ON CONFLICT DO NOTHING",
        [(name, ts, name, ts) for name, ts in sorted(failing_since.items())],
    )


# -- how they end ---------------------------------------------------------------------


def end_txn(
    txn: LoggingTransaction, which: Sql, limit: int, now_ts: int, settled_ts: int
) -> int:
    """End outages that are over; return how many.

    Args:
        txn: The transaction.
        which: As for `ended_outages`.
        limit: The most to end.
        now_ts: The time.
        settled_ts: As for `ended_outages`.
    """
    over = ended_outages(OPEN_OUTAGES, which, now_ts, settled_ts)
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


def reopen_txn(txn: LoggingTransaction, since_ts: int, limit: int) -> int:
    """Let outages go on that a reset has seemed to end; return how many.

    When a reset turns out to have been in vain, the destination is given the time since
    when it really fails: that is before the reset.

    Args:
        txn: The transaction.
        since_ts: Those that have ended since.
        limit: The most to look at.
    """
    txn.execute(
        f"SELECT o.destination, o.start_ts FROM {_TABLE} AS o "  # noqa: S608
        "JOIN destinations AS d ON d.destination = o.destination "
        f"WHERE o.ended = '{OutageEnd.RESET.value}' AND o.end_ts >= ? AND {FAILING} "
        "AND d.failure_ts < o.end_ts - ? AND d.failure_ts > o.start_ts - ? LIMIT ?",
        (since_ts, MOMENT_MS, MOMENT_MS, limit),
    )
    found = txn.fetchall()
    for destination, start_ts in found:
        # With what has been taken for another one since.
        txn.execute(
            f"SELECT kinds, last_kind FROM {_TABLE} "  # noqa: S608
            "WHERE destination = ? AND start_ts >= ? ORDER BY start_ts",
            (destination, start_ts),
        )
        rows = txn.fetchall()
        kinds = _words(*(row[0].split() for row in rows))
        last_kind = [None, *(row[1] for row in rows if row[1])][-1]
        txn.execute(
            f"DELETE FROM {_TABLE} WHERE destination = ? AND start_ts > ?",  # noqa: S608
            (destination, start_ts),
        )
        txn.execute(
            f"UPDATE {_TABLE} SET end_ts = NULL, ended = NULL, "  # noqa: S608
            "kinds = ?, last_kind = ? WHERE destination = ? AND start_ts = ?",
            (kinds, last_kind, destination, start_ts),
        )
    return len(found)


def prune_txn(txn: LoggingTransaction, before_ts: int, limit: int) -> int:
    """Delete outages that ended before a time; return how many."""
    old = Sql("end_ts < ?", (before_ts,))
    return delete_some(txn, _TABLE, "destination, start_ts", old, limit)
