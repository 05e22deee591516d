# SPDX-License-Identifier: Apache-2.0
"""Tells which outages are over, when they ended, and how: in SQL, by what is stored."""

from synapse_federation_admin.destinations.query import FAILING
from synapse_federation_admin.storage.audit_entry import AuditAction
from synapse_federation_admin.storage.outages import OutageEnd
from synapse_federation_admin.storage.outcomes import ReconnectOutcome, ResetOutcome
from synapse_federation_admin.storage.sql import Sql

# By how much Synapse's time of a failure may differ from ours.
MOMENT_MS = 1000

# How much longer than the contact takes it may be until it is known whether a reset was
# of use: what comes of it is written in the background.
SETTLED_MS = 20_000

# How long Synapse may take to write the row of a destination that it has never met.
_NEW_ROW_MS = 60_000

# A request that was on its way when somebody reset the connection may get through then:
# it is still the reset that has ended the outage.
_ON_ITS_WAY_MS = 60_000

# By which outcomes of what is in the audit retry timings have been cleared.
_CLEARED = ", ".join(
    f"'{outcome.value}'"
    for outcome in (
        ResetOutcome.RESET,
        ReconnectOutcome.CONNECTED,
        ReconnectOutcome.FORCED,
    )
)
# Of these, by which without knowing whether the destination works.
_UNPROVEN = f"'{ResetOutcome.RESET.value}', '{ReconnectOutcome.FORCED.value}'"

# Cast, so that SQLite does not use the index of actions: for each outage, it would go
# through all that was ever forgotten.
_FORGOT = f"CAST(a.action AS TEXT) = '{AuditAction.FORGET.value}'"

_HAS_ROW = (
    "EXISTS (SELECT 1 FROM destinations AS r WHERE r.destination = o.destination)"
)


def end_outages(which: Sql, now_ts: int, settled_ts: int) -> Sql:
    """Return what ends outages.

    Candidates are those whose destination has no row, or does not fail, or fails since
    a later time. The latter have ended only if there is something that has ended them:
    Synapse's requests that fail side by side may make that time a later one, too.

    A reset after which requests went on to fail was in vain: it has ended nothing, also
    where it is not written yet that a later request got through.

    Args:
        which: The outages o to look at; d are the rows of those
            of their destinations that fail.
        now_ts: The time.
        settled_ts: Of what was reset later it is not known yet what comes of it.
    """
    return Sql(
        f"""
        UPDATE federation_admin_outages AS ending
        SET ended = over.ended,
            end_ts = CASE WHEN over.end_ts > over.start_ts
                THEN over.end_ts ELSE over.start_ts END
        FROM (
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
                            ELSE reset_ts > recovered_ts - ? END
                        AND (forgotten_ts IS NULL OR reset_ts > forgotten_ts)
                        THEN '{OutageEnd.RESET.value}'
                    WHEN recovered_ts IS NOT NULL THEN '{OutageEnd.RECOVERED.value}'
                    WHEN forgotten_ts IS NOT NULL OR is_gone
                        THEN '{OutageEnd.FORGOTTEN.value}'
                    WHEN failing_ts IS NULL THEN '{OutageEnd.RECOVERED.value}'
                END AS ended
                FROM ({_found(which.text)}) AS found
            ) AS found
        ) AS over
        WHERE ending.destination = over.destination
        AND ending.start_ts = over.start_ts AND ending.end_ts IS NULL
        AND over.ended IS NOT NULL
        """,  # noqa: S608
        (
            *(now_ts, now_ts, _ON_ITS_WAY_MS, MOMENT_MS),
            *which.args,
            *(MOMENT_MS, now_ts - _NEW_ROW_MS, settled_ts),
        ),
    )


def _found(which: str) -> str:
    """Return what finds candidates, and what may have ended each."""
    return f"""
        SELECT o.destination, o.start_ts, o.is_gone, o.failing_ts,
            (
                SELECT s.recovered_ts FROM federation_admin_successes AS s
                WHERE s.destination = o.destination
                AND s.recovered_ts >= o.start_ts
                AND s.recovered_ts <= COALESCE(o.failing_ts, s.recovered_ts)
            ) AS recovered_ts,
            (
                SELECT MAX(COALESCE(a.ended_ts, a.ts))
                FROM federation_admin_audit AS a
                WHERE a.destination = o.destination AND a.ts >= o.start_ts
                AND a.action IN (
                    '{AuditAction.RESET.value}',
                    '{AuditAction.RECONNECT.value}'
                )
                AND a.outcome IN ({_CLEARED})
                AND a.ts <= COALESCE(o.failing_ts, a.ts)
            ) AS reset_ts,
            (
                SELECT MAX(a.ts) FROM federation_admin_audit AS a
                WHERE a.destination = o.destination AND a.ts >= o.start_ts
                AND {_FORGOT}
                AND a.outcome = 'forgotten'
                AND a.ts <= COALESCE(o.failing_ts, a.ts)
            ) AS forgotten_ts,
            (
                SELECT MAX(f.last_ts) FROM federation_admin_failures AS f
                WHERE f.destination = o.destination
                AND f.last_ts < COALESCE(o.failing_ts - ?, f.last_ts + 1)
            ) AS failed_ts
        FROM (
            SELECT o.destination, o.start_ts, NOT {_HAS_ROW} AS is_gone,
                COALESCE(d.failure_ts, d.retry_last_ts) AS failing_ts
            FROM federation_admin_outages AS o
            LEFT JOIN destinations AS d
                ON d.destination = o.destination AND {FAILING}
            WHERE o.end_ts IS NULL AND {which}
            AND (d.destination IS NULL OR d.failure_ts > o.start_ts + ?)
            AND (o.start_ts < ? OR {_HAS_ROW})
        ) AS o
        WHERE NOT EXISTS (
            SELECT 1 FROM federation_admin_audit AS a
            WHERE a.destination = o.destination AND a.ts > ?
            AND a.outcome IN ({_UNPROVEN})
        )
    """  # noqa: S608
