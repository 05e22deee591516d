# SPDX-License-Identifier: Apache-2.0
"""How much of the last days a destination was not failing. Pure."""

from collections.abc import Iterable
from datetime import datetime, timezone
from functools import lru_cache

import attr

from synapse_federation_admin.storage.outages import Span

_DAY_MS = 86_400_000

# How many days of availability are told.
_DAYS = 14


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AvailableDay:
    """How much of one day, in UTC, a destination was not failing.

    Attributes:
        begin_ts: When the day begins.
        share: From 0 to 1, of the part of the day that is recorded; None if none is.
    """

    begin_ts: int
    share: float | None

    @property
    def date(self) -> str:
        """The day, in UTC: `2026-11-26`."""
        return _date(self.begin_ts)


@lru_cache(maxsize=32)
def _date(ts: int) -> str:
    return datetime.fromtimestamp(ts / 1000, timezone.utc).date().isoformat()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Availability:
    """How much of the last 14 days a destination was not failing.

    Attributes:
        since_ts: Since when that is recorded, within these days; None if it is not.
        down_since_ts: When the outage began that lasts; None if none does. One lasts
            until a request gets through, also where the backoff was cleared before.
        share: From 0 to 1, of the time that is recorded; None if none is.
        days: Each day, the oldest first, the present one last.
    """

    since_ts: int | None
    down_since_ts: int | None
    share: float | None
    days: tuple[AvailableDay, ...]


def first_day_ts(now_ts: int) -> int:
    """Return when the first of the days begins that are told."""
    return now_ts - now_ts % _DAY_MS - (_DAYS - 1) * _DAY_MS


def availability_of(
    spans: Iterable[Span], since_ts: int | None, now_ts: int
) -> Availability:
    """Return the availability of a destination.

    Args:
        spans: Its outages that had not ended when the first day began.
        since_ts: Since when outages are recorded; None if they are not.
        now_ts: The time.
    """
    begin_ts = first_day_ts(now_ts)
    first_ts = max(begin_ts, now_ts if since_ts is None else since_ts)
    # For how long it was failing on each day, in ms.
    down = [0] * _DAYS
    down_since_ts = None
    for start_ts, end_ts, up_ms in spans:
        if end_ts is None:
            down_since_ts = min(start_ts, now_ts)
        upto_ts = min(now_ts, now_ts if end_ts is None else end_ts)
        from_ts = max(start_ts, first_ts)
        # When in it that was is not kept.
        share = 1 - up_ms / max(upto_ts - start_ts, up_ms, 1)
        while from_ts < upto_ts:
            day = (from_ts - begin_ts) // _DAY_MS
            next_ts = min(begin_ts + (day + 1) * _DAY_MS, upto_ts)
            down[day] += int((next_ts - from_ts) * share)
            from_ts = next_ts
    begins = [begin_ts + day * _DAY_MS for day in range(_DAYS)]
    recorded = [
        max(0, min(begin_ts + _DAY_MS, now_ts) - max(begin_ts, first_ts))
        for begin_ts in begins
    ]
    return Availability(
        since_ts=None if since_ts is None else first_ts,
        down_since_ts=down_since_ts,
        share=_share(sum(recorded), sum(down)),
        days=tuple(map(AvailableDay, begins, map(_share, recorded, down))),
    )


def _share(recorded_ms: int, down_ms: int) -> float | None:
    if not recorded_ms:
        return None
    # Cut, not rounded: what was down for a second was not always up.
    return int(max(0, recorded_ms - down_ms) * 10_000 / recorded_ms) / 10_000
