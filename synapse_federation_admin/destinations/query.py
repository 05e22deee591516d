# SPDX-License-Identifier: Apache-2.0
"""What may be asked, as SQL text and arguments: the same on both databases.

Parameters are written `?`, as Synapse's `LoggingTransaction` takes them.
"""

import re
from collections.abc import Sequence

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    DestinationStatus,
    Direction,
)
from synapse_federation_admin.storage.outages import fails_for
from synapse_federation_admin.storage.sql import (
    FAILING,
    FAILING_SINCE,
    FITS,
    Sql,
    any_of,
    where,
)

_ASCII_CAPITALS = re.compile("[A-Z]+")
_LIKE_SPECIAL = re.compile("[!%_]")

DESTINATION_COLUMNS = (
    "destination, retry_last_ts, retry_interval, failure_ts, "
    "last_successful_stream_ordering"
)

NOT_FAILING = "(retry_last_ts IS NULL OR retry_last_ts = 0)"
NEXT_RETRY_TS = "(retry_last_ts + COALESCE(retry_interval, 0))"

_NOT_FAILING_STATUSES = {
    DestinationStatus.ONLINE: "last_successful_stream_ordering IS NOT NULL",
    DestinationStatus.UNKNOWN: "last_successful_stream_ordering IS NULL",
}
_FAILING_STATUSES = {
    DestinationStatus.BACKING_OFF: f"{NEXT_RETRY_TS} > ?",
    DestinationStatus.RETRY_DUE: f"{NEXT_RETRY_TS} <= ?",
}


def rows_txn(
    txn: LoggingTransaction, conditions: Sequence[Sql]
) -> dict[str, Destination]:
    """Return, by name, the rows of `destinations` that meet all conditions."""
    kept = where(conditions)
    found = Sql(
        f"SELECT {DESTINATION_COLUMNS} FROM destinations {kept.text}",  # noqa: S608
        kept.args,
    )
    return {row[0]: Destination(*row) for row in found.select_txn(txn)}


# By direction: how what comes behind a row compares with it, and the order.
BEYOND = {Direction.FORWARDS: (">", "ASC"), Direction.BACKWARDS: ("<", "DESC")}


def by_name(direction: Direction) -> str:
    """Return the ORDER BY of a list by name."""
    return f"destination {BEYOND[direction][1]}"


def names_between(
    after: str | None, upto: str | None, direction: Direction
) -> list[Sql]:
    """Return the conditions for names behind one, up to another and with it."""
    beyond, within = (">", "<=") if direction is Direction.FORWARDS else ("<", ">=")
    found = []
    if after is not None:
        found.append(Sql(f"destination {beyond} ?", (after,)))
    if upto is not None:
        found.append(Sql(f"destination {within} ?", (upto,)))
    return found


def conditions(
    wanted: DestinationFilter,
    now_ms: int,
    invalid: Sequence[str],
    *,
    is_postgres: bool,
) -> list[Sql]:
    """Return the conditions of a filter.

    Args:
        wanted: The filter.
        now_ms: The time at which statuses and durations are taken.
        invalid: The names that are none of servers.
        is_postgres: Whether the database is PostgreSQL.
    """
    # SQLite's LIKE takes ASCII letters of either case for equal, which is several times
    # as fast as LOWER there.
    name = "LOWER(destination)" if is_postgres else "destination"
    found = []
    if wanted.name_contains:
        pattern = f"%{_like_literal(wanted.name_contains)}%"
        found.append(Sql(f"{name} LIKE ? ESCAPE '!'", (pattern,)))
    if wanted.name_glob:
        pattern = _like_literal(wanted.name_glob).replace("*", "%").replace("?", "_")
        found.append(Sql(f"{name} LIKE ? ESCAPE '!'", (pattern,)))
    if is_of_failing(wanted):
        # A condition of its own, so that an index over failing rows serves.
        found.append(Sql(FAILING))
    if wanted.statuses:
        found += _status_conditions(
            wanted.statuses, now_ms, any_of("destination", invalid)
        )
    if wanted.failing_for_ms is not None:
        found.append(Sql(f"{FAILING_SINCE} <= ?", (now_ms - wanted.failing_for_ms,)))
    if wanted.failing_under_ms is not None:
        found.append(Sql(f"{FAILING_SINCE} > ?", (now_ms - wanted.failing_under_ms,)))
    if wanted.failures:
        found.append(fails_for(wanted.failures))
    if wanted.only_fitting:
        found.append(Sql(FITS))
    return found


def is_of_failing(wanted: DestinationFilter) -> bool:
    """Tell whether a filter keeps none but failing destinations."""
    ages = (wanted.failing_for_ms, wanted.failing_under_ms)
    if ages != (None, None) or wanted.failures:
        return True
    return is_failing(wanted.statuses)


def is_failing(statuses: frozenset[DestinationStatus]) -> bool:
    """Tell whether statuses are only of what fails."""
    return bool(statuses) and statuses <= set(_FAILING_STATUSES)


def _status_conditions(
    statuses: frozenset[DestinationStatus], now_ms: int, invalid: Sql
) -> list[Sql]:
    """Return the conditions for some statuses, of which `invalid` goes by the name."""
    others = statuses - {DestinationStatus.INVALID}
    if others == statuses:
        is_name = Sql(f"NOT {invalid.text}", invalid.args)
        return [*_row_conditions(statuses, now_ms), is_name]
    if not others:
        return [invalid]
    kept = _row_conditions(others, now_ms)
    if is_failing(others):
        kept.append(Sql(FAILING))
    text = " AND ".join(condition.text for condition in kept)
    args = tuple(arg for condition in kept for arg in condition.args)
    return [Sql(f"({invalid.text} OR ({text}))", (*invalid.args, *args))]


def _row_conditions(statuses: frozenset[DestinationStatus], now_ms: int) -> list[Sql]:
    """Return the conditions for statuses that what Synapse writes to the row says.

    But for FAILING, where all of them are of what fails.
    """
    healthy = [text for s, text in _NOT_FAILING_STATUSES.items() if s in statuses]
    failing = [text for s, text in _FAILING_STATUSES.items() if s in statuses]
    # Both of them are no condition.
    due = failing if len(failing) == 1 else []
    args = (now_ms,) * len(due)
    if not healthy:
        return [Sql(text, args) for text in due]
    kept = [" AND ".join([NOT_FAILING, *(healthy if len(healthy) == 1 else [])])]
    if failing:
        kept.append(" AND ".join([FAILING, *due]))
    return [Sql("(" + " OR ".join(f"({part})" for part in kept) + ")", args)]


def _like_literal(text: str) -> str:
    """Return a text as LIKE takes it: lower case, and nothing special in it.

    Only ASCII letters, as LOWER does on SQLite and in PostgreSQL's C locale.
    """
    lower = _ASCII_CAPITALS.sub(lambda m: m[0].lower(), text)
    return _LIKE_SPECIAL.sub(lambda m: "!" + m[0], lower)
