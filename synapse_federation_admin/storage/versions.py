# SPDX-License-Identifier: Apache-2.0
"""The versions of this module's own tables, and what leads from each to the next.

A new database gets what `synapse_federation_admin.storage.definitions` says, and one
with tables in it what is here. An upgrade may find its work done, in part or whole, and
tables missing.
"""

from collections.abc import Callable

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.database import on_postgres
from synapse_federation_admin.storage.definitions import PREFIX, TABLES

Upgrade = Callable[[LoggingTransaction], None]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Version:
    """A version of the tables.

    Attributes:
        number: One more than that of the version before.
        compat: The oldest version of the code that may still use the tables, as
            Synapse's `SCHEMA_COMPAT_VERSION`: what it writes does no harm, and what it
            reads it finds.
        upgrade: What leads here from the version before; None: nothing but what new
            tables and indexes there are.
    """

    number: int
    compat: int
    upgrade: Upgrade | None = None


def columns_of(txn: LoggingTransaction, table: str) -> dict[str, str]:
    """Return the types of a table's columns, by name; none if there is no such table.

    Args:
        txn: The transaction.
        table: The table, without its prefix.
    """
    txn.execute(
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = ANY (current_schemas(false)) AND table_name = ?"
        if on_postgres(txn)
        else "SELECT name, type FROM pragma_table_info(?)",
        (PREFIX + table,),
    )
    return dict(txn.fetchall())


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


# The kinds of failures, by the bits that stood for them in version 2.
_KINDS_OF_BITS = (
    "invalid_name not_allowed ip_blocked well_known_invalid well_known_unreachable "
    "dns_not_found dns_failed connection_refused connection_timeout unreachable "
    "tls_expired tls_not_yet_valid tls_wrong_name tls_untrusted tls_failed rejected "
    "rate_limited gone http_error response_timeout invalid_response keys_missing "
    "keys_invalid keys_expired other too_large"
)

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


def _to_version_3(txn: LoggingTransaction) -> None:
    add_column(txn, "schema", "compat_version", "INTEGER NOT NULL DEFAULT 0")

    # The kinds seen in outages were bits, and are words.
    words = " || ".join(
        f"CASE WHEN kinds & {1 << bit} <> 0 THEN ' {kind}' ELSE '' END"
        for bit, kind in enumerate(_KINDS_OF_BITS.split())
    )
    kinds_type = columns_of(txn, "outages").get("kinds")
    if kinds_type == "bigint":
        txn.execute(
            "ALTER TABLE federation_admin_outages "
            f"ALTER COLUMN kinds TYPE TEXT USING LTRIM({words})"
        )
    elif kinds_type and not on_postgres(txn):
        # A column takes values of every type there.
        txn.execute(
            f"UPDATE federation_admin_outages SET kinds = LTRIM({words}) "  # noqa: S608
            "WHERE TYPEOF(kinds) = 'integer'"
        )

    runs = columns_of(txn, "runs")
    if runs and "action" not in runs:
        txn.execute(
            "ALTER TABLE federation_admin_runs RENAME TO federation_admin_runs_before"
        )
    if columns_of(txn, "runs_before"):
        txn.execute(TABLES["runs"][0])
        txn.execute(_COPY_RUNS)
        txn.execute("DROP TABLE federation_admin_runs_before")

    if columns_of(txn, "audit"):
        txn.execute(
            "UPDATE federation_admin_audit SET action = 'bulk_cap_backoff' "
            "WHERE action = 'clamp'"
        )
    txn.execute("DROP TABLE IF EXISTS federation_admin_attempts")


def _to_version_4(txn: LoggingTransaction) -> None:
    add_column(txn, "outages", "up_ms", "BIGINT NOT NULL DEFAULT 0")
    txn.execute("DROP INDEX IF EXISTS federation_admin_outages_reset")


def _to_version_5(txn: LoggingTransaction) -> None:
    add_column(txn, "successes", "first_ts", "BIGINT")
    add_column(txn, "successes", "owner", "TEXT")


def _to_version_6(txn: LoggingTransaction) -> None:
    add_column(txn, "failures", "refused_bytes", "BIGINT")


# The last is that of this code. What has been released is not changed any more.
VERSIONS: tuple[Version, ...] = (
    Version(1, compat=1),
    Version(2, compat=2),
    Version(3, compat=3, upgrade=_to_version_3),
    Version(4, compat=3, upgrade=_to_version_4),
    Version(5, compat=3, upgrade=_to_version_5),
    Version(6, compat=3, upgrade=_to_version_6),
)
