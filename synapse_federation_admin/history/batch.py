# SPDX-License-Identifier: Apache-2.0
"""Writes what has come of federation requests, all in one transaction."""

import json

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.history.ending import MOMENT_MS, end_outages
from synapse_federation_admin.history.kinds import to_bits
from synapse_federation_admin.storage.sql import Sql, rows_of_json


@attr.s(slots=True, auto_attribs=True, eq=False)
class Failures:
    """Failures of one kind of one destination, not written yet."""

    first_ts: int
    last_ts: int
    count: int
    message: str
    issuer: str
    # Whether there was no connection in time; and whether it is known why.
    is_unconnected: bool = False
    is_settled: bool = False


# A destination, and a kind.
Key = tuple[str, FailureKind]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Batch:
    """What one transaction writes, each a list of objects as JSON; "" for none.

    As one parameter each, so that a thousand rows cost the process that sends them
    hardly more than one. All are sorted, so that transactions of other processes rarely
    wait for each other in a circle; then Synapse runs one of them again.
    """

    successes: str
    failures: str
    outages: str

    @classmethod
    def make(
        cls,
        failures: dict[Key, Failures],
        recoveries: dict[str, int],
        successes: dict[str, int],
        instance: str,
    ) -> "Batch":
        """Make the rows."""
        answered = [
            {"destination": name, "ts": ts, "recovered": recoveries.get(name)}
            # One that has recovered has answered.
            for name, ts in sorted({**successes, **recoveries}.items())
        ]
        failed = []
        by_name: dict[str, list[tuple[FailureKind, Failures]]] = {}
        for (name, kind), found in failures.items():
            by_name.setdefault(name, []).append((kind, found))
            failed.append(
                {
                    "destination": name,
                    "kind": kind.value,
                    "instance": instance,
                    "message": found.message,
                    "issuer": found.issuer,
                    "first_ts": found.first_ts,
                    "last_ts": found.last_ts,
                    "count": found.count,
                }
            )
        failed.sort(key=lambda row: (row["destination"], row["kind"]))
        down = [
            {
                "destination": name,
                "first_ts": min(failure.first_ts for _, failure in found),
                "last_ts": max(failure.last_ts for _, failure in found),
                "kind": max(found, key=lambda one: one[1].last_ts)[0].value,
                "kinds": to_bits(kind.value for kind, _ in found),
            }
            for name, found in sorted(by_name.items())
        ]
        return cls(
            *(json.dumps(rows) if rows else "" for rows in (answered, failed, down))
        )


def write_txn(
    batch: Batch,
    is_postgres: bool,
    now_ts: int,
    settled_ts: int,
    txn: LoggingTransaction,
) -> None:
    """Write a batch.

    Args:
        batch: What to write.
        is_postgres: Whether the database is PostgreSQL.
        now_ts: The time.
        settled_ts: As for `end_outages`.
        txn: The transaction.
    """
    # What fails anew is no part of an outage that is over.
    over = end_outages(Sql(_FAILS_ANEW, (batch.outages,)), now_ts, settled_ts)
    for rows, columns, statements in (
        (batch.successes, _SUCCESS_COLUMNS, (Sql(_WRITE_SUCCESSES),)),
        (batch.failures, _FAILURE_COLUMNS, (Sql(_WRITE_FAILURES),)),
        (
            batch.outages,
            _OUTAGE_COLUMNS,
            (
                over,
                Sql(_BEGIN_OUTAGES.replace("{moment}", str(MOMENT_MS))),
                Sql(_WRITE_KINDS),
            ),
        ),
    ):
        if rows:
            source = rows_of_json("new", columns, is_postgres)
            for statement in statements:
                text = statement.text.replace("{new}", source)
                txn.execute(text, statement.args or (rows,))


_SUCCESS_COLUMNS = {"destination": "text", "ts": "bigint", "recovered": "bigint"}
_FAILURE_COLUMNS = {
    "destination": "text",
    "kind": "text",
    "instance": "text",
    "message": "text",
    "issuer": "text",
    "first_ts": "bigint",
    "last_ts": "bigint",
    "count": "bigint",
}
_OUTAGE_COLUMNS = {
    "destination": "text",
    "first_ts": "bigint",
    "last_ts": "bigint",
    "kind": "text",
    "kinds": "bigint",
}

_WRITE_SUCCESSES = """
    INSERT INTO federation_admin_successes AS known
        (destination, last_ts, recovered_ts)
    SELECT new.destination, new.ts, new.recovered FROM {new} WHERE TRUE
    ON CONFLICT (destination) DO UPDATE SET
        last_ts = CASE WHEN EXCLUDED.last_ts > known.last_ts
            THEN EXCLUDED.last_ts ELSE known.last_ts END,
        recovered_ts = CASE WHEN known.recovered_ts IS NULL
                OR EXCLUDED.recovered_ts > known.recovered_ts
            THEN EXCLUDED.recovered_ts ELSE known.recovered_ts END
"""

# What was said last is kept of what several processes say.
_WRITE_FAILURES = """
    INSERT INTO federation_admin_failures AS known
        (destination, kind, message, first_ts, last_ts, count, instance, issuer)
    SELECT new.destination, new.kind, new.message, new.first_ts, new.last_ts,
        new.count, new.instance, new.issuer
    FROM {new} WHERE TRUE
    ON CONFLICT (destination, kind) DO UPDATE SET
        message = CASE WHEN EXCLUDED.last_ts >= known.last_ts
            THEN EXCLUDED.message ELSE known.message END,
        instance = CASE WHEN EXCLUDED.last_ts >= known.last_ts
            THEN EXCLUDED.instance ELSE known.instance END,
        issuer = CASE WHEN EXCLUDED.last_ts >= known.last_ts
            THEN EXCLUDED.issuer ELSE known.issuer END,
        first_ts = CASE WHEN EXCLUDED.first_ts < known.first_ts
            THEN EXCLUDED.first_ts ELSE known.first_ts END,
        last_ts = CASE WHEN EXCLUDED.last_ts > known.last_ts
            THEN EXCLUDED.last_ts ELSE known.last_ts END,
        count = known.count + EXCLUDED.count
"""

_FAILS_ANEW = """
    o.destination IN (SELECT new.destination FROM {new})
    AND d.retry_last_ts <> 0 AND d.failure_ts IS NOT NULL
"""

# Since when it fails Synapse's row knows best; but where that is about an outage that
# has ended, this is another one. What is written only after the outage has ended in
# which it failed, because another process or the job was quicker, begins none.
_BEGIN_OUTAGES = """
    INSERT INTO federation_admin_outages (destination, start_ts, kinds)
    SELECT new.destination,
        CASE
            WHEN d.failure_ts < new.first_ts + {moment} AND NOT EXISTS (
                SELECT 1 FROM federation_admin_outages AS before
                WHERE before.destination = new.destination
                AND before.end_ts > d.failure_ts
            ) THEN d.failure_ts
            ELSE COALESCE(
                (
                    SELECT MAX(before.end_ts) + 1
                    FROM federation_admin_outages AS before
                    WHERE before.destination = new.destination
                    AND before.end_ts > new.first_ts
                ),
                new.first_ts
            )
        END,
        0
    FROM {new} LEFT JOIN destinations AS d ON d.destination = new.destination
    WHERE NOT EXISTS (
        SELECT 1 FROM federation_admin_outages AS o
        WHERE o.destination = new.destination
        AND (o.end_ts IS NULL OR o.end_ts >= new.last_ts)
    )
    ON CONFLICT DO NOTHING
"""

_WRITE_KINDS = """
    UPDATE federation_admin_outages AS o
    SET last_kind = new.kind, kinds = o.kinds | new.kinds
    FROM {new}
    WHERE o.destination = new.destination AND o.end_ts IS NULL
    AND (
        o.last_kind IS NULL OR o.last_kind <> new.kind
        OR o.kinds <> (o.kinds | new.kinds)
    )
"""
