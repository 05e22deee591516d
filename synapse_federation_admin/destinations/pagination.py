# SPDX-License-Identifier: Apache-2.0
"""Remembers where the pages ended that were handed out.

v1 speaks in offsets. An offset says nothing of where the page before it ended once rows
have come or gone, and the database must count its way to it. So the end of each page is
remembered for a while, and the page that follows begins there.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import attr

P = TypeVar("P")

# How many pages' ends are remembered, each for how many walks, and how long.
_MAX_PLACES = 2048
_MAX_WALKS = 8
_MAX_AGE_MS = 10 * 60 * 1000

# Walks that are going on at once ask for the same page within this time, in ms. Older
# ends of the same page are those of walks that were given up.
_SAME_TIME_MS = 2000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Walker:
    """Who walks through the pages of a list.

    Attributes:
        client: Who asks, as far as the request tells: equal for equal clients.
        connection: The connection on which he asks.
        limit: How many rows he asks for at a time.
    """

    client: Hashable
    connection: str
    limit: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class PageEnd(Generic[P]):
    """Where a page ended.

    Attributes:
        position: What stands for the page's last row.
        total: How many rows the list had when the walk began.
    """

    position: P
    total: int


@attr.s(slots=True, auto_attribs=True)
class _Remembered(Generic[P]):
    walker: Walker
    end: PageEnd[P]
    ts: int
    is_used: bool = False


class PageEnds(Generic[P]):
    """The ends of pages, within a bound of number and of age."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._places: OrderedDict[Hashable, list[_Remembered[P]]] = OrderedDict()

    def remember(
        self, listing: Hashable, offset: int, walker: Walker, end: PageEnd[P]
    ) -> None:
        """Remember that a page ended right before an offset.

        Args:
            listing: Which list it is: its order, its direction and its filter.
            offset: The offset of the row behind the page.
            walker: To whom the page is handed.
            end: Where it ended.
        """
        place = (listing, walker.client, offset)
        walks = self._places.setdefault(place, [])
        walks.append(_Remembered(walker, end, self._now_ms()))
        del walks[:-_MAX_WALKS]
        self._places.move_to_end(place)
        if len(self._places) > _MAX_PLACES:
            self._places.popitem(last=False)

    def find(self, listing: Hashable, offset: int, walker: Walker) -> PageEnd[P] | None:
        """Return where the page before an offset ended, on this walker's walk.

        One client may be on several walks at once: then what was handed out on the same
        connection and with the same limit counts, or else with one of them the same,
        and of those that first which no page has followed yet.
        """
        oldest_ts = self._now_ms() - _MAX_AGE_MS
        walks = [
            walk
            for walk in self._places.get((listing, walker.client, offset), [])
            if walk.ts >= oldest_ts
        ]
        if not walks:
            return None
        connected = [w for w in walks if w.walker.connection == walker.connection]
        alike = [w for w in walks if w.walker.limit == walker.limit]
        both = [w for w in connected if w in alike]
        walks = both or connected or alike or walks
        found = next((walk for walk in _latest(walks) if not walk.is_used), walks[-1])
        found.is_used = True
        return found.end


def _latest(walks: list[_Remembered[P]]) -> list[_Remembered[P]]:
    """Return those walks, oldest first, that are going on at the same time."""
    begin = len(walks) - 1
    while begin and walks[begin].ts - walks[begin - 1].ts <= _SAME_TIME_MS:
        begin -= 1
    return walks[begin:]
