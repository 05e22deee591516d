# SPDX-License-Identifier: Apache-2.0
"""What may be asked, as SQL text and arguments: pure, and the same on both databases.

Parameters are written `?`, as Synapse's `LoggingTransaction` takes them.
"""

import re

from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationStatus,
    Direction,
)
from synapse_federation_admin.storage.outages import fails_for
from synapse_federation_admin.storage.sql import FAILING, Sql

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
    wanted: DestinationFilter, now_ms: int, *, like_folds_case: bool
) -> list[Sql]:
    """Return the conditions of a filter.

    Args:
        wanted: The filter.
        now_ms: The time at which statuses and durations are taken.
        like_folds_case: Whether LIKE takes ASCII letters of either case for equal, as
            SQLite's does. There it is several times as fast as LOWER.
    """
    name = "destination" if like_folds_case else "LOWER(destination)"
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
        found += _status_conditions(wanted.statuses, now_ms)
    if wanted.failing_for_ms is not None:
        found.append(Sql("failure_ts <= ?", (now_ms - wanted.failing_for_ms,)))
    if wanted.failures:
        found.append(fails_for(wanted.failures))
    return found


def is_of_failing(wanted: DestinationFilter) -> bool:
    """Tell whether a filter keeps none but failing destinations."""
    if wanted.failing_for_ms is not None or wanted.failures:
        return True
    return bool(wanted.statuses) and wanted.statuses <= set(_FAILING_STATUSES)


def _status_conditions(
    statuses: frozenset[DestinationStatus], now_ms: int
) -> list[Sql]:
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
