# SPDX-License-Identifier: Apache-2.0
"""The tables of this module's own, as statements for both databases; their versions.

A new database gets what `TABLES` says, and one with tables in it what leads there from
the version that they are of: `VERSIONS`. A change of a table is a change of both. An
upgrade may find its work done, in part or whole, and tables missing.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.database import on_postgres

# What the names of all of them, and of their indexes, begin with.
PREFIX = "federation_admin_"

# Those that are not there where nothing is recorded.
OF_HISTORY = frozenset({"failures", "successes", "outages", "addresses", "recording"})

# By name, without the prefix, what makes each table and its indexes if it is missing.
TABLES: Mapping[str, tuple[str, ...]] = {
    # Which version the tables are of. See `synapse_federation_admin.storage.schema`.
    "schema": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_schema (
            only_row INTEGER NOT NULL PRIMARY KEY,
            version INTEGER NOT NULL,
            compat_version INTEGER NOT NULL
        )
        """,
    ),
    # Who did what. See `synapse_federation_admin.storage.values`.
    "audit": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_audit (
            entry_id TEXT NOT NULL PRIMARY KEY,
            ts BIGINT NOT NULL,
            action TEXT NOT NULL,
            destination TEXT,
            user_id TEXT NOT NULL,
            puppeted_by TEXT,
            instance TEXT NOT NULL,
            outcome TEXT NOT NULL,
            reason TEXT,
            run_id TEXT,
            ended_ts BIGINT,
            details TEXT NOT NULL
        )
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_audit_ts
        ON federation_admin_audit (ts, entry_id)
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_audit_destination
        ON federation_admin_audit (destination, ts, entry_id)
        WHERE destination IS NOT NULL
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_audit_action
        ON federation_admin_audit (action, ts, entry_id)
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_audit_run
        ON federation_admin_audit (run_id, ts, entry_id)
        WHERE run_id IS NOT NULL
        """,
        # What is still going on: a few rows at any time.
        """
        CREATE INDEX IF NOT EXISTS federation_admin_audit_pending
        ON federation_admin_audit (instance, ts)
        WHERE outcome = 'pending'
        """,
    ),
    # Runs: one of each action that has not ended. See
    # `synapse_federation_admin.storage.runs`.
    "runs": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_runs (
            run_id TEXT NOT NULL PRIMARY KEY,
            action TEXT NOT NULL,
            status TEXT NOT NULL,
            entry_id TEXT NOT NULL,
            user_id TEXT NOT NULL,
            puppeted_by TEXT,
            reason TEXT,
            criteria TEXT NOT NULL,
            options TEXT NOT NULL,
            names TEXT NOT NULL,
            created_ts BIGINT NOT NULL,
            started_ts BIGINT,
            updated_ts BIGINT NOT NULL,
            ended_ts BIGINT,
            runner TEXT,
            prepared_to TEXT,
            matched BIGINT NOT NULL,
            outcomes TEXT NOT NULL,
            totals TEXT NOT NULL,
            errors TEXT NOT NULL,
            rate DOUBLE PRECISION,
            error TEXT
        )
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_runs_created
        ON federation_admin_runs (created_ts, run_id)
        """,
        """
        CREATE UNIQUE INDEX IF NOT EXISTS federation_admin_runs_unended
        ON federation_admin_runs (action)
        WHERE ended_ts IS NULL
        """,
    ),
    # What a run has still to do; the smallest priority first.
    "run_queue": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_run_queue (
            run_id TEXT NOT NULL,
            priority INTEGER NOT NULL,
            destination TEXT NOT NULL,
            was_failing INTEGER NOT NULL,
            PRIMARY KEY (run_id, destination)
        )
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_run_queue_order
        ON federation_admin_run_queue (run_id, priority, destination)
        """,
    ),
    # Why requests failed, one row for each destination and kind. `refused_bytes` is how
    # large a request was that was too large, until one as large is accepted; else NULL.
    # See `synapse_federation_admin.history.recorder`.
    "failures": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_failures (
            destination TEXT NOT NULL,
            kind TEXT NOT NULL,
            message TEXT NOT NULL,
            first_ts BIGINT NOT NULL,
            last_ts BIGINT NOT NULL,
            count BIGINT NOT NULL,
            instance TEXT NOT NULL,
            issuer TEXT NOT NULL,
            refused_bytes BIGINT,
            PRIMARY KEY (destination, kind)
        )
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_failures_last
        ON federation_admin_failures (last_ts)
        """,
    ),
    # When a destination last answered well, to within some minutes; when it last did so
    # after it had failed, exactly; when it first did, and whose it is.
    "successes": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_successes (
            destination TEXT NOT NULL PRIMARY KEY,
            last_ts BIGINT NOT NULL,
            recovered_ts BIGINT,
            first_ts BIGINT,
            owner TEXT
        )
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_successes_last
        ON federation_admin_successes (last_ts)
        """,
    ),
    # `end_ts` and `ended` are NULL while it lasts. `up_ms` is for how long of it the
    # destination was not failing. `kinds` are words with spaces in
    # between, `last_kind` is one; "" and NULL if it is not known why.
    "outages": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_outages (
            destination TEXT NOT NULL,
            start_ts BIGINT NOT NULL,
            end_ts BIGINT,
            ended TEXT,
            kinds TEXT NOT NULL,
            last_kind TEXT,
            up_ms BIGINT NOT NULL DEFAULT 0,
            PRIMARY KEY (destination, start_ts)
        )
        """,
        """
        CREATE UNIQUE INDEX IF NOT EXISTS federation_admin_outages_open
        ON federation_admin_outages (destination)
        WHERE end_ts IS NULL
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_outages_kind
        ON federation_admin_outages (last_kind, destination)
        WHERE end_ts IS NULL
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_outages_end
        ON federation_admin_outages (end_ts)
        WHERE end_ts IS NOT NULL
        """,
    ),
    # Where destinations lead that began to fail together, as JSON.
    "addresses": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_addresses (
            destination TEXT NOT NULL PRIMARY KEY,
            looked_ts BIGINT NOT NULL,
            addresses TEXT NOT NULL
        )
        """,
    ),
    # Which processes run this module. Times are those of the database's clock. See
    # `synapse_federation_admin.storage.instances`.
    "instances": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_instances (
            instance TEXT NOT NULL PRIMARY KEY,
            seen_ts BIGINT NOT NULL,
            started_ts BIGINT NOT NULL,
            has_ended INTEGER NOT NULL,
            module_version TEXT NOT NULL,
            synapse_version TEXT NOT NULL,
            sends INTEGER NOT NULL,
            destinations BIGINT NOT NULL,
            pdus BIGINT NOT NULL,
            edus BIGINT NOT NULL,
            oldest_ts BIGINT,
            reactor_late_ms BIGINT NOT NULL
        )
        """,
    ),
    # Since when outages are recorded.
    "recording": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_recording (
            only_row INTEGER NOT NULL PRIMARY KEY,
            since_ts BIGINT NOT NULL
        )
        """,
    ),
}


Upgrade = Callable[[LoggingTransaction], None]


class Version(NamedTuple):
    """A version of the tables.

    Attributes:
        number: More than that of the version before.
        compat: The oldest version of the code that may still use the tables, as
            Synapse's `SCHEMA_COMPAT_VERSION`: what it writes does no harm, and what it
            reads it finds.
        upgrade: What leads here from the version before; None: nothing but what new
            tables and indexes there are.
    """

    number: int
    compat: int
    upgrade: Upgrade | None = None


def columns_of(txn: LoggingTransaction, table: str) -> set[str]:
    """Return the names of a table's columns; none if there is no such table.

    Args:
        txn: The transaction.
        table: The table, without its prefix.
    """
    txn.execute(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_schema = ANY (current_schemas(false)) AND table_name = ?"
        if on_postgres(txn)
        else "SELECT name FROM pragma_table_info(?)",
        (PREFIX + table,),
    )
    return {name for (name,) in txn.fetchall()}


def add_column(
    txn: LoggingTransaction, table: str, column: str, definition: str
) -> None:
    """Add a column to a table.

    Args:
        txn: The transaction.
        table: The table, without its prefix.
        column: The name of the column.
        definition: Its type and its constraints; for rows that are there, a default.
    """
    columns = columns_of(txn, table)
    if columns and column not in columns:
        txn.execute(f"ALTER TABLE {PREFIX}{table} ADD COLUMN {column} {definition}")


# Runs of version 2: each reconnects. What is kept as JSON had other keys, or columns.
# What one had not queued yet is looked for from the start: it queues nothing twice.
_COPY_RUNS = """
    INSERT INTO federation_admin_runs (
        run_id, status, entry_id, user_id, puppeted_by, reason, created_ts, started_ts,
        updated_ts, ended_ts, matched, errors, rate, names, totals, action, criteria,
        options, outcomes
    )
    SELECT
        run_id, status, entry_id, user_id, puppeted_by, reason, created_ts, started_ts,
        updated_ts, ended_ts, matched, errors, rate,
        COALESCE(names, '[]'), '{}', 'reconnect',
        replace(replace(replace(replace(criteria, '"listed"', '"destinations"'),
            '"wanted"', '"filter"'), '"statuses"', '"status"'),
            '"failures"', '"failure"'),
        '{"per_second": ' || per_second || ', "timeout_ms": ' || timeout_ms || '}',
        '{"connected": ' || connected || ', "still_failing": ' || still_failing
            || ', "no_longer_failing": ' || no_longer_failing
            || ', "skipped": ' || skipped || '}'
    FROM federation_admin_runs_before WHERE TRUE
    ON CONFLICT DO NOTHING
"""


def _from_version_2(txn: LoggingTransaction) -> None:
    """Carry runs over, which go on, and the audit; what was recorded is not kept."""
    add_column(txn, "schema", "compat_version", "INTEGER NOT NULL DEFAULT 0")
    # Also of builds in between, whose tables lack columns.
    failures = columns_of(txn, "failures")
    if failures and "refused_bytes" not in failures:
        for table in (*sorted(OF_HISTORY), "attempts"):
            txn.execute(f"DROP TABLE IF EXISTS {PREFIX}{table}")
    runs = columns_of(txn, "runs")
    if runs and "action" not in runs:
        txn.execute(
            "ALTER TABLE federation_admin_runs RENAME TO federation_admin_runs_before"
        )
    if columns_of(txn, "runs_before"):
        txn.execute(TABLES["runs"][0])
        txn.execute(_COPY_RUNS)
        txn.execute("DROP TABLE federation_admin_runs_before")


# The last is that of this code. Versions before the first of them were in no release;
# what has been released is not changed any more.
VERSIONS: tuple[Version, ...] = (Version(6, compat=6, upgrade=_from_version_2),)
