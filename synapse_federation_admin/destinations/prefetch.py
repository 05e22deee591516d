# SPDX-License-Identifier: Apache-2.0
"""Prefetches: the next rows of a long list come while the last are used.

Without it, the database rests while rows are written, and the other way round.
"""

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable

from synapse.module_api import make_deferred_yieldable, run_in_background
from twisted.internet.defer import Deferred

from synapse_federation_admin.destinations.values import Destination, Position

# Reads rows of a list from behind a position on, at most so many, and tells the
# position behind them; None if there are no more.
Fetch = Callable[
    [Position | None, int], Awaitable[tuple[list[Destination], Position | None]]
]


async def prefetch(
    fetch: Fetch, after: Position | None, limit: int | None
) -> AsyncGenerator[list[Destination], None]:
    """Yield what a function fetches, and have it fetch the next while that is used."""
    left = limit if limit is not None else sys.maxsize
    pending: Deferred[tuple[list[Destination], Position | None]] | None
    pending = run_in_background(fetch, after, left) if left else None
    try:
        while pending is not None:
            rows, after = await make_deferred_yieldable(pending)
            pending = None
            left -= len(rows)
            if after is not None and left > 0:
                pending = run_in_background(fetch, after, left)
            if rows:
                yield rows
    finally:
        if pending is not None:
            # Nobody wants it any more. It ends before the request does.
            pending.addErrback(lambda _: None)
            await make_deferred_yieldable(pending)
