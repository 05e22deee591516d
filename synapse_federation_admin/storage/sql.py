# SPDX-License-Identifier: Apache-2.0
"""SQL texts with their arguments, and what is not the same on both databases.

Parameters are written `?`, as Synapse's `LoggingTransaction` takes them.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.database import on_postgres

T = TypeVar("T")

# What of Synapse's table `destinations` is failing. The optional indexes are over the
# rows for which it is true, so it is written the same wherever it is used.
FAILING = "retry_last_ts <> 0"

# What of it bears a name that a server can have, by its length: longer ones do not fit
# into the module's indexes.
FITS = f"LENGTH(destination) <= {limits.SERVER_NAME}"

# Since when what fails has, at the latest.
FAILING_SINCE = "COALESCE(failure_ts, retry_last_ts)"

# By how much the clocks of processes may differ, in ms: what was recorded later than
# now by more was so by a clock that was wrong then, and is not believed.
AHEAD_MS = 600_000

# By how much Synapse's time of a failure may differ from that which is recorded.
MOMENT_MS = 1000


class Sql(NamedTuple):
    """An SQL text and the arguments for its parameters."""

    text: str
    args: tuple[str | int | None, ...] = ()

    def select_txn(self, txn: LoggingTransaction) -> list[tuple[Any, ...]]:
        """Return the rows of a whole statement."""
        txn.execute(self.text, self.args)
        return txn.fetchall()


def where(conditions: Sequence[Sql]) -> Sql:
    """Return the WHERE clause for rows that meet every condition; "" for all rows.

    Not `WHERE TRUE`: SQLite counts twice as fast without.
    """
    if not conditions:
        return Sql("")
    return Sql(
        "WHERE " + " AND ".join(condition.text for condition in conditions),
        tuple(arg for condition in conditions for arg in condition.args),
    )


def any_of(expression: str, values: Collection[str]) -> Sql:
    """Return the condition that an expression has one of some values: of any number.

    SQLite takes only so many parameters in one statement, so that they come as one:
    the keys of an object, which both databases read alike.
    """
    return Sql(
        f"{expression} IN (SELECT key FROM json_each(?))",  # noqa: S608
        (json.dumps(dict.fromkeys(values)),),
    )


def can_be_stored(name: str) -> bool:
    """Tell whether a text can be in a column at all.

    PostgreSQL's `text` has no NUL, and its driver refuses one as an argument.
    """
    return "\0" not in name


def rows_of(rows: Sequence[Sequence[str | int | None]]) -> Sql:
    """Return the VALUES of some rows: one at least, all as long."""
    text = ", ".join(f"({marks(row)})" for row in rows)
    return Sql(f"VALUES {text}", tuple(chain.from_iterable(rows)))


def in_pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield so many items at a time: as many as one transaction is about."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def marks(values: Collection[object]) -> str:
    """Return the parameters for values in an IN."""
    return ", ".join("?" * len(values))


class Expired(NamedTuple):
    """Rows of a table that are not kept any more.

    Attributes:
        table: The table.
        key: The columns of its key.
        which: Their condition, with a parameter wherever it has the time by which they
            are old, or of after which they are.
    """

    table: str
    key: str
    which: str

    def delete_txn(self, txn: LoggingTransaction, ts: int, limit: int) -> int:
        """Delete some; return how many.

        Args:
            txn: The transaction.
            ts: The time.
            limit: The most rows to delete.
        """
        txn.execute(
            f"DELETE FROM {self.table} WHERE ({self.key}) IN "  # noqa: S608
            f"(SELECT {self.key} FROM {self.table} WHERE {self.which} LIMIT ?)",
            (*(ts,) * self.which.count("?"), limit),
        )
        return txn.rowcount


def existing_tables(txn: LoggingTransaction) -> set[str]:
    """Return the names of all tables that there are, Synapse's and ours."""
    txn.execute(
        "SELECT tablename FROM pg_tables "
        "WHERE schemaname = ANY (current_schemas(false))"
        if on_postgres(txn)
        else "SELECT name FROM sqlite_master WHERE type = 'table'"
    )
    return {name for (name,) in txn.fetchall()}
