# SPDX-License-Identifier: Apache-2.0
"""What came of real requests, in three tables that this file alone names.

- `federation_admin_failures`: why they failed, a row for each destination and kind.
- `federation_admin_successes`: when they were answered well, a row for each
  destination.
- `federation_admin_addresses`: where destinations lead that began to fail together, a
  row for each that was looked up.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.storage.sql import (
    AHEAD_MS,
    FAILING,
    Expired,
    marks,
    rows_of,
)

_FAILURES = "federation_admin_failures"
_SUCCESSES = "federation_admin_successes"
_ADDRESSES = "federation_admin_addresses"

# The rows, for statements of others; `addresses` is a list, as JSON.
FAILURES = f"(SELECT destination, kind, issuer, last_ts FROM {_FAILURES})"  # noqa: S608
SUCCESSES = (
    "(SELECT destination, last_ts, recovered_ts, first_ts, owner "  # noqa: S608
    f"FROM {_SUCCESSES})"
)
ADDRESSES = f"(SELECT destination, looked_ts, addresses FROM {_ADDRESSES})"  # noqa: S608

# What is old by when it came last; why something fails is kept for as long as it does.
# What a clock wrote that was ahead, as nothing newer would replace it. And what was
# looked up long ago.
OLD = (
    Expired(
        _FAILURES,
        "destination, kind",
        "last_ts < ? AND NOT EXISTS (SELECT 1 FROM destinations AS d "  # noqa: S608
        f"WHERE d.destination = {_FAILURES}.destination AND {FAILING})",
    ),
    Expired(_SUCCESSES, "destination", "last_ts < ?"),
)
BEYOND = (
    Expired(_FAILURES, "destination, kind", "last_ts > ?"),
    Expired(_SUCCESSES, "destination", "last_ts > ?"),
)
OLD_ADDRESSES = Expired(_ADDRESSES, "destination", "looked_ts < ?")

# What is sent anew may lack some small part of what was refused as too large: from this
# share of it on it is as large.
AS_LARGE = 0.9

# How often it is written of a destination that it answers, at most: but for a request
# that is larger than what it has accepted before.
SUCCESS_EVERY_MS = 300_000


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
        refused_bytes: How large the last of them was, if that was too large and none as
            large has been accepted since; else None.
        backs_off: Whether Synapse backs off for it, so that it is part of an outage.
    """

    kind: Annotated[str, FailureKind]
    message: str
    first_ts: int
    last_ts: int
    count: int
    instance: str
    issuer: str = ""
    refused_bytes: int | None = None
    backs_off: bool = True

    def before(self, later: "RecordedFailure") -> "RecordedFailure":
        """Return these and later ones of the same kind together."""
        return attr.evolve(
            later,
            first_ts=self.first_ts,
            count=self.count + later.count,
            backs_off=self.backs_off or later.backs_off,
        )


class Recorded(NamedTuple):
    """What is recorded of real requests to a server.

    Attributes:
        failures: Why requests failed: of each kind the last, the last of all first.
        success_ts: When one last succeeded; None if none has.
    """

    failures: Sequence[RecordedFailure] = ()
    success_ts: int | None = None

    @property
    def failure(self) -> RecordedFailure | None:
        """The last failure; None if there is none."""
        return next(iter(self.failures), None)

    @property
    def refused_bytes(self) -> int | None:
        """How large a request was that was too large; None if there is none.

        Nor is there if one as large was accepted since.
        """
        refused = (failure.refused_bytes for failure in self.failures)
        return next(filter(None, refused), None)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RecordedSuccess:
    """When a destination answered well.

    Attributes:
        destination: The destination.
        last_ts: When it last did, to within SUCCESS_EVERY_MS.
        recovered_ts: When it last did so after it had failed, exactly; None if it has
            not. Later than `last_ts` if it has asked us something in place of that.
        owner: Whose it is.
        accepted_bytes: How large a request was that it accepted; 0 if that is not
            known.
    """

    destination: str
    last_ts: int
    recovered_ts: int | None
    owner: str
    accepted_bytes: int = 0

    def before(self, later: "RecordedSuccess") -> "RecordedSuccess":
        """Return this and a later one together."""
        return attr.evolve(
            later,
            recovered_ts=later.recovered_ts or self.recovered_ts,
            accepted_bytes=max(later.accepted_bytes, self.accepted_bytes),
        )


class Failed(NamedTuple):
    """A destination to which a real request has failed.

    Attributes:
        destination: The server name.
        kind: The cause.
        ts: When it failed.
    """

    destination: str
    kind: Annotated[str, FailureKind]
    ts: int


# How each column changes if there is a row already: what was said last is kept of what
# several processes say.
_FAILURE_COLUMNS = (
    "destination",
    *(name for name in attr.fields_dict(RecordedFailure) if name != "backs_off"),
)
# But not if that was by a clock that was ahead.
_WAS_AHEAD = f"known.last_ts > EXCLUDED.last_ts + {AHEAD_MS}"
_IS_LAST = f"(EXCLUDED.last_ts >= known.last_ts OR {_WAS_AHEAD})"
_CHANGES = f"""
    message = CASE WHEN {_IS_LAST} THEN EXCLUDED.message ELSE known.message END,
    instance = CASE WHEN {_IS_LAST} THEN EXCLUDED.instance ELSE known.instance END,
    issuer = CASE WHEN {_IS_LAST} THEN EXCLUDED.issuer ELSE known.issuer END,
    refused_bytes = CASE WHEN {_IS_LAST} THEN EXCLUDED.refused_bytes
        ELSE known.refused_bytes END,
    last_ts = CASE WHEN {_IS_LAST} THEN EXCLUDED.last_ts ELSE known.last_ts END,
    first_ts = CASE WHEN EXCLUDED.first_ts < known.first_ts
        THEN EXCLUDED.first_ts ELSE known.first_ts END,
    count = known.count + EXCLUDED.count
"""


def add_failures_txn(
    txn: LoggingTransaction, failures: Mapping[str, Sequence[RecordedFailure]]
) -> None:
    """Add failures of destinations to those that are recorded.

    Args:
        txn: The transaction.
        failures: By destination, at most one of each kind; in an order that all writers
            have, so that none waits for another in a circle.
    """
    new = rows_of(
        [
            # All but whether it backs off.
            (destination, *attr.astuple(failure)[:-1])
            for destination, of in failures.items()
            for failure in sorted(of, key=lambda failure: failure.kind)
        ]
    )
    txn.execute(
        f"INSERT INTO {_FAILURES} AS known ({', '.join(_FAILURE_COLUMNS)}) "
        f"{new.text} ON CONFLICT (destination, kind) DO UPDATE SET {_CHANGES}",
        new.args,
    )


def failed_since_txn(
    txn: LoggingTransaction, after_ts: int, now_ts: int, limit: int
) -> list[Failed]:
    """Return to what requests failed after a time, up to now; the newest first."""
    txn.execute(
        f"SELECT destination, kind, last_ts FROM {_FAILURES} "  # noqa: S608
        "WHERE last_ts > ? AND last_ts <= ? ORDER BY last_ts DESC LIMIT ?",
        (after_ts, now_ts + AHEAD_MS, limit),
    )
    return [Failed(*row) for row in txn.fetchall()]


def failures_txn(
    txn: LoggingTransaction, destinations: Sequence[str], now_ts: int
) -> dict[str, list[RecordedFailure]]:
    """Return failures of some destinations up to now, of each the last kind first.

    At most one for each kind. Destinations without any are left out.
    """
    txn.execute(
        f"SELECT {', '.join(_FAILURE_COLUMNS)} FROM {_FAILURES} "  # noqa: S608
        f"WHERE destination IN ({marks(destinations)}) AND last_ts <= ? "
        "ORDER BY last_ts DESC, kind",
        (*destinations, now_ts + AHEAD_MS),
    )
    found = defaultdict(list)
    for destination, *row in txn.fetchall():
        found[destination].append(RecordedFailure(*row))
    return dict(found)


def add_successes_txn(
    txn: LoggingTransaction, successes: Sequence[RecordedSuccess]
) -> None:
    """Add when destinations answered to what is recorded; each of them once.

    What they have accepted is not too large for them any more.
    """
    accepted = [
        (s.destination, s.accepted_bytes) for s in successes if s.accepted_bytes
    ]
    if accepted:
        rows = rows_of(accepted)
        txn.execute(
            f"UPDATE {_FAILURES} AS known SET refused_bytes = NULL "  # noqa: S608
            f"FROM ({rows.text}) AS new WHERE known.destination = new.column1 "
            f"AND known.kind = '{FailureKind.TOO_LARGE.value}' "
            f"AND known.refused_bytes * {AS_LARGE} <= new.column2",
            rows.args,
        )
    new = rows_of(
        [
            (s.destination, s.last_ts, s.recovered_ts, s.owner, s.last_ts)
            for s in successes
        ]
    )
    txn.execute(
        f"INSERT INTO {_SUCCESSES} AS known "
        f"(destination, last_ts, recovered_ts, owner, first_ts) {new.text} "
        "ON CONFLICT (destination) DO UPDATE SET owner = EXCLUDED.owner, "
        f"first_ts = CASE WHEN {_WAS_AHEAD} "
        "THEN EXCLUDED.last_ts ELSE known.first_ts END, "
        f"last_ts = CASE WHEN {_IS_LAST} "
        "THEN EXCLUDED.last_ts ELSE known.last_ts END, "
        f"recovered_ts = CASE WHEN {_WAS_AHEAD} OR known.recovered_ts IS NULL "
        "OR EXCLUDED.recovered_ts > known.recovered_ts "
        "THEN EXCLUDED.recovered_ts ELSE known.recovered_ts END",
        new.args,
    )


def last_successes_txn(
    txn: LoggingTransaction, destinations: Sequence[str], now_ts: int
) -> dict[str, int]:
    """Return when destinations last answered, up to now; others are left out."""
    txn.execute(
        f"SELECT destination, last_ts FROM {_SUCCESSES} "  # noqa: S608
        f"WHERE destination IN ({marks(destinations)}) AND last_ts <= ? "
        "AND (recovered_ts IS NULL OR recovered_ts <= last_ts)",
        (*destinations, now_ts + AHEAD_MS),
    )
    return dict(txn.fetchall())


def write_addresses_txn(
    txn: LoggingTransaction, found: Mapping[str, Sequence[str]], looked_ts: int
) -> None:
    """Write to which addresses destinations lead, each in place of what was before."""
    txn.execute_batch(
        f"INSERT INTO {_ADDRESSES} (destination, looked_ts, addresses) "  # noqa: S608
        "VALUES (?, ?, ?) ON CONFLICT (destination) DO UPDATE SET "
        "looked_ts = EXCLUDED.looked_ts, addresses = EXCLUDED.addresses",
        [
            (destination, looked_ts, json.dumps(addresses))
            for destination, addresses in found.items()
        ],
    )


def delete_txn(txn: LoggingTransaction, destinations: Sequence[str]) -> None:
    """Delete all of some destinations."""
    for table in (_FAILURES, _SUCCESSES, _ADDRESSES):
        txn.execute(
            f"DELETE FROM {table} WHERE destination IN ({marks(destinations)})",  # noqa: S608
            tuple(destinations),
        )
