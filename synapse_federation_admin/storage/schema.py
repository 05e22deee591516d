# SPDX-License-Identifier: Apache-2.0
"""The tables of this module's own, in Synapse's database: created and upgraded here.

Their names begin with `federation_admin_`. Nothing of Synapse's refers to them and they
refer to nothing of Synapse's, so that they can be dropped at any time.
"""

import logging

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.homeserver import Homeserver

logger = logging.getLogger(__name__)

# The statements of each version, for both databases. What has been released is not
# changed any more: another version is added.
_VERSIONS: tuple[tuple[str, ...], ...] = (
    (
        # Who did what. See `synapse_federation_admin.storage.audit_entry`.
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
        # The last attempt at each destination, so that there is one at a time,
        # whichever process is asked. Its result, as JSON, is for those who wait for it.
        """
        CREATE TABLE IF NOT EXISTS federation_admin_attempts (
            destination TEXT NOT NULL PRIMARY KEY,
            attempt_id TEXT NOT NULL,
            instance TEXT NOT NULL,
            started_ts BIGINT NOT NULL,
            ended_ts BIGINT,
            result TEXT
        )
        """,
        # Bulk runs. `active` is 1 until a run has ended, and NULL afterwards: so there
        # is one at a time. See `synapse_federation_admin.repair.runs`.
        """
        CREATE TABLE IF NOT EXISTS federation_admin_runs (
            run_id TEXT NOT NULL PRIMARY KEY,
            active INTEGER UNIQUE,
            status TEXT NOT NULL,
            entry_id TEXT NOT NULL,
            user_id TEXT NOT NULL,
            puppeted_by TEXT,
            reason TEXT,
            criteria TEXT NOT NULL,
            names TEXT,
            per_second DOUBLE PRECISION NOT NULL,
            timeout_ms BIGINT NOT NULL,
            created_ts BIGINT NOT NULL,
            started_ts BIGINT,
            updated_ts BIGINT NOT NULL,
            ended_ts BIGINT,
            runner TEXT,
            prepared_to TEXT,
            matched BIGINT NOT NULL,
            connected BIGINT NOT NULL,
            still_failing BIGINT NOT NULL,
            no_longer_failing BIGINT NOT NULL,
            skipped BIGINT NOT NULL,
            errors TEXT NOT NULL,
            rate DOUBLE PRECISION
        )
        """,
        """
        CREATE INDEX IF NOT EXISTS federation_admin_runs_created
        ON federation_admin_runs (created_ts, run_id)
        """,
        # What a run has still to do; the smallest priority first.
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
    (
        # Why requests failed, one row for each destination and kind. See
        # `synapse_federation_admin.history.recorder`.
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
        # When a destination last answered well, to within some minutes, and when it
        # last did so after it had failed, exactly.
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
        # `end_ts` and `ended` are NULL while it lasts. `kinds` has a bit for each kind
        # seen: see `synapse_federation_admin.history.kinds`.
        """
        CREATE TABLE IF NOT EXISTS federation_admin_outages (
            destination TEXT NOT NULL,
            start_ts BIGINT NOT NULL,
            end_ts BIGINT,
            ended TEXT,
            kinds BIGINT NOT NULL,
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
        # Where destinations lead that began to fail together, as JSON.
        """
        CREATE TABLE IF NOT EXISTS federation_admin_addresses (
            destination TEXT NOT NULL PRIMARY KEY,
            looked_ts BIGINT NOT NULL,
            addresses TEXT NOT NULL
        )
        """,
        # Since when outages are recorded.
        """
        CREATE TABLE IF NOT EXISTS federation_admin_recording (
            only_row INTEGER NOT NULL PRIMARY KEY,
            since_ts BIGINT NOT NULL
        )
        """,
    ),
)

# The key of PostgreSQL's advisory lock: any number that nobody else uses.
_LOCK = 0x6665_6461_7462_6C73  # "fedatbls"


class Tables:
    """The module's own tables."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self._is_ready = False

    async def ready(self) -> None:
        """Return when the tables are there, in their newest version.

        To be awaited before they are used. Several processes may do so at once.

        Raises:
            RuntimeError: They are those of a later version of this module.
            Exception: Whatever the database raises; then the next call tries again.
        """
        if self._is_ready:
            return
        is_postgres = self._homeserver.is_postgres
        if not await self._homeserver.run_db_interaction(
            "federation_admin_tables", lambda txn: _is_current(txn, is_postgres)
        ):
            await self._homeserver.run_read_committed(
                "federation_admin_create_tables",
                lambda txn: _upgrade(txn, is_postgres),
            )
        self._is_ready = True


def _is_current(txn: LoggingTransaction, is_postgres: bool) -> bool:
    """Tell, without a change or a lock, whether there is nothing to do."""
    if is_postgres:
        txn.execute("SELECT to_regclass('federation_admin_schema') IS NOT NULL")
    else:
        txn.execute(
            "SELECT COUNT(*) FROM sqlite_master "
            "WHERE type = 'table' AND name = 'federation_admin_schema'"
        )
    ((exists,),) = txn.fetchall()
    return bool(exists) and _version(txn) == len(_VERSIONS)


def _upgrade(txn: LoggingTransaction, is_postgres: bool) -> None:
    """Bring the tables to their newest version.

    On PostgreSQL that is done whole or not at all, by one process at a time. On SQLite,
    where there is one process, each statement takes effect by itself and can be run
    again.
    """
    if is_postgres:
        txn.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
    txn.execute(
        "CREATE TABLE IF NOT EXISTS federation_admin_schema "
        "(only_row INTEGER NOT NULL PRIMARY KEY, version INTEGER NOT NULL)"
    )
    version = _version(txn)
    for number, statements in enumerate(_VERSIONS[version:], start=version + 1):
        for statement in statements:
            txn.execute(statement)
        txn.execute(
            "INSERT INTO federation_admin_schema (only_row, version) VALUES (1, ?) "
            "ON CONFLICT (only_row) DO UPDATE SET version = EXCLUDED.version",
            (number,),
        )
        logger.info("The tables of federation_admin are those of version %s", number)


def _version(txn: LoggingTransaction) -> int:
    txn.execute("SELECT version FROM federation_admin_schema")
    row = txn.fetchone()
    version = int(row[0]) if row else 0
    if version > len(_VERSIONS):
        raise RuntimeError(
            "The tables of synapse-federation-admin are those of a later version of "
            "it: install that, or drop those whose names begin with federation_admin_"
        )
    return version
