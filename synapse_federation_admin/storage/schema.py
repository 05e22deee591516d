# SPDX-License-Identifier: Apache-2.0
"""The tables of this module's own, in Synapse's database: made and upgraded here.

Their names begin with `federation_admin_`. Nothing of Synapse's refers to them and they
refer to nothing of Synapse's, so that they can be dropped at any time: what is missing
is made again when it is used next.

Processes of several versions may share them, in a rolling upgrade and after one that
was taken back: the row of `federation_admin_schema` has the version of the tables, and
that of the oldest code that may still use them.
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, TypeVar

from synapse.module_api import LoggingTransaction
from synapse.module_api.errors import SynapseError
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.database import (
    LockedError,
    code_of,
    on_postgres,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import definitions
from synapse_federation_admin.storage.definitions import OF_HISTORY, PREFIX, TABLES
from synapse_federation_admin.storage.sql import Expired, existing_tables

T = TypeVar("T")

# By the names of tables, without their prefix, what makes each.
_Statements = Mapping[str, tuple[str, ...]]

logger = logging.getLogger(__name__)

# The key of PostgreSQL's advisory lock: any number that nobody else uses.
_LOCK = 0x6665_6461_7462_6C73  # "fedatbls"

# How long a statement waits for a lock that somebody else has on a table of ours. Each
# that waits has one of the few connections that the whole homeserver has.
_LOCK_TIMEOUT = "2s"

# How often something is tried where what it uses turns out to be missing.
_TRIES = 3

# The columns of a table's primary key.
_KEY = re.compile(r"(\w+) \w+ NOT NULL PRIMARY KEY|PRIMARY KEY \((.+)\)")

# PostgreSQL's codes for what is not to be used, and for what is locked; and what SQLite
# says of that after five seconds: there, nobody else is served meanwhile.
_DENIED_CODE = "42501"
_LOCKED_CODE = "55P03"
_LOCKED_TEXT = "database is locked"

# PostgreSQL's code for rows that are there twice: no primary key can be made over them.
_DOUBLE_CODE = "23505"


class TablesUnusableError(SynapseError):
    """The tables are not to be used by this process.

    They are those of a later version of this module, too late for this one, belong to
    another user of the database, or are not as they were made. Requests that need them
    are answered with it: 503 `M_UNKNOWN`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, message)


class SchemaVersion(NamedTuple):
    """Which tables there are in the database.

    Attributes:
        version: Their version; 0 if there are none.
        compat_version: The oldest version of the code that may use them.
    """

    version: int = 0
    compat_version: int = 0


class Tables:
    """The module's own tables.

    Attributes:
        has_history: Whether those of what is recorded are among them. If not, others
            may still have made them.
    """

    def __init__(self, homeserver: Homeserver, *, has_history: bool = True) -> None:
        self._homeserver = homeserver
        self.has_history = has_history
        self._wanted = {
            name: statements
            for name, statements in TABLES.items()
            if has_history or name not in OF_HISTORY
        }
        self._is_ready = False

    async def ready(self) -> None:
        """Return when the tables are there, in a version that this code can use.

        Several processes may do so at once.

        Raises:
            TablesUnusableError: They are those of a later version of this module.
            Exception: Whatever the database raises; then the next call tries again.
        """
        if self._is_ready:
            return
        if not await self._homeserver.run_db_interaction(
            "federation_admin_tables",
            _impatient(lambda txn: _is_current(txn, self._wanted)),
        ):
            await self._make()
        self._is_ready = True

    async def _make(self) -> None:
        await self._homeserver.run_db_interaction(
            "federation_admin_create_tables",
            _impatient(lambda txn: _upgrade(txn, self._wanted)),
            read_committed=True,
        )

    async def run(
        self,
        desc: str,
        func: Callable[[LoggingTransaction], T],
        *,
        read_committed: bool = False,
    ) -> T:
        """Run a function that uses the tables in a transaction, on a database thread.

        If one, or an index of it, turns out to have been dropped, that is made again,
        and so is the attempt.

        Args:
            desc: The transaction's name in metrics and logs.
            func: What to run; again if the database says so.
            read_committed: Each statement sees the newest: see
                `Homeserver.run_db_interaction`.

        Raises:
            TablesUnusableError: As `ready`; or one is not as it was made.
            Exception: What the database raises, or the function.
        """
        run = partial(
            self._homeserver.run_db_interaction, read_committed=read_committed
        )
        error: Exception | None = None
        # It may be dropped again as soon as it was made.
        for attempt in range(_TRIES):
            try:
                await (self._make() if attempt else self.ready())
                return await run(desc, _impatient(func))
            except CancelledError:
                raise
            except Exception as e:
                if code_of(e) == _DENIED_CODE:
                    raise TablesUnusableError(
                        "The tables of synapse-federation-admin must belong to "
                        f"Synapse's database user: {_told(e)}"
                    ) from e
                is_double = bool(attempt) and code_of(e) == _DOUBLE_CODE
                if not is_double and not self._homeserver.is_refused(e):
                    raise
                logger.warning("A table of federation_admin is not as expected: %s", e)
                error = e
        assert error is not None
        raise TablesUnusableError(
            "A table is not as synapse-federation-admin expects it. If its name begins "
            f"with {PREFIX}, drop it: it is made again. The database says: "
            f"{_told(error)}"
        ) from error

    async def delete(self, expired: Expired, ts: int) -> None:
        """Delete what is not kept any more as of a time, in small pieces.

        Raises what the database raises.
        """
        delete_some_txn = partial(expired.delete_txn, ts=ts, limit=limits.ROWS_PRUNED)
        deleted = limits.ROWS_PRUNED
        while deleted == limits.ROWS_PRUNED:
            deleted = await self.run("federation_admin_prune", delete_some_txn)

    async def stored_version(self) -> SchemaVersion:
        """Return which tables there are. Raises what the database raises.

        That of their version is made again here: nobody else needs it while Synapse
        runs.
        """
        read = partial(
            self._homeserver.run_db_interaction,
            "federation_admin_tables",
            _impatient(lambda txn: _stored_version(txn, _existing(txn))),
        )
        found = await read()
        if self._is_ready and not found.version:
            await self._make()
            found = await read()
        return found


def _impatient(
    func: Callable[[LoggingTransaction], T],
) -> Callable[[LoggingTransaction], T]:
    """Have a transaction not wait for long for what somebody else has locked.

    Then the database cannot be used just now, as if it were away.
    """

    def impatient_txn(txn: LoggingTransaction) -> T:
        if on_postgres(txn):
            txn.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        try:
            return func(txn)
        except Exception as e:
            if code_of(e) == _LOCKED_CODE or str(e) == _LOCKED_TEXT:
                # Synapse would repeat it at once, and wait as long each time.
                raise LockedError(_told(e)) from e
            raise

    return impatient_txn


def _told(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _is_current(txn: LoggingTransaction, wanted: Collection[str]) -> bool:
    """Tell, without a change or a lock, whether there is nothing to do.

    Raises:
        TablesUnusableError: And nothing can be done.
    """
    existing = _existing(txn)
    version = _usable_version(txn, existing).version
    return version >= _newest() and all(name in existing for name in wanted)


def _upgrade(txn: LoggingTransaction, wanted: _Statements = TABLES) -> None:
    """Make what is missing, and bring the tables to the version of this code.

    On PostgreSQL that is done whole or not at all, by one process at a time. On SQLite,
    where there is one process, each statement takes effect by itself and can be run
    again.
    """
    if on_postgres(txn):
        txn.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
    existing = _existing(txn)
    stored = _usable_version(txn, existing)
    if stored.version > _newest():
        if all(name in existing for name in wanted):
            return
        raise TablesUnusableError(
            "Some tables of synapse-federation-admin are missing, and the others are "
            "those of a later version of it, which makes them again"
        )
    for version in definitions.VERSIONS if existing else ():
        if version.upgrade is not None and version.number > stored.version:
            version.upgrade(txn)
    for name, statements in wanted.items():
        for statement in statements:
            txn.execute(statement)
        if on_postgres(txn):
            # Of the name that PostgreSQL gives a primary key, so that there is none
            # but where that was dropped.
            key = "".join(_KEY.search(statements[0]).groups(""))  # type: ignore[union-attr]
            txn.execute(
                f"CREATE UNIQUE INDEX IF NOT EXISTS {PREFIX}{name}_pkey "
                f"ON {PREFIX}{name} ({key})"
            )
    newest = definitions.VERSIONS[-1]
    txn.execute(
        "INSERT INTO federation_admin_schema (only_row, version, compat_version) "
        "VALUES (1, ?, ?) ON CONFLICT (only_row) DO UPDATE SET "
        "version = EXCLUDED.version, compat_version = EXCLUDED.compat_version",
        (newest.number, newest.compat),
    )
    logger.info("The tables of federation_admin are those of version %s", _newest())


def _existing(txn: LoggingTransaction) -> set[str]:
    """Return the names of the tables that are there, without their prefix."""
    return {
        name.removeprefix(PREFIX)
        for name in existing_tables(txn)
        if name.startswith(PREFIX)
    }


def _usable_version(txn: LoggingTransaction, existing: set[str]) -> SchemaVersion:
    """Return the version of the tables that are there.

    Raises:
        TablesUnusableError: This code cannot use them.
    """
    stored = _stored_version(txn, existing)
    if stored.compat_version > _newest():
        raise TablesUnusableError(
            "The tables of synapse-federation-admin are those of a later version of "
            f"it ({stored.version}, for code of version {stored.compat_version} or "
            f"later; this one is {_newest()}): install that, or drop those whose names "
            f"begin with {PREFIX}"
        )
    return stored


def _stored_version(txn: LoggingTransaction, existing: set[str]) -> SchemaVersion:
    if "schema" not in existing:
        return SchemaVersion()
    txn.execute("SELECT * FROM federation_admin_schema")
    row = txn.fetchone()
    if row is None:
        return SchemaVersion()
    columns = [column[0] for column in txn.description or ()]
    found: Mapping[str, int] = dict(zip(columns, row, strict=True))
    # Those of version 2 and earlier are for no other code.
    version = found.get("version", 0)
    return SchemaVersion(version, found.get("compat_version") or version)


def _newest() -> int:
    """Return the version of this code."""
    return definitions.VERSIONS[-1].number
