# SPDX-License-Identifier: Apache-2.0
"""Statements on `destinations`, each run in a transaction of the caller's."""

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import by_name
from synapse_federation_admin.destinations.query import names_between as between
from synapse_federation_admin.destinations.values import Direction
from synapse_federation_admin.storage.sql import where

__all__ = ["between", "name_at"]


def name_at(
    txn: LoggingTransaction, after: str | None, direction: Direction, count: int
) -> str | None:
    """Return the name of the `count`th row behind a name; None if there are fewer."""
    behind = where(between(after, None, direction))
    txn.execute(
        f"SELECT destination FROM destinations {behind.text} "  # noqa: S608
        f"ORDER BY {by_name(direction)} LIMIT 1 OFFSET ?",
        (*behind.args, count - 1),
    )
    row = txn.fetchone()
    return row[0] if row else None
