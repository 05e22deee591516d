# SPDX-License-Identifier: Apache-2.0
"""Synapse's database."""

import sqlite3
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from synapse.module_api import LoggingTransaction, ModuleApi
from synapse.storage.engines import PostgresEngine
from synapse.storage.engines._base import IsolationLevel
from twisted.enterprise.adbapi import ConnectionLost

from synapse_federation_admin.homeserver.metrics import Metrics
from synapse_federation_admin.homeserver.process import Process

T = TypeVar("T")

# What is wrong with a statement: there is no such table or column, it is a view, of
# another type, a syntax error ... PostgreSQL's class of codes, with that of what it
# stumbles over itself where a table is dropped just then; and SQLite's code. All other
# codes of SQLite's `OperationalError` are about the file: locked, full ...
_STATEMENT = ("42", "XX000")
_SQLITE_ERROR = 1

# Of its texts, for Python 3.10, which does not tell the code.
_OF_STATEMENT = ("no such ", "near ", "has no column", "does not match", " view")

# PostgreSQL's code for a change on a server that only reads: a standby, or a primary in
# the midst of becoming one.
_READ_ONLY = "25006"


class LockedError(Exception):
    """Somebody else has locked a table: Synapse repeats the database's own error."""


def on_postgres(txn: LoggingTransaction) -> bool:
    """Tell whether a transaction is one of PostgreSQL; else it is of SQLite."""
    return isinstance(txn.database_engine, PostgresEngine)


def code_of(error: BaseException) -> str | None:
    """Return PostgreSQL's code for an error; None if it has none."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


class Database(Process):
    """Runs transactions, and tells what their errors mean.

    Attributes:
        metrics: What is shown on Synapse's metrics endpoint.
    """

    def __init__(self, api: ModuleApi) -> None:
        super().__init__(api)
        self.metrics = Metrics(self._hs.hostname)

    @cached_property
    def is_postgres(self) -> bool:
        """Whether the database is PostgreSQL; else it is SQLite.

        On SQLite, Synapse has one connection for everything: what runs long on it holds
        up the whole homeserver.
        """
        return isinstance(
            self._hs.get_datastores().main.database_engine, PostgresEngine
        )

    async def run_db_interaction(
        self,
        desc: str,
        func: Callable[[LoggingTransaction], T],
        *,
        read_committed: bool = False,
        autocommit: bool = False,
    ) -> T:
        """Run a function in a transaction, on a database thread.

        Args:
            desc: Its name in metrics and logs.
            func: Called with a `LoggingTransaction`; again if the database says so.
            read_committed: Each statement sees the newest. For those that wait for a
                lock first: what Synapse's ordinary transactions see is as old as their
                first statement.
            autocommit: On PostgreSQL, each statement is a transaction of its own: for
                those that cannot be in one with others.
        """
        return await self._hs.get_datastores().main.db_pool.runInteraction(
            desc,
            _begun_anew(func),
            isolation_level=IsolationLevel.READ_COMMITTED if read_committed else None,
            db_autocommit=autocommit,
        )

    @staticmethod
    def is_refused(error: BaseException) -> bool:
        """Tell whether a statement is wrong, for the tables that there are."""
        code = code_of(error)
        if code is not None or not isinstance(error, sqlite3.OperationalError):
            return (code or "").startswith(_STATEMENT)
        if not hasattr(error, "sqlite_errorcode"):
            return any(words in str(error) for words in _OF_STATEMENT)
        return bool(error.sqlite_errorcode == _SQLITE_ERROR)

    def is_database_away(self, error: BaseException) -> bool:
        """Tell whether an error says that the database cannot be used just now.

        It is away, locked, full, restarting, or has cancelled the work. Whoever repeats
        what failed does so only then: everything else is a bug, and stays one.
        """
        module = self._hs.get_datastores().main.database_engine.module
        if code_of(error) == _READ_ONLY:
            return True
        if isinstance(error, LockedError | ConnectionLost):
            # Or it closed the connection in the midst of a transaction.
            return True
        if isinstance(error, module.InterfaceError):
            # The connection was closed. From SQLite's driver it is about an argument.
            return self.is_postgres
        if self.is_postgres and type(error) is module.DatabaseError:
            # It went while its answer was read: psycopg2 has no other class for that.
            return True
        return isinstance(error, module.OperationalError) and not self.is_refused(error)


def _begun_anew(
    func: Callable[[LoggingTransaction], T],
) -> Callable[[LoggingTransaction], T]:
    """Have each attempt at a transaction begin anew."""

    def attempt(txn: LoggingTransaction) -> T:
        # What an attempt wants done after it goes if it is repeated: Synapse does it
        # for every attempt, once one has succeeded.
        for callbacks in (
            txn.after_callbacks,
            txn.async_after_callbacks,
            txn.exception_callbacks,
        ):
            if callbacks:
                callbacks.clear()
        return func(txn)

    return attempt
