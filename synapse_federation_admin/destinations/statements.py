# SPDX-License-Identifier: Apache-2.0
"""The statements that read destinations, each run in a transaction of the caller's."""

from collections.abc import Sequence

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.indexes import INDEXES
from synapse_federation_admin.destinations.query import BEYOND, DESTINATION_COLUMNS
from synapse_federation_admin.destinations.values import Destination, Direction
from synapse_federation_admin.storage.sql import Sql, where


def select(
    txn: LoggingTransaction,
    source: str,
    which: Sequence[Sql],
    order: str,
    limit: int,
    offset: int = 0,
) -> list[Destination]:
    """Return rows.

    Args:
        txn: The transaction.
        source: What stands behind FROM: the table, and which index to read it by.
        which: The conditions.
        order: The ORDER BY.
        limit: The most rows to return.
        offset: How many to leave out at the start.
    """
    condition = where(which)
    txn.execute(
        f"SELECT {DESTINATION_COLUMNS} FROM {source} {condition.text} "  # noqa: S608
        f"ORDER BY {order} LIMIT ? OFFSET ?",
        (*condition.args, limit, offset),
    )
    return list(map(Destination._make, txn.fetchall()))


def count(txn: LoggingTransaction, which: Sequence[Sql]) -> int:
    """Count the rows that meet conditions."""
    condition = where(which)
    txn.execute(
        f"SELECT COUNT(*) FROM destinations {condition.text}",  # noqa: S608
        condition.args,
    )
    row = txn.fetchone()
    assert row is not None
    return int(row[0])


def values(txn: LoggingTransaction, expression: str, which: Sequence[Sql]) -> list[int]:
    """Return the values of an expression in the rows that meet conditions."""
    condition = where(which)
    txn.execute(
        f"SELECT {expression} FROM destinations NOT INDEXED {condition.text}",  # noqa: S608
        condition.args,
    )
    return [value for (value,) in txn.fetchall()]


def name_at(
    txn: LoggingTransaction, after: str | None, direction: Direction, count: int
) -> str | None:
    """Return the name of the `count`th row behind a name; None if there are fewer."""
    condition = where(between(after, None, direction))
    txn.execute(
        f"SELECT destination FROM destinations {condition.text} "  # noqa: S608
        f"ORDER BY destination {BEYOND[direction][1]} LIMIT 1 OFFSET ?",
        (*condition.args, count - 1),
    )
    row = txn.fetchone()
    return row[0] if row else None


def between(after: str | None, upto: str | None, direction: Direction) -> list[Sql]:
    """Return the conditions for names behind one, up to another and with it."""
    beyond, within = (">", "<=") if direction is Direction.FORWARDS else ("<", ">=")
    found = []
    if after is not None:
        found.append(Sql(f"destination {beyond} ?", (after,)))
    if upto is not None:
        found.append(Sql(f"destination {within} ?", (upto,)))
    return found


def last_row_id(txn: LoggingTransaction) -> int:
    """Return the largest rowid on SQLite; 0 if the table is empty."""
    txn.execute("SELECT MAX(rowid) FROM destinations")
    row = txn.fetchone()
    return int(row[0] or 0) if row else 0


def usable_indexes(txn: LoggingTransaction, *, on_postgres: bool) -> set[str]:
    """Return which of the optional indexes there are, ready for use.

    On SQLite only those that are as the module makes them: a statement that names an
    index which does not serve it fails.
    """
    if on_postgres:
        txn.execute(
            "SELECT c.relname FROM pg_index AS i "
            "INNER JOIN pg_class AS c ON c.oid = i.indexrelid "
            "WHERE i.indrelid = 'destinations'::regclass AND i.indisvalid"
        )
        return {name for (name,) in txn.fetchall()}
    txn.execute(
        "SELECT name, sql FROM sqlite_master "
        "WHERE type = 'index' AND tbl_name = 'destinations'"
    )
    found = dict(txn.fetchall())
    return {index.name for index in INDEXES if found.get(index.name) == index.create()}
