# SPDX-License-Identifier: Apache-2.0
"""A sorted list of destinations, cut into segments which the database can read cheaply.

The rows that have no value to sort by are sorted by their name alone, so they are a
list of their own, which Synapse's primary key serves; the others are one that an
optional index over just those rows serves. Pure.
"""

from enum import Enum

import attr

from synapse_federation_admin.destinations.query import (
    BEYOND,
    FAILING,
    NEXT_RETRY_TS,
    NOT_FAILING,
)
from synapse_federation_admin.destinations.values import (
    DestinationOrder,
    Direction,
    Position,
    Sort,
)
from synapse_federation_admin.storage.sql import Sql

_OPPOSITE = {
    Direction.FORWARDS: Direction.BACKWARDS,
    Direction.BACKWARDS: Direction.FORWARDS,
}


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Segment:
    """A part of a sorted list.

    Attributes:
        conditions: Which rows are in it.
        names: The direction of the names, of all rows or of those with equal values.
        index: The optional index over just such rows; None if the primary key serves.
        after: In a segment by name: it begins behind this name. None: at the start.
        value: The expression that it is sorted by first; None if by name alone.
        values: The direction of `value`.
    """

    conditions: tuple[Sql, ...]
    names: Direction
    index: str | None
    after: str | None = None
    value: str | None = None
    values: Direction = Direction.FORWARDS

    @property
    def is_by_name(self) -> bool:
        """Whether the name alone sorts it, and the primary key serves."""
        return self.value is None and self.index is None

    @property
    def order(self) -> str:
        """Its ORDER BY."""
        by_name = f"destination {BEYOND[self.names][1]}"
        if self.value is None:
            return by_name
        return f"{self.value} {BEYOND[self.values][1]}, {by_name}"

    @property
    def where(self) -> list[Sql]:
        """Its conditions, that of where it begins among them."""
        if self.after is None:
            return list(self.conditions)
        comparison = BEYOND[self.names][0]
        return [*self.conditions, Sql(f"destination {comparison} ?", (self.after,))]

    def not_behind(self, last: Position) -> Sql:
        """Return a condition that keeps every row which comes before a row.

        It keeps others with the same value, too: so it is a single comparison.
        """
        if self.value is None:
            comparison = BEYOND[_OPPOSITE[self.names]][0]
            return Sql(f"destination {comparison} ?", (last.destination,))
        assert last.value is not None
        comparison = BEYOND[_OPPOSITE[self.values]][0]
        return Sql(f"{self.value} {comparison}= ?", (last.value,))

    def cut(self, value: int) -> tuple[Sql, Sql]:
        """Return the conditions for rows up to a value, and for those beyond it."""
        beyond = BEYOND[self.values][0]
        up_to = BEYOND[_OPPOSITE[self.values]][0]
        return (
            Sql(f"{self.value} {up_to}= ?", (value,)),
            Sql(f"{self.value} {beyond} ?", (value,)),
        )


class _Part(Enum):
    """A part of a sorted list, by how its rows' values compare with 0."""

    NONE = ""
    ANY = "any"
    BELOW = "<"
    ABOVE = ">"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Column:
    """What an order sorts by.

    Attributes:
        value: The expression.
        has_value: The condition for rows with a value other than NULL and 0.
        has_none: The condition for all others.
        index: The optional index over the former.
        descending: The one that serves a descending list better, if there is one.
        none: The value that the others have: 0, or None for NULL.
    """

    value: str
    has_value: str
    has_none: str
    index: str
    descending: str
    none: int | None


def _column(name: str, index: str, descending: str = "") -> _Column:
    return _Column(
        name,
        f"{name} IS NOT NULL",
        f"{name} IS NULL",
        index,
        descending or index,
        None,
    )


_COLUMNS = {
    DestinationOrder.RETRY_LAST_TS: _Column(
        "retry_last_ts",
        FAILING,
        NOT_FAILING,
        "federation_admin_retry_last_ts",
        "federation_admin_retry_last_ts",
        0,
    ),
    DestinationOrder.RETRY_INTERVAL: _Column(
        "retry_interval",
        "retry_interval <> 0",
        "(retry_interval IS NULL OR retry_interval = 0)",
        "federation_admin_retry_interval",
        "federation_admin_retry_interval_desc",
        0,
    ),
    DestinationOrder.FAILURE_TS: _column("failure_ts", "federation_admin_failure_ts"),
    DestinationOrder.LAST_SUCCESSFUL_STREAM_ORDERING: _column(
        "last_successful_stream_ordering", "federation_admin_last_successful"
    ),
    DestinationOrder.NEXT_RETRY_TS: _Column(
        NEXT_RETRY_TS,
        FAILING,
        NOT_FAILING,
        "federation_admin_next_retry_ts",
        "federation_admin_next_retry_ts",
        None,
    ),
}


def segments(
    sort: Sort, after: Position | None, *, reverse: bool = False, split_ties: bool
) -> list[Segment]:
    """Cut a sorted list, or what of it comes behind a position, into segments.

    Args:
        sort: The order of the list.
        after: The position; None for the whole list.
        reverse: Read the list from its end.
        split_ties: Make a segment of its own of the rows with the same value as the
            position. With an index that is cheaper, without it is one pass more.

    Returns:
        The segments, in the order in which they follow each other.
    """
    direction = _OPPOSITE[sort.direction] if reverse else sort.direction
    if sort.is_by_name:
        name = after.destination if after else None
        return [Segment((), direction, None, after=name)]
    column = _COLUMNS[sort.order_by]
    names = Direction.BACKWARDS if reverse else Direction.FORWARDS
    parts = _parts(column, sort, reverse)
    if after is not None:
        parts = parts[parts.index(_part_of(column, after.value)) :]
    found: list[Segment] = []
    for part in parts:
        begin = after if part is parts[0] else None
        if part is _Part.NONE:
            name = begin.destination if begin else None
            found.append(Segment((Sql(column.has_none),), names, None, after=name))
        else:
            found += _with_value(column, part, direction, names, begin, split_ties)
    return found


def whole_order(sort: Sort, *, reverse: bool) -> str:
    """Return the ORDER BY of a whole list, or of the list from its end.

    No index serves it, unless the list is by name.
    """
    direction = _OPPOSITE[sort.direction] if reverse else sort.direction
    if sort.is_by_name:
        return f"destination {BEYOND[direction][1]}"
    column = _COLUMNS[sort.order_by]
    by_name = "destination DESC" if reverse else "destination ASC"
    if column.none == 0:
        return f"COALESCE({column.value}, 0) {BEYOND[direction][1]}, {by_name}"
    nulls = "FIRST" if reverse else "LAST"
    value = f"CASE WHEN {column.has_value} THEN {column.value} END"
    return f"{value} {BEYOND[direction][1]} NULLS {nulls}, {by_name}"


def _with_value(
    column: _Column,
    part: _Part,
    values: Direction,
    names: Direction,
    begin: Position | None,
    split_ties: bool,
) -> list[Segment]:
    """Return the segments of the rows that have a value."""
    index = column.descending if values is Direction.BACKWARDS else column.index
    rows = [Sql(column.has_value)]
    if part is not _Part.ANY:
        rows.append(Sql(f"{column.value} {part.value} 0"))
    if begin is None:
        return [Segment(tuple(rows), names, index, value=column.value, values=values)]
    assert begin.value is not None
    beyond = Sql(f"{column.value} {BEYOND[values][0]} ?", (begin.value,))
    tied = Sql(f"{column.value} = ?", (begin.value,))
    if split_ties:
        same = Segment(
            (Sql(column.has_value), tied), names, column.index, after=begin.destination
        )
        rows.append(beyond)
        others = Segment(tuple(rows), names, index, value=column.value, values=values)
        return [same, others]
    rows.append(
        Sql(
            f"({beyond.text} OR ({tied.text} AND destination {BEYOND[names][0]} ?))",
            (begin.value, begin.value, begin.destination),
        )
    )
    return [Segment(tuple(rows), names, index, value=column.value, values=values)]


def _parts(column: _Column, sort: Sort, reverse: bool) -> list[_Part]:
    """Return the parts of a list, in the order in which they are read."""
    if column.none is None:
        parts = [_Part.ANY, _Part.NONE]
    else:
        parts = [_Part.BELOW, _Part.NONE, _Part.ABOVE]
        if sort.direction is Direction.BACKWARDS:
            parts.reverse()
    return parts[::-1] if reverse else parts


def _part_of(column: _Column, value: int | None) -> _Part:
    """Return the part in which a row with this value is."""
    if value == column.none:
        return _Part.NONE
    if column.none is None:
        return _Part.ANY
    assert value is not None
    return _Part.BELOW if value < 0 else _Part.ABOVE
