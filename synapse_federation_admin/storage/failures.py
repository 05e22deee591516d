# SPDX-License-Identifier: Apache-2.0
"""Why real requests failed: `federation_admin_failures`.

It has a row for each destination and kind. This file alone names the table.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.storage.sql import (
    FAILING,
    Sql,
    delete_of,
    delete_some,
    marks,
    rows_of_json,
)

_TABLE = "federation_admin_failures"

# The rows, for statements of others.
FAILURES = f"(SELECT destination, kind, issuer, last_ts FROM {_TABLE})"  # noqa: S608


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RecordedFailure:
    """Failures of one kind of real requests to one destination.

    Attributes:
        kind: The cause.
        message: What the last of them met, for people.
        first_ts: When the first of them failed.
        last_ts: When the last of them failed.
        count: How many failed.
        instance: The process whose request was the last of them.
        issuer: Who issued the certificate that was not trusted; "" if that is not it.
    """

    kind: Annotated[str, FailureKind]
    message: str
    first_ts: int
    last_ts: int
    count: int
    instance: str
    issuer: str = ""

    def before(self, later: "RecordedFailure") -> "RecordedFailure":
        """Return these and later ones of the same kind together."""
        return attr.evolve(
            later, first_ts=self.first_ts, count=self.count + later.count
        )


# Their names and types, and how each changes if there is a row already: what was said
# last is kept of what several processes say.
_COLUMNS = {
    "destination": "text",
    "kind": "text",
    "message": "text",
    "first_ts": "bigint",
    "last_ts": "bigint",
    "count": "bigint",
    "instance": "text",
    "issuer": "text",
}
_IS_LAST = "EXCLUDED.last_ts >= known.last_ts"
_CHANGES = f"""
    message = CASE WHEN {_IS_LAST} THEN EXCLUDED.message ELSE known.message END,
    instance = CASE WHEN {_IS_LAST} THEN EXCLUDED.instance ELSE known.instance END,
    issuer = CASE WHEN {_IS_LAST} THEN EXCLUDED.issuer ELSE known.issuer END,
    last_ts = CASE WHEN {_IS_LAST} THEN EXCLUDED.last_ts ELSE known.last_ts END,
    first_ts = CASE WHEN EXCLUDED.first_ts < known.first_ts
        THEN EXCLUDED.first_ts ELSE known.first_ts END,
    count = known.count + EXCLUDED.count
"""


def add_txn(
    txn: LoggingTransaction,
    failures: Mapping[str, Sequence[RecordedFailure]],
    *,
    is_postgres: bool,
) -> None:
    """Add failures of destinations to those that are recorded.

    Args:
        txn: The transaction.
        failures: By destination, at most one of each kind; in an order that all writers
            have, so that none waits for another in a circle.
        is_postgres: Whether the database is PostgreSQL.
    """
    rows = [
        {"destination": destination, **attr.asdict(failure)}
        for destination, of in failures.items()
        for failure in sorted(of, key=lambda failure: failure.kind)
    ]
    names = ", ".join(_COLUMNS)
    txn.execute(
        f"INSERT INTO {_TABLE} AS known ({names}) "  # noqa: S608
        f"SELECT {names} FROM {rows_of_json('new', _COLUMNS, is_postgres)} WHERE TRUE "
        f"ON CONFLICT (destination, kind) DO UPDATE SET {_CHANGES}",
        (json.dumps(rows),),
    )


def select_txn(
    txn: LoggingTransaction, destinations: Sequence[str]
) -> dict[str, list[RecordedFailure]]:
    """Return the failures of some destinations, of each the last kind first.

    At most one for each kind. Destinations without any are left out.
    """
    txn.execute(
        f"SELECT {', '.join(_COLUMNS)} FROM {_TABLE} "  # noqa: S608
        f"WHERE destination IN ({marks(destinations)}) ORDER BY last_ts DESC, kind",
        tuple(destinations),
    )
    found = defaultdict(list)
    for destination, *row in txn.fetchall():
        found[destination].append(RecordedFailure(*row))
    return dict(found)


def prune_txn(txn: LoggingTransaction, before_ts: int, limit: int) -> int:
    """Delete rows of what failed last before a time; return how many.

    Why something fails is kept for as long as it does.
    """
    old = Sql(
        "last_ts < ? AND NOT EXISTS (SELECT 1 FROM destinations AS d "  # noqa: S608
        f"WHERE d.destination = {_TABLE}.destination AND {FAILING})",
        (before_ts,),
    )
    return delete_some(txn, _TABLE, "destination, kind", old, limit)


def delete_txn(txn: LoggingTransaction, destinations: Sequence[str]) -> None:
    """Delete all of some destinations."""
    delete_of(txn, _TABLE, destinations)
