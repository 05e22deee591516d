# SPDX-License-Identifier: Apache-2.0
"""Pagination as v1 speaks of it: by offset, with the number of all rows.

An offset says nothing of where the page before it ended once rows have come or gone,
and the database must count its way to it. So the end of each page is remembered for a
while, and the page that follows begins there: within a walk no row is shown twice, and
none that stands there all along is skipped.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

import attr

T = TypeVar("T")
P = TypeVar("P")

# How many cursors are remembered, and how long.
_MAX_CURSORS = 4096
_MAX_AGE_MS = 10 * 60 * 1000

# How long a walk goes on with the number of rows that was counted for it.
_MAX_COUNT_AGE_MS = 10_000


class Listing(Protocol[T, P]):
    """A sorted list, in which a position stands for the place behind a row.

    Attributes:
        key: Equal for equal lists.
    """

    @property
    def key(self) -> Hashable: ...  # noqa: D102

    async def count(self) -> int:
        """Count all rows."""

    def pieces(self, after: P | None, limit: int) -> AsyncGenerator[list[T], None]:
        """Read the next rows behind a position, piece by piece; None is the start."""

    async def position_at(self, offset: int, total: int) -> P | None:
        """Return the position behind the first `offset` of `total` rows."""

    def position_of(self, row: T) -> P:
        """Return the position behind a row."""


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Count:
    """How many rows a list has.

    Attributes:
        rows: The number.
        ts: When they were counted.
    """

    rows: int
    ts: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Cursor(Generic[P]):
    """Where a page ended.

    Attributes:
        position: The place behind its last row.
        count: What was counted for the walk; None if it has to be counted anew.
        ts: When the page was handed out.
    """

    position: P
    count: Count | None
    ts: int


class Cursors(Generic[P]):
    """Remembers where pages ended, within a bound of number and of age."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self._cursors: OrderedDict[Hashable, Cursor[P]] = OrderedDict()

    def remember(self, page: Hashable, cursor: Cursor[P]) -> None:
        """Remember where a page begins: where the one before it ended."""
        self._cursors[page] = cursor
        self._cursors.move_to_end(page)
        if len(self._cursors) > _MAX_CURSORS:
            self._cursors.popitem(last=False)

    def find(self, page: Hashable) -> Cursor[P] | None:
        """Return where a page begins.

        A count serves once, and not for long: who asks for a page again wants to see
        what is there now.
        """
        cursor = self._cursors.get(page)
        now_ms = self.now_ms()
        if cursor is None or now_ms - cursor.ts > _MAX_AGE_MS:
            return None
        uncounted = attr.evolve(cursor, count=None)
        self._cursors[page] = uncounted
        if cursor.count is None or now_ms - cursor.count.ts > _MAX_COUNT_AGE_MS:
            return uncounted
        return cursor


class Page(Generic[T, P]):
    """A page of a list, which may be so long that it is written while it is read.

    Attributes:
        total: How many rows the whole list has. Known when all pieces have been read,
            as what follows.
        has_more: Whether there are rows behind this page.
        end: The offset behind its last row.
    """

    def __init__(
        self,
        cursors: Cursors[P],
        listing: Listing[T, P],
        offset: int,
        limit: int,
        client: Hashable,
    ) -> None:
        """Read nothing yet.

        Args:
            cursors: Where pages ended.
            listing: The list.
            offset: How many rows to leave out at the start.
            limit: The most rows to return.
            client: Who asks, as far as the request tells: equal for equal clients.
        """
        self._cursors = cursors
        self._listing = listing
        self._limit = limit
        self._walk = (listing.key, client, limit)
        self.total = 0
        self.has_more = False
        self.end = offset

    async def pieces(self) -> AsyncGenerator[list[T], None]:
        """Yield the rows, piece by piece. Raises what the database raises."""
        listing, left = self._listing, self._limit
        after: P | None = None
        count: Count | None = None
        if left == 0:
            self.total = await listing.count()
            return
        if self.end:
            after, count = await self._begin()
            if after is None and count is not None:
                # It ends before; or rows have gone since they were counted.
                self.total = min(count.rows, self.end)
                return
        last: T | None = None
        # One more than is wanted tells whether there are more.
        async with aclosing(listing.pieces(after, left + 1)) as pieces:
            async for piece in pieces:
                rows = piece[:left]
                self.has_more = len(rows) < len(piece)
                left -= len(rows)
                self.end += len(rows)
                if rows:
                    last = rows[-1]
                    yield rows
        if not self.has_more:
            # Whatever was counted when the walk began: here is its end.
            self.total = self.end
            return
        count = count or await self._count()
        self.total = max(count.rows, self.end + 1)
        assert last is not None
        self._cursors.remember(
            (*self._walk, self.end),
            Cursor(listing.position_of(last), count, self._cursors.now_ms()),
        )

    async def _begin(self) -> tuple[P | None, Count | None]:
        """Return where this page begins, None if the list ends before; and a count."""
        cursor = self._cursors.find((*self._walk, self.end))
        if cursor is not None:
            return cursor.position, cursor.count
        count = await self._count()
        if self.end >= count.rows:
            return None, count
        return await self._listing.position_at(self.end, count.rows), count

    async def _count(self) -> Count:
        ts = self._cursors.now_ms()
        return Count(await self._listing.count(), ts)
