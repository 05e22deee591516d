# SPDX-License-Identifier: Apache-2.0
"""Optional indexes on Synapse's table `destinations`, created in the background.

Synapse's own `background_updates` is not used: a Synapse from which this module has
been removed would stumble over an update that it does not know.
"""

import logging
from collections.abc import Mapping, Sequence

from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin.destinations.query import NEXT_RETRY_TS
from synapse_federation_admin.destinations.values import IndexState
from synapse_federation_admin.homeserver.database import on_postgres
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import FAILING

logger = logging.getLogger(__name__)


# Partial indexes on `destinations`: by name, the columns and expressions that each is
# over, and which rows it holds. All but the last are over failing rows alone: what is
# delivered does not touch them.
INDEXES: Mapping[str, tuple[str, str]] = {
    "federation_admin_failing": ("destination", FAILING),
    "federation_admin_retry_last_ts": ("retry_last_ts, destination", FAILING),
    "federation_admin_retry_interval": (
        "retry_interval, destination",
        "retry_interval <> 0",
    ),
    # Descending: many rows have the longest interval, and they are sorted by name,
    # ascending in both directions.
    "federation_admin_retry_interval_desc": (
        "retry_interval DESC, destination",
        "retry_interval <> 0",
    ),
    "federation_admin_failure_ts": (
        "failure_ts, destination",
        "failure_ts IS NOT NULL",
    ),
    "federation_admin_next_retry_ts": (f"{NEXT_RETRY_TS}, destination", FAILING),
    "federation_admin_last_successful": (
        "last_successful_stream_ordering, destination",
        "last_successful_stream_ordering IS NOT NULL",
    ),
}


def create_index(name: str) -> str:
    """Return the statement that creates an index.

    Without IF NOT EXISTS: where something else has the name, that is an error to be
    told, and not an index that is there.
    """
    columns, which = INDEXES[name]
    return f"CREATE INDEX {name} ON destinations ({columns}) WHERE {which}"


# How soon after start-up, when a homeserver has enough to do, and how often to look
# whether they are there, and create what is not.
_FIRST_MS = 3000
_EVERY_MS = 3_600_000

# How long PostgreSQL waits for a transaction that is under way: nobody waits for that
# but this, and Synapse when it shuts down.
_LOCK_TIMEOUT = "5s"

# The indexes of the table that this session's `destinations` is: an index of the same
# name in another schema is none of them.
_SELECT_POSTGRES = """
    SELECT c.relname, i.indisvalid FROM pg_index AS i
    INNER JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = to_regclass('destinations')
"""
_SELECT_SQLITE = """
    SELECT name, TRUE FROM sqlite_master
    WHERE type = 'index' AND tbl_name = 'destinations'
"""


class DestinationIndexes:
    """Creates the optional indexes, and knows which of them there are.

    Attributes:
        enabled: Whether to create them. Those that there are stay in any case.
        are_ready: Whether lists may count on them: enabled, and all of them there.
        errors: Why this process could not create an index, by its name; empty if it
            could. Only the process that runs background tasks creates any.
    """

    def __init__(self, homeserver: Homeserver, enabled: bool) -> None:
        self._homeserver = homeserver
        self.enabled = enabled
        self.are_ready = False
        self.errors: dict[str, str] = {}

    def start(self) -> None:
        """Look whether they are there, and create what is missing, in the background.

        Where they are not enabled, nothing is done, not even looked at.
        """
        if self.enabled:
            self._homeserver.every(
                "federation_admin_indexes",
                _EVERY_MS,
                self._look,
                first_after_ms=_FIRST_MS,
            )

    async def states(self) -> dict[str, IndexState]:
        """Return the state of every index, by its name, from the catalogue."""
        found = await self._homeserver.run_db_interaction(
            "federation_admin_index_states", _existing_txn
        )
        return {
            name: IndexState.READY if found.get(name) else IndexState.MISSING
            for name in INDEXES
        }

    async def _look(self) -> None:
        states = await self.states()
        missing = [n for n, state in states.items() if state is IndexState.MISSING]
        if missing and self._homeserver.runs_background_tasks:
            await self._build(missing)
            missing = list(self.errors)
        self.are_ready = not missing

    async def _build(self, missing: Sequence[str]) -> None:
        """Create what is missing; what fails is logged, and left to the next look."""
        self.errors.clear()
        for name in missing:
            try:
                await self._create(name)
            except CancelledError:
                # Synapse is shutting down.
                raise
            except Exception as e:
                # The driver's texts have lines that point into the statement.
                error = " ".join(str(e).split()) or type(e).__name__
                self.errors[name] = error
                create = create_index(name)
                logger.error("Cannot create an index (%s): %s", error, create)
            else:
                logger.info("Index %s is ready", name)
        if self._homeserver.is_postgres:
            # Only now there are statistics of the expression that one of them is over.
            await self._run("ANALYZE destinations")

    async def _create(self, name: str) -> None:
        """Create an index; on SQLite, which has no other way, all else has to wait."""
        create = create_index(name)
        if not self._homeserver.is_postgres:
            await self._run(create)
            return

        def create_txn(txn: LoggingTransaction) -> None:
            txn.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
            try:
                if _existing_txn(txn).get(name) is False:
                    # What is left of an attempt that was interrupted.
                    txn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
                txn.execute(create.replace("INDEX", "INDEX CONCURRENTLY", 1))
            finally:
                txn.execute("RESET lock_timeout")

        await self._homeserver.run_db_interaction(
            "federation_admin_create_index", create_txn, autocommit=True
        )

    async def _run(self, statement: str) -> None:
        await self._homeserver.run_db_interaction(
            "federation_admin_create_index", lambda txn: txn.execute(statement)
        )


def _existing_txn(txn: LoggingTransaction) -> dict[str, bool]:
    """Return, by name, whether each index of the table can be used."""
    txn.execute(_SELECT_POSTGRES if on_postgres(txn) else _SELECT_SQLITE)
    return dict(txn.fetchall())
