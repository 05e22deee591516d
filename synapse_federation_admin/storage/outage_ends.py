# SPDX-License-Identifier: Apache-2.0
"""Which outages are over, when they ended, and how: in SQL, by what is stored. Pure."""

from enum import Enum

from synapse_federation_admin.storage.audit import ENTRIES
from synapse_federation_admin.storage.records import FAILURES, SUCCESSES
from synapse_federation_admin.storage.sql import AHEAD_MS, FAILING, Sql
from synapse_federation_admin.storage.values import (
    AUDIT_FORGOTTEN,
    AUDIT_INTERRUPTED,
    AUDIT_PENDING,
    AuditAction,
    ReconnectOutcome,
    ResetOutcome,
)

# How long Synapse may take to write the row of a destination that it has never met.
_NEW_ROW_MS = 60_000

# Whoever has made a reset that is not known to have ended after that time is gone: then
# it is enough that the server has answered since.
_GIVEN_UP_MS = 3_600_000

_DAY_MS = 86_400_000

# A request that was on its way when somebody reset the connection may get through then:
# it is still the reset that has ended the outage.
_ON_ITS_WAY_MS = 60_000


class OutageEnd(Enum):
    """How an outage ended."""

    # A request of Synapse's own got through, or the server has sent us one.
    RECOVERED = "recovered"

    # Somebody reset the connection, or reconnected it.
    RESET = "reset"

    # Synapse's row for the destination was deleted.
    FORGOTTEN = "forgotten"


def ended_outages(open_outages: str, which: Sql, now_ts: int) -> Sql:
    """Return the SELECT of outages that are over: their keys, `end_ts` and `ended`.

    They are those whose destination does not fail, by Synapse's row, or has no row. The
    last thing that may have made it so has ended them.

    None has while it is not known yet what comes of a reset or a reconnect. Where that
    was never known, it lasts until a request gets through. A reset after which requests
    went on to fail was in vain: it has ended nothing, also where it is not written yet
    that a later request got through. What the audit has of after now is not believed.

    Args:
        open_outages: What stands in a FROM for the outages that last.
        which: The outages o to look at.
        now_ts: The time.
    """
    entries = f"(SELECT * FROM {ENTRIES} AS e WHERE ts <= {now_ts + AHEAD_MS})"  # noqa: S608
    over = _over(open_outages, which.text).replace(ENTRIES, entries)
    return Sql(
        f"""
        SELECT destination, start_ts, ended, CASE ended
            WHEN '{OutageEnd.RESET.value}' THEN reset_ts
            WHEN '{OutageEnd.FORGOTTEN.value}' THEN COALESCE(forgotten_ts, ?)
            ELSE COALESCE(recovered_ts, ?)
        END AS end_ts
        FROM (
            SELECT *, CASE
                WHEN reset_ts IS NOT NULL
                    AND CASE WHEN recovered_ts IS NULL
                        THEN reset_ts >= COALESCE(failed_ts, reset_ts)
                        ELSE reset_ts > recovered_ts - {_ON_ITS_WAY_MS} END
                    AND (forgotten_ts IS NULL OR reset_ts > forgotten_ts)
                    THEN '{OutageEnd.RESET.value}'
                WHEN recovered_ts IS NULL AND (forgotten_ts IS NOT NULL OR is_gone)
                    THEN '{OutageEnd.FORGOTTEN.value}'
                ELSE '{OutageEnd.RECOVERED.value}'
            END AS ended
            FROM ({over}) AS found
        ) AS found
        """,  # noqa: S608
        (
            now_ts,
            now_ts,
            *which.args,
            now_ts - _NEW_ROW_MS,
            now_ts - _GIVEN_UP_MS,
        ),
    )


def answered_since(ts: int) -> Sql:
    """Return the condition that the destination of an outage o has answered lately."""
    return Sql(
        "o.destination IN ("  # noqa: S608
        f"SELECT destination FROM {SUCCESSES} AS s WHERE last_ts >= ?)",
        (ts,),
    )


def changed_since(ts: int) -> Sql:
    """Return the condition that something was written lately of an outage o's end.

    The audit is asked by its index on `ts`. Of what began more than a day before, which
    has been given up by then, the look at all outages finds the end.
    """
    return Sql(
        "o.destination IN ("  # noqa: S608
        f"SELECT destination FROM {SUCCESSES} AS s WHERE last_ts >= ? UNION "
        f"SELECT destination FROM {ENTRIES} AS a "
        "WHERE ts >= ? AND (ts >= ? OR ended_ts >= ?))",
        (ts, ts - _DAY_MS, ts, ts),
    )


def _values(*members: Enum) -> str:
    return ", ".join(f"'{member.value}'" for member in members)


# By which outcomes of what is in the audit an outage may have ended. The first is that
# of a name that is no server's: nobody finds out what comes of it.
_CLEARED = _values(
    ResetOutcome.RESET, ReconnectOutcome.CONNECTED, ReconnectOutcome.NOT_SENT
)

_HAS_ROW = (
    "EXISTS (SELECT 1 FROM destinations AS r WHERE r.destination = o.destination)"
)

# What may have ended the outage o, whose destination failed last at `failed_ts`. Of the
# action the audit's index is not wanted: for each outage, SQLite would go through all
# that was ever forgotten.
_RECOVERED_TS = f"""
    SELECT s.recovered_ts FROM {SUCCESSES} AS s
    WHERE s.destination = o.destination AND s.recovered_ts >= o.start_ts
    AND s.recovered_ts >= COALESCE(o.failed_ts, s.recovered_ts)
"""  # noqa: S608
_RESET_TS = f"""
    SELECT MAX(COALESCE(a.ended_ts, a.ts)) FROM {ENTRIES} AS a
    WHERE a.destination = o.destination AND a.ts >= o.start_ts
    AND a.action IN ({_values(AuditAction.RESET, AuditAction.RECONNECT)})
    AND a.outcome IN ({_CLEARED})
"""  # noqa: S608
_FORGOTTEN_TS = f"""
    SELECT MAX(a.ts) FROM {ENTRIES} AS a
    WHERE a.destination = o.destination AND a.ts >= o.start_ts
    AND CAST(a.action AS TEXT) = '{AuditAction.FORGET.value}'
    AND a.outcome = '{AUDIT_FORGOTTEN}'
    AND a.ts >= COALESCE(o.failed_ts, a.ts)
"""  # noqa: S608

# What was cleared of the outage o's destination without anybody knowing what came of
# it, or of anything since.
_NOBODY_KNOWS = f"""
    SELECT 1 FROM {ENTRIES} AS a
    WHERE a.destination = o.destination AND a.ts >= o.start_ts
    AND a.action IN ({_values(AuditAction.RESET, AuditAction.RECONNECT)})
    AND a.outcome = '{AUDIT_INTERRUPTED}' AND {_HAS_ROW}
    AND NOT EXISTS (
        SELECT 1 FROM {ENTRIES} AS b
        WHERE b.destination = o.destination AND b.ts > a.ts
        AND b.outcome IN ({_CLEARED})
    )
    AND NOT EXISTS (
        SELECT 1 FROM {SUCCESSES} AS s WHERE s.destination = o.destination
        AND (s.last_ts >= a.ts OR s.recovered_ts >= o.start_ts)
    )
"""  # noqa: S608


def _over(open_outages: str, which: str) -> str:
    """Return the SELECT of outages that are over, with what may have ended each."""
    return f"""
        SELECT o.destination, o.start_ts, o.failed_ts, NOT {_HAS_ROW} AS is_gone,
            ({_RECOVERED_TS}) AS recovered_ts,
            ({_RESET_TS}) AS reset_ts,
            ({_FORGOTTEN_TS}) AS forgotten_ts
        FROM (
            SELECT o.destination, o.start_ts, (
                SELECT MAX(f.last_ts) FROM {FAILURES} AS f
                WHERE f.destination = o.destination
            ) AS failed_ts
            FROM {open_outages} AS o WHERE {which}
        ) AS o
        WHERE NOT EXISTS (
            SELECT 1 FROM destinations AS d
            WHERE d.destination = o.destination AND {FAILING}
        )
        AND (o.start_ts < ? OR {_HAS_ROW})
        AND NOT EXISTS (
            SELECT 1 FROM {ENTRIES} AS a
            WHERE a.destination = o.destination
            AND a.outcome = '{AUDIT_PENDING}' AND a.ended_ts IS NOT NULL
            AND (a.ts > ? OR NOT EXISTS (
                SELECT 1 FROM {SUCCESSES} AS s
                WHERE s.destination = o.destination AND s.last_ts > a.ts
            ))
        )
        AND NOT EXISTS ({_NOBODY_KNOWS})
    """  # noqa: S608
