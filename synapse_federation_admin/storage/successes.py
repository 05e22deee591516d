# SPDX-License-Identifier: Apache-2.0
"""When destinations answered well: `federation_admin_successes`.

It has a row for each destination. This file alone names the table.
"""

import json
from collections.abc import Sequence

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.storage.sql import (
    Sql,
    delete_of,
    delete_some,
    rows_of_json,
)

_TABLE = "federation_admin_successes"

# The rows, for statements of others.
SUCCESSES = f"(SELECT destination, last_ts, recovered_ts FROM {_TABLE})"  # noqa: S608

# How often it is written of a destination that it answers, at most.
SUCCESS_EVERY_MS = 300_000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RecordedSuccess:
    """When a destination answered well.

    Attributes:
        destination: The destination.
        last_ts: When it last did, to within SUCCESS_EVERY_MS.
        recovered_ts: When it last did so after it had failed, exactly; None if it has
            not.
    """

    destination: str
    last_ts: int
    recovered_ts: int | None

    def before(self, later: "RecordedSuccess") -> "RecordedSuccess":
        """Return this and a later one together."""
        return attr.evolve(later, recovered_ts=later.recovered_ts or self.recovered_ts)


_COLUMNS = {"destination": "text", "last_ts": "bigint", "recovered_ts": "bigint"}


def add_txn(
    txn: LoggingTransaction, successes: Sequence[RecordedSuccess], is_postgres: bool
) -> None:
    """Add when destinations answered to what is recorded; each of them once."""
    names = ", ".join(_COLUMNS)
    txn.execute(
        f"INSERT INTO {_TABLE} AS known ({names}) "  # noqa: S608
        f"SELECT {names} FROM {rows_of_json('new', _COLUMNS, is_postgres)} WHERE TRUE "
        "ON CONFLICT (destination) DO UPDATE SET "
        "last_ts = CASE WHEN EXCLUDED.last_ts > known.last_ts "
        "THEN EXCLUDED.last_ts ELSE known.last_ts END, "
        "recovered_ts = CASE WHEN known.recovered_ts IS NULL "
        "OR EXCLUDED.recovered_ts > known.recovered_ts "
        "THEN EXCLUDED.recovered_ts ELSE known.recovered_ts END",
        (json.dumps([attr.asdict(success) for success in successes]),),
    )


def last_ts_txn(txn: LoggingTransaction, destination: str) -> int | None:
    """Return when a destination last answered; None if that is not known."""
    txn.execute(
        f"SELECT last_ts FROM {_TABLE} WHERE destination = ?",  # noqa: S608
        (destination,),
    )
    row = txn.fetchone()
    return int(row[0]) if row else None


def prune_txn(txn: LoggingTransaction, before_ts: int, limit: int) -> int:
    """Delete rows of what answered last before a time; return how many."""
    old = Sql("last_ts < ?", (before_ts,))
    return delete_some(txn, _TABLE, "destination", old, limit)


def delete_txn(txn: LoggingTransaction, destinations: Sequence[str]) -> None:
    """Delete those of some destinations."""
    delete_of(txn, _TABLE, destinations)
