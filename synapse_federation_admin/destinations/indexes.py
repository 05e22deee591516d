# SPDX-License-Identifier: Apache-2.0
"""Optional indexes on Synapse's table `destinations`, created in the background.

Synapse's own `background_updates` is not used: a Synapse from which this module has
been removed would stumble over an update that it does not know.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

import attr
from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin.destinations.query import NEXT_RETRY_TS
from synapse_federation_admin.destinations.values import IndexState
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import FAILING

logger = logging.getLogger(__name__)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Index:
    """A partial index on `destinations`.

    Attributes:
        name: Its name.
        columns: The columns and expressions that it is over.
        where: Which rows it holds.
    """

    name: str
    columns: str
    where: str

    def create(self, *, concurrently: bool = False) -> str:
        """Return the statement that creates it.

        Without IF NOT EXISTS: where something else has the name, that is an error to
        be told, and not an index that is there.
        """
        how = "INDEX CONCURRENTLY" if concurrently else "INDEX"
        return (
            f"CREATE {how} {self.name} ON destinations ({self.columns}) "
            f"WHERE {self.where}"
        )


# All but the last are over failing rows alone: what is delivered does not touch them.
INDEXES: tuple[Index, ...] = (
    Index("federation_admin_failing", "destination", FAILING),
    Index("federation_admin_retry_last_ts", "retry_last_ts, destination", FAILING),
    Index(
        "federation_admin_retry_interval",
        "retry_interval, destination",
        "retry_interval <> 0",
    ),
    # Descending: many rows have the longest interval, and they are sorted by name,
    # ascending in both directions.
    Index(
        "federation_admin_retry_interval_desc",
        "retry_interval DESC, destination",
        "retry_interval <> 0",
    ),
    Index(
        "federation_admin_failure_ts",
        "failure_ts, destination",
        "failure_ts IS NOT NULL",
    ),
    Index("federation_admin_next_retry_ts", f"{NEXT_RETRY_TS}, destination", FAILING),
    Index(
        "federation_admin_last_successful",
        "last_successful_stream_ordering, destination",
        "last_successful_stream_ordering IS NOT NULL",
    ),
)

# After start-up, when a homeserver has enough to do.
_START_DELAY_MS = 3000

# While another process builds.
_BUSY_DELAY_MS = 5000

# After a failure: doubled from one to the next.
_FIRST_RETRY_MS = 2 * 60_000
_LONGEST_RETRY_MS = 60 * 60_000

# The key of PostgreSQL's advisory lock: any number that nobody else uses.
_LOCK = 0x6665_6461_646D_696E  # "fedadmin"

# The indexes of the table that this session's `destinations` is: an index of the same
# name in another schema is none of them.
_SELECT_POSTGRES = """
    SELECT c.relname, i.indisvalid FROM pg_index AS i
    INNER JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = to_regclass('destinations')
"""
_SELECT_SQLITE = """
    SELECT name, sql FROM sqlite_master
    WHERE type = 'index' AND tbl_name = 'destinations'
"""
_SELECT_SCHEMA = """
    SELECT CAST(relnamespace::regnamespace AS text) FROM pg_class
    WHERE oid = to_regclass('destinations')
"""


class DestinationIndexes:
    """Creates the optional indexes, and knows which of them there are.

    Attributes:
        enabled: Whether to create them. Those that there are stay in any case.
        errors: Why this process could not create an index, by its name; empty if it
            could. Only the process that runs background tasks creates any.
    """

    def __init__(self, homeserver: Homeserver, enabled: bool) -> None:
        self._homeserver = homeserver
        self.enabled = enabled
        self.errors: Mapping[str, str] = {}

    def start(self) -> None:
        """Create what is missing, in the background.

        Where they are not enabled, and on a process other than the one that runs
        background tasks, nothing is done, not even looked at.
        """
        if self.enabled and self._homeserver.runs_background_tasks:
            self._homeserver.run_in_background(
                "federation_admin_indexes", self._build_until_done
            )

    async def states(self) -> dict[str, IndexState]:
        """Return the state of every index, by its name, from the catalogue."""
        found = await self._homeserver.run_db_interaction(
            "federation_admin_index_states",
            partial(_find, on_postgres=self._homeserver.is_postgres),
        )
        return {i.name: found.get(i.name, IndexState.MISSING) for i in INDEXES}

    async def build(self) -> bool:
        """Create what is missing, one index after the other.

        What fails is logged, and is in `errors` afterwards; the others are created.

        Returns:
            Whether all indexes are ready; if not and there are no errors, another
            process is building.

        Raises:
            Exception: The database could not be asked at all, or not be told to look at
                what the indexes hold.
        """
        built = 0
        errors: dict[str, str] = {}
        for name, state in (await self.states()).items():
            if state is IndexState.READY:
                continue
            try:
                built += await self._build_one(_BY_NAME[name])
            except CancelledError:
                raise
            except Exception as e:
                # The driver's texts have lines that point into the statement.
                errors[name] = " ".join(str(e).split()) or type(e).__name__
                logger.warning("Cannot create index %s: %s", name, errors[name])
        self.errors = errors
        if built and self._homeserver.is_postgres:
            # Only now there are statistics of the expression that one of them is over.
            await self._homeserver.run_outside_transactions(
                lambda txn: txn.execute("ANALYZE destinations")
            )
        states = await self.states()
        return all(state is IndexState.READY for state in states.values())

    async def _build_until_done(self) -> None:
        """Build, again and again until every index is ready."""
        await self._homeserver.sleep_ms(_START_DELAY_MS)
        retry_ms = _FIRST_RETRY_MS
        while True:
            delay_ms = _BUSY_DELAY_MS
            try:
                if await self.build():
                    return
                failed = bool(self.errors)
            except CancelledError:
                # Synapse is shutting down.
                raise
            except Exception as e:
                if not self._homeserver.is_database_away(e):
                    # It would be one again.
                    logger.exception("Cannot build indexes on destinations")
                    return
                logger.warning("Cannot build indexes on destinations: %s", e)
                failed = True
            if failed:
                logger.info("Trying to build indexes again in %d s", retry_ms // 1000)
                delay_ms = retry_ms
                retry_ms = min(retry_ms * 2, _LONGEST_RETRY_MS)
            await self._homeserver.sleep_ms(delay_ms)

    async def _build_one(self, index: Index) -> bool:
        """Create an index; return False if another process is building one."""
        begun_ms = self._homeserver.now_ms()
        built = True
        if self._homeserver.is_postgres:
            built = await self._homeserver.run_outside_transactions(
                lambda txn: _create_on_postgres(txn, index)
            )
        else:
            await self._homeserver.run_db_interaction(
                "federation_admin_create_index",
                lambda txn: txn.execute(index.create()),
            )
        if built:
            duration_s = (self._homeserver.now_ms() - begun_ms) / 1000
            logger.info("Index %s is ready, after %.1f s", index.name, duration_s)
        return built


_BY_NAME = {index.name: index for index in INDEXES}


def usable_indexes(txn: LoggingTransaction, *, on_postgres: bool) -> set[str]:
    """Return which of the optional indexes there are, ready for use."""
    found = _find(txn, on_postgres=on_postgres)
    return {name for name, state in found.items() if state is IndexState.READY}


def _find(txn: LoggingTransaction, *, on_postgres: bool) -> dict[str, IndexState]:
    """Return the states of the indexes on the table.

    On SQLite only of those that are as the module makes them: a statement that names an
    index which does not serve it fails.
    """
    if not on_postgres:
        txn.execute(_SELECT_SQLITE)
        made = {index.name: index.create() for index in INDEXES}
        return {n: IndexState.READY for n, sql in txn if sql and made.get(n) == sql}
    txn.execute(_SELECT_POSTGRES)
    return {
        name: IndexState.READY if is_valid else IndexState.BUILDING
        for name, is_valid in txn
    }


def _create_on_postgres(txn: LoggingTransaction, index: Index) -> bool:
    """Create an index without holding up anybody who writes.

    What an interrupted build has left, an index that is kept up to date and serves
    nobody, is dropped first. A lock of this session makes sure that it is not what
    another session is building now: also one whose process has been killed, which
    PostgreSQL notices only when the build is done. The lock is tried for, not waited
    for: a build waits for every older transaction, one that waits for the lock too.

    Args:
        txn: Each of its statements is a transaction of its own.
        index: What to create.

    Returns:
        False if another session is building.
    """
    txn.execute("SELECT pg_try_advisory_lock(?)", (_LOCK,))
    (locked,) = txn.fetchall()[0]
    if not locked:
        logger.info("Another process is building indexes: waiting with %s", index.name)
        return False
    try:
        state = _find(txn, on_postgres=True).get(index.name)
        if state is IndexState.READY:
            return True
        if state is IndexState.BUILDING:
            logger.info("Dropping what an interrupted build left of %s", index.name)
            txn.execute(_SELECT_SCHEMA)
            ((schema,),) = txn.fetchall()
            txn.execute(f"DROP INDEX CONCURRENTLY {schema}.{index.name}")
        logger.info("Creating index %s", index.name)
        txn.execute(index.create(concurrently=True))
        return True
    finally:
        # If this fails, the connection is lost, and the lock with it.
        with suppress(Exception):
            txn.execute("SELECT pg_advisory_unlock(?)", (_LOCK,))
