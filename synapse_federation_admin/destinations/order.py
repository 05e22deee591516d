# SPDX-License-Identifier: Apache-2.0
"""A sorted list of destinations, cut into segments which the database can read cheaply.

The rows that have no value to sort by are sorted by their name alone, so they are a
list of their own, which Synapse's primary key serves; the others are one that an
optional index over just those rows serves. Pure.
"""

from typing import NamedTuple

from synapse_federation_admin.destinations.query import (
    BEYOND,
    NEXT_RETRY_TS,
    NOT_FAILING,
    by_name,
    names_between,
)
from synapse_federation_admin.destinations.values import (
    DestinationOrder,
    Direction,
    Position,
    Sort,
)
from synapse_federation_admin.storage.sql import FAILING, Sql

_OPPOSITE = {
    Direction.FORWARDS: Direction.BACKWARDS,
    Direction.BACKWARDS: Direction.FORWARDS,
}


class Segment(NamedTuple):
    """A part of a sorted list.

    Attributes:
        conditions: Which rows are in it.
        order: Its ORDER BY.
        names: The direction of the names, of all rows or of those with equal values.
        has_value: Whether its rows have a value, as the optional indexes hold them;
            else the name alone sorts it, and the primary key serves.
        after: In a segment by name: it begins behind this name. None: at the start.
    """

    conditions: tuple[Sql, ...]
    order: str
    names: Direction
    has_value: bool
    after: str | None = None

    @property
    def where(self) -> list[Sql]:
        """Its conditions, that of where it begins among them."""
        return [*self.conditions, *names_between(self.after, None, self.names)]


class _Column(NamedTuple):
    """What an order sorts by.

    Attributes:
        value: The expression.
        has_value: The condition for rows with a value other than NULL and 0.
        has_none: The condition for all others.
        none: The value that the others have: 0, or None for NULL.
    """

    value: str
    has_value: str
    has_none: str
    none: int | None


def _column(name: str) -> _Column:
    return _Column(name, f"{name} IS NOT NULL", f"{name} IS NULL", None)


_COLUMNS = {
    DestinationOrder.RETRY_LAST_TS: _Column("retry_last_ts", FAILING, NOT_FAILING, 0),
    DestinationOrder.RETRY_INTERVAL: _Column(
        "retry_interval",
        "retry_interval <> 0",
        "(retry_interval IS NULL OR retry_interval = 0)",
        0,
    ),
    DestinationOrder.FAILURE_TS: _column("failure_ts"),
    DestinationOrder.LAST_SUCCESSFUL_STREAM_ORDERING: _column(
        "last_successful_stream_ordering"
    ),
    DestinationOrder.NEXT_RETRY_TS: _Column(NEXT_RETRY_TS, FAILING, NOT_FAILING, None),
}


def segments(
    sort: Sort,
    after: Position | None,
    *,
    indexed: bool = False,
    reverse: bool = False,
) -> list[Segment]:
    """Cut a sorted list, or what of it comes behind a position, into segments.

    Args:
        sort: The order of the list.
        after: The position; None for the whole list.
        indexed: Whether there are the optional indexes.
        reverse: Read the list from its end.

    Returns:
        The segments, in the order in which they follow each other.
    """
    direction = _OPPOSITE[sort.direction] if reverse else sort.direction
    if sort.is_by_name:
        return [_sorted_by_name((), direction, after)]
    column = _COLUMNS[sort.order_by]
    names = Direction.BACKWARDS if reverse else Direction.FORWARDS
    in_nones = after is not None and after.value == column.none
    in_values = after is not None and not in_nones
    nones = [
        _sorted_by_name((Sql(column.has_none),), names, after if in_nones else None)
    ]
    values = _with_value(
        column, direction, names, after if in_values else None, indexed=indexed
    )
    # NULL is last in both directions, 0 the least.
    are_last = column.none is None or sort.direction is Direction.BACKWARDS
    if are_last != reverse:
        return nones if in_nones else values + nones
    return values if in_values else nones + values


def _sorted_by_name(
    conditions: tuple[Sql, ...], names: Direction, after: Position | None
) -> Segment:
    name = after.destination if after else None
    return Segment(conditions, by_name(names), names, False, name)


def _with_value(
    column: _Column,
    direction: Direction,
    names: Direction,
    after: Position | None,
    *,
    indexed: bool,
) -> list[Segment]:
    """Return the segments of the rows that have a value."""
    order = f"{column.value} {BEYOND[direction][1]}, {by_name(names)}"
    rows = Sql(column.has_value)
    if after is None:
        return [Segment((rows,), order, names, True)]
    assert after.value is not None
    beyond = Sql(f"{column.value} {BEYOND[direction][0]} ?", (after.value,))
    tied = Sql(f"{column.value} = ?", (after.value,))
    if indexed:
        # Each of the two is read from where it begins.
        return [
            Segment((rows, tied), by_name(names), names, True, after.destination),
            Segment((rows, beyond), order, names, True),
        ]
    # Each would be a pass over the table.
    (later,) = names_between(after.destination, None, names)
    either = Sql(
        f"({beyond.text} OR ({tied.text} AND {later.text}))",
        (*beyond.args, *tied.args, *later.args),
    )
    return [Segment((rows, either), order, names, True)]
