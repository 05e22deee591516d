# SPDX-License-Identifier: Apache-2.0
"""The tables of this module's own, as statements for both databases.

`TABLES` says what they are now, `VERSIONS` what leads there from earlier ones. A change
of a table is a change of both: a new database gets the former, and one with tables in
it the latter. A step may find its work done, or no table to do it to.
"""

from collections.abc import Callable, Mapping

import attr
from synapse.module_api import LoggingTransaction

# What the names of all of them, and of their indexes, begin with.
PREFIX = "federation_admin_"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AddColumn:
    """A step: a table has one more column.

    Attributes:
        table: The table, without its prefix.
        column: The name of the column.
        definition: Its type and its constraints; for rows that are there, a default.
    """

    table: str
    column: str
    definition: str


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Rebuild:
    """A step: a table is made anew, with other columns, of its rows.

    Attributes:
        table: The table, without its prefix.
        column: A column that it has afterwards, and has not before.
        values: By column, what is in it afterwards: an expression in those before.
            Other columns are NULL.
    """

    table: str
    column: str
    values: Mapping[str, str]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Change:
    """A step: rows of a table are changed.

    Attributes:
        table: The table, without its prefix.
        change: What stands between UPDATE with the table's name and the end.
    """

    table: str
    change: str


Step = str | AddColumn | Rebuild | Change | Callable[[LoggingTransaction, bool], None]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Version:
    """A version of the tables.

    Attributes:
        number: One more than that of the version before.
        compat: The oldest version of the code that may still use the tables, as
            Synapse's `SCHEMA_COMPAT_VERSION`: what it writes does no harm, and what it
            reads it finds.
        steps: What leads here from the version before: statements, columns, tables that
            are made anew, and functions that are told whether it is PostgreSQL. New
            tables and indexes are in `TABLES` only.
    """

    number: int
    compat: int
    steps: tuple[Step, ...] = ()


# The kinds of failures, by the bits that stood for them in version 2.
_KINDS_OF_BITS = (
    *("invalid_name", "not_allowed", "ip_blocked", "well_known_invalid"),
    *("well_known_unreachable", "dns_not_found", "dns_failed", "connection_refused"),
    *("connection_timeout", "unreachable", "tls_expired", "tls_not_yet_valid"),
    *("tls_wrong_name", "tls_untrusted", "tls_failed", "rejected", "rate_limited"),
    *("gone", "http_error", "response_timeout", "invalid_response", "keys_missing"),
    *("keys_invalid", "keys_expired", "other", "too_large"),
)


def _kinds_as_words(txn: LoggingTransaction, is_postgres: bool) -> None:
    """Turn the kinds seen in outages from bits into words."""
    words = " || ".join(
        f"CASE WHEN kinds & {1 << bit} <> 0 THEN ' {kind}' ELSE '' END"
        for bit, kind in enumerate(_KINDS_OF_BITS)
    )
    if not is_postgres:
        # A column takes values of every type there.
        txn.execute(
            "SELECT COUNT(*) FROM sqlite_master WHERE name = 'federation_admin_outages'"
        )
        if txn.fetchone() == (1,):
            txn.execute(
                f"UPDATE federation_admin_outages SET kinds = LTRIM({words}) "  # noqa: S608
                "WHERE TYPEOF(kinds) = 'integer'"
            )
        return
    txn.execute(
        "SELECT data_type FROM information_schema.columns WHERE column_name = 'kinds' "
        "AND table_schema = ANY (current_schemas(false)) "
        "AND table_name = 'federation_admin_outages'"
    )
    if txn.fetchone() == ("bigint",):
        txn.execute(
            "ALTER TABLE federation_admin_outages "
            f"ALTER COLUMN kinds TYPE TEXT USING LTRIM({words})"
        )


# Runs of version 2: each reconnects. What is kept as JSON had other keys, or columns.
_RUNS_OF_VERSION_2 = Rebuild(
    "runs",
    "action",
    {
        **{
            column: column
            for column in (
                *("run_id", "status", "entry_id", "user_id", "puppeted_by", "reason"),
                *("created_ts", "started_ts", "updated_ts", "ended_ts", "prepared_to"),
                *("matched", "errors", "rate"),
            )
        },
        "action": "'reconnect'",
        "criteria": "replace(replace(replace(replace(criteria, '\"listed\"', "
        "'\"destinations\"'), '\"wanted\"', '\"filter\"'), '\"statuses\"', "
        "'\"status\"'), '\"failures\"', '\"failure\"')",
        "options": "'{\"per_second\": ' || per_second || ', \"timeout_ms\": ' "
        "|| timeout_ms || '}'",
        "names": "COALESCE(names, '[]')",
        "outcomes": "'{\"connected\": ' || connected || ', \"still_failing\": ' "
        "|| still_failing || ', \"no_longer_failing\": ' || no_longer_failing "
        "|| ', \"skipped\": ' || skipped || '}'",
        "totals": "'{}'",
    },
)

# The last is that of this code. What has been released is not changed any more.
VERSIONS: tuple[Version, ...] = (
    Version(1, compat=1),
    Version(2, compat=2),
    Version(
        3,
        compat=3,
        steps=(
            AddColumn("schema", "compat_version", "INTEGER NOT NULL DEFAULT 0"),
            _kinds_as_words,
            _RUNS_OF_VERSION_2,
            Change("audit", "SET action = 'bulk_cap_backoff' WHERE action = 'clamp'"),
            "DROP TABLE IF EXISTS federation_admin_attempts",
        ),
    ),
)

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
    # Who did what. See `synapse_federation_admin.storage.audit_entry`.
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
    # Why requests failed, one row for each destination and kind. See
    # `synapse_federation_admin.history.recorder`.
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
            PRIMARY KEY (destination, kind)
        )
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_failures_last
        ON federation_admin_failures (last_ts)
        """,
    ),
    # When a destination last answered well, to within some minutes, and when it
    # last did so after it had failed, exactly.
    "successes": (
        """
        CREATE TABLE IF NOT EXISTS federation_admin_successes (
            destination TEXT NOT NULL PRIMARY KEY,
            last_ts BIGINT NOT NULL,
            recovered_ts BIGINT
        )
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_successes_last
        ON federation_admin_successes (last_ts)
        """,
    ),
    # `end_ts` and `ended` are NULL while it lasts. `kinds` are words with spaces in
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
        """
        CREATE INDEX IF NOT EXISTS federation_admin_outages_reset
        ON federation_admin_outages (end_ts)
        WHERE ended = 'reset'
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
