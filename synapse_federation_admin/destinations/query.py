# SPDX-License-Identifier: Apache-2.0
"""What may be asked, as SQL text and arguments: pure, and the same on both databases.

Parameters are written `?`, as Synapse's `LoggingTransaction` takes them.
"""

import re

import attr

from synapse_federation_admin.models import (
    DestinationOrder,
    DestinationQuery,
    Direction,
)

# `retry_*` that is NULL counts as 0, which is also how the API shows it. What else is
# NULL comes last in both directions. SQLite and PostgreSQL by themselves disagree about
# where NULL goes.
_NULL_IS_ZERO = {DestinationOrder.RETRY_LAST_TS, DestinationOrder.RETRY_INTERVAL}

_ASCII_CAPITALS = re.compile("[A-Z]+")
_LIKE_SPECIAL = re.compile("[!%_]")

_DIRECTIONS = {Direction.FORWARDS: "ASC", Direction.BACKWARDS: "DESC"}

DESTINATION_COLUMNS = (
    "destination, retry_last_ts, retry_interval, failure_ts, "
    "last_successful_stream_ordering"
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Sql:
    """An SQL text and the arguments for its parameters."""

    text: str
    args: tuple[str | int, ...] = ()


def can_be_stored(name: str) -> bool:
    """Tell whether a text can be in a column at all.

    PostgreSQL's `text` has no NUL, and its driver refuses one as an argument.
    """
    return "\0" not in name


def select_destination(name: str) -> Sql:
    """Select one destination by its exact name."""
    return Sql(
        f"SELECT {DESTINATION_COLUMNS} FROM destinations WHERE destination = ?",  # noqa: S608
        (name,),
    )


def count_destinations(query: DestinationQuery) -> Sql:
    """Count the destinations that a query's filter keeps."""
    where = _where(query)
    return Sql(f"SELECT COUNT(*) FROM destinations {where.text}", where.args)  # noqa: S608


def select_destinations(query: DestinationQuery) -> Sql:
    """Select one page of the destinations that a query's filter keeps."""
    where = _where(query)
    return Sql(
        f"SELECT {DESTINATION_COLUMNS} FROM destinations {where.text} "  # noqa: S608
        f"ORDER BY {_order(query)} LIMIT ? OFFSET ?",
        (*where.args, query.limit, query.offset),
    )


def count_rooms(destination: str) -> Sql:
    """Count the rooms in which something was ever queued for a destination."""
    return Sql(
        "SELECT COUNT(*) FROM destination_rooms WHERE destination = ?", (destination,)
    )


def select_rooms(
    destination: str, *, offset: int, limit: int, direction: Direction
) -> Sql:
    """Select one page of a destination's rooms, sorted by room ID."""
    return Sql(
        "SELECT room_id, stream_ordering FROM destination_rooms WHERE destination = ? "  # noqa: S608
        f"ORDER BY room_id {_DIRECTIONS[direction]} LIMIT ? OFFSET ?",
        (destination, limit, offset),
    )


def _where(query: DestinationQuery) -> Sql:
    if not query.name_contains:
        return Sql("")
    # Only ASCII letters, as LOWER does on SQLite and in PostgreSQL's C locale.
    needle = _ASCII_CAPITALS.sub(lambda m: m[0].lower(), query.name_contains)
    needle = _LIKE_SPECIAL.sub(lambda m: "!" + m[0], needle)
    return Sql("WHERE LOWER(destination) LIKE ? ESCAPE '!'", (f"%{needle}%",))


def _order(query: DestinationQuery) -> str:
    column = query.order_by.value
    direction = _DIRECTIONS[query.direction]
    if query.order_by is DestinationOrder.DESTINATION:
        return f"destination {direction}"
    if query.order_by in _NULL_IS_ZERO:
        return f"COALESCE({column}, 0) {direction}, destination ASC"
    return f"{column} IS NULL, {column} {direction}, destination ASC"
