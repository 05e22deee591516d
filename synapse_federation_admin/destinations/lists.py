# SPDX-License-Identifier: Apache-2.0
"""Lists as v1 speaks of them: by offset, with the number of all rows."""

from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

import attr

from synapse_federation_admin.destinations.pagination import PageEnd, PageEnds, Walker
from synapse_federation_admin.destinations.reader import DestinationReader
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    Page,
    Position,
    Sort,
)

T = TypeVar("T")
P = TypeVar("P")


class Listing(Protocol[T, P]):
    """A sorted list, in which a position stands for the place behind a row.

    Attributes:
        key: Equal for equal lists.
    """

    @property
    def key(self) -> Hashable: ...  # noqa: D102

    async def count(self) -> int:
        """Count all rows."""

    async def read(self, after: P | None, limit: int) -> list[T]:
        """Return the next rows behind a position; None is the start."""

    def pieces(self, after: P | None, limit: int) -> AsyncGenerator[list[T], None]:
        """Read many rows, piece by piece."""

    async def position_at(self, offset: int, total: int) -> P | None:
        """Return the position behind the first `offset` of `total` rows."""

    def position_of(self, row: T) -> P:
        """Return the position behind a row."""


@attr.s(slots=True, frozen=True, auto_attribs=True)
class DestinationListing:
    """The list of the destinations that a filter keeps."""

    reader: DestinationReader
    wanted: DestinationFilter
    sort: Sort

    @property
    def key(self) -> Hashable:
        """Equal for equal lists."""
        return (self.wanted, self.sort)

    async def count(self) -> int:
        """Count all rows."""
        return await self.reader.count(self.wanted)

    async def read(self, after: Position | None, limit: int) -> list[Destination]:
        """Return the next rows."""
        return await self.reader.read(self.wanted, self.sort, after, limit)

    def pieces(
        self, after: Position | None, limit: int
    ) -> AsyncGenerator[list[Destination], None]:
        """Read many rows, piece by piece."""
        return self.reader.pieces(self.wanted, self.sort, after, limit)

    async def position_at(self, offset: int, total: int) -> Position | None:
        """Return the position behind the first `offset` of `total` rows."""
        return await self.reader.position_at(self.wanted, self.sort, offset, total)

    def position_of(self, row: Destination) -> Position:
        """Return the position behind a row."""
        return self.sort.position_of(row)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Start(Generic[P]):
    """Where a page begins.

    Attributes:
        after: The position behind which it begins; None is the start of the list.
        total: How many rows the list has; None if that has not been counted.
        is_past_end: Whether the list ends before.
    """

    after: P | None
    total: int | None
    is_past_end: bool = False


class LongPage(Generic[T, P]):
    """A page of so many rows that it is written while it is read.

    Attributes:
        total: How many rows the whole list has. Known when all pieces have been read,
            as what follows.
        has_more: Whether there are rows behind this page.
        end: The offset behind its last row.
    """

    def __init__(
        self,
        lists: "OffsetLists[P]",
        listing: Listing[T, P],
        offset: int,
        limit: int,
        walker: Walker,
    ) -> None:
        self._lists = lists
        self._listing = listing
        self._offset = offset
        self._limit = limit
        self._walker = walker
        self.total = 0
        self.has_more = False
        self.end = offset

    async def pieces(self) -> AsyncGenerator[list[T], None]:
        """Yield the rows, piece by piece."""
        listing = self._listing
        start = await self._lists.start(listing, self._offset, self._walker)
        if start.is_past_end:
            self.total = start.total or 0
            return
        left = self._limit
        last: T | None = None
        # One more than is wanted tells whether there are more.
        async with aclosing(listing.pieces(start.after, self._limit + 1)) as pieces:
            async for piece in pieces:
                rows = piece[:left]
                self.has_more = len(rows) < len(piece)
                left -= len(rows)
                self.end += len(rows)
                if rows:
                    last = rows[-1]
                    yield rows
        if not self.has_more:
            self.total = self.end
            return
        total = start.total if start.total is not None else await listing.count()
        self.total = max(total, self.end + 1)
        assert last is not None
        self._lists.remember(listing, self.end, self._walker, last, self.total)


class OffsetLists(Generic[P]):
    """Serves lists page by page, or a long page at a time.

    Within a walk, a page begins behind the last row of the one before it, so that no
    row is shown twice and none that stands there all along is skipped, and `total` is
    counted once.
    """

    def __init__(self, ends: PageEnds[P]) -> None:
        self._ends = ends

    async def page(
        self, listing: Listing[T, P], offset: int, limit: int, walker: Walker
    ) -> Page[T]:
        """Return one page.

        Args:
            listing: The list.
            offset: How many rows to leave out at the start.
            limit: The most rows to return. All of them are held in memory.
            walker: Who asks.
        """
        if limit == 0:
            return Page([], await listing.count(), has_more=False)
        start = await self.start(listing, offset, walker)
        if start.is_past_end:
            return Page([], start.total or 0, has_more=False)
        found = await listing.read(start.after, limit + 1)
        rows = found[:limit]
        end = offset + len(rows)
        if len(found) <= limit:
            # Whatever was counted when the walk began: here is its end.
            return Page(rows, end, has_more=False)
        total = start.total if start.total is not None else await listing.count()
        total = max(total, end + 1)
        self.remember(listing, end, walker, rows[-1], total)
        return Page(rows, total, has_more=True)

    def long_page(
        self, listing: Listing[T, P], offset: int, limit: int, walker: Walker
    ) -> LongPage[T, P]:
        """Return one page that is read while it is written; arguments as `page`."""
        return LongPage(self, listing, offset, limit, walker)

    async def start(
        self, listing: Listing[T, P], offset: int, walker: Walker
    ) -> _Start[P]:
        """Find where the page at an offset begins."""
        if offset == 0:
            return _Start(None, None)
        end = self._ends.find(listing.key, offset, walker)
        if end is not None:
            return _Start(end.position, end.total)
        total = await listing.count()
        if offset >= total:
            return _Start(None, total, is_past_end=True)
        after = await listing.position_at(offset, total)
        if after is None:
            # Rows have gone since they were counted.
            return _Start(None, min(total, offset), is_past_end=True)
        return _Start(after, total)

    def remember(
        self,
        listing: Listing[T, P],
        offset: int,
        walker: Walker,
        last: T,
        total: int,
    ) -> None:
        """Remember that a page ended with a row, right before an offset."""
        end = PageEnd(listing.position_of(last), total)
        self._ends.remember(listing.key, offset, walker, end)
