# SPDX-License-Identifier: Apache-2.0
"""Pagination as v1 speaks of it: by offset, with the number of all rows.

An offset says nothing of where the page before it ended once rows have come or gone,
and the database must count its way to it. So the end of each page is remembered for a
while, and the page that follows begins there: within a walk no row is shown twice, and
none that stands there all along is skipped.
"""

from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

import attr

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.newest import keep_newest

T = TypeVar("T")
P = TypeVar("P")

# How long cursors are remembered.
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
class Cursor(Generic[P]):
    """Where a page begins.

    Attributes:
        position: The place behind the last row of the one before; None: at the start.
        total: How many rows were counted for the walk; None: they are to be, anew.
        ts: When they were.
    """

    position: P | None
    total: int | None
    ts: int


class Cursors(Generic[P]):
    """Remembers where pages begin, within a bound of number and of age."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self._cursors: dict[Hashable, Cursor[P]] = {}

    def remember(self, page: Hashable, cursor: Cursor[P]) -> None:
        """Remember where a page begins: where the one before it ended."""
        keep_newest(self._cursors, page, cursor, limits.CURSORS)

    def find(self, page: Hashable) -> Cursor[P] | None:
        """Return where a page begins.

        A count serves once, and not for long: who asks for a page again wants to see
        what is there now.
        """
        cursor = self._cursors.get(page)
        age_ms = self.now_ms() - cursor.ts if cursor else 0
        if cursor is None or age_ms > _MAX_AGE_MS:
            return None
        uncounted = attr.evolve(cursor, total=None)
        self._cursors[page] = uncounted
        return uncounted if age_ms > _MAX_COUNT_AGE_MS else cursor


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
        if self._limit == 0:
            self.total = await self._listing.count()
            return
        begin = await self._begin()
        if begin is None:
            return
        left = self._limit
        last: T | None = None
        # One more than is wanted tells whether there are more.
        pieces = self._listing.pieces(begin.position, left + 1)
        async with aclosing(pieces):
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
        total, ts = begin.total, begin.ts
        if total is None:
            total, ts = await self._count()
        self.total = max(total, self.end + 1)
        assert last is not None
        self._cursors.remember(
            (*self._walk, self.end), Cursor(self._listing.position_of(last), total, ts)
        )

    async def _begin(self) -> Cursor[P] | None:
        """Return where this page begins; None, and have a total, if the list is over.

        It ends before; or rows have gone since they were counted.
        """
        if not self.end:
            return Cursor(None, None, 0)
        cursor = self._cursors.find((*self._walk, self.end))
        if cursor is not None:
            return cursor
        total, ts = await self._count()
        position = None
        if self.end < total:
            position = await self._listing.position_at(self.end, total)
        if position is None:
            self.total = min(total, self.end)
            return None
        return Cursor(position, total, ts)

    async def _count(self) -> tuple[int, int]:
        """Count all rows; return how many there are, and when that was."""
        ts = self._cursors.now_ms()
        return await self._listing.count(), ts
