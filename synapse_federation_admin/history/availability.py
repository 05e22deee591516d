# SPDX-License-Identifier: Apache-2.0
"""How much of the last days a destination was not failing. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from functools import lru_cache

import attr

from synapse_federation_admin.storage.outages import OutageSpan

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
        share: From 0 to 1, of the time that is recorded; None if none is.
        days: Each day, the oldest first, the present one last.
    """

    since_ts: int | None
    share: float | None
    days: tuple[AvailableDay, ...]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AvailabilityWindow:
    """The days that are told, in UTC; the present one is as long as it has lasted.

    Attributes:
        since_ts: Since when outages are recorded; None if they are not.
        now_ts: The time.
    """

    since_ts: int | None
    now_ts: int

    @property
    def begins(self) -> list[int]:
        """When each day begins."""
        today_ts = self.now_ts - self.now_ts % _DAY_MS
        return [today_ts - day * _DAY_MS for day in reversed(range(_DAYS))]

    @property
    def first_ts(self) -> int:
        """When the part of them begins that is recorded."""
        return max(
            self.begins[0], self.now_ts if self.since_ts is None else self.since_ts
        )

    def of(
        self, destinations: Sequence[str], spans: Iterable[OutageSpan]
    ) -> dict[str, Availability]:
        """Return the availability of destinations, by those of their outages here."""
        begins, first_ts = self.begins, self.first_ts
        # For how long each was failing on each day, in ms.
        down = {name: [0] * len(begins) for name in destinations}
        for span in spans:
            upto_ts = self.now_ts if span.end_ts is None else span.end_ts
            upto_ts = min(self.now_ts, upto_ts)
            from_ts = max(span.start_ts, first_ts)
            while from_ts < upto_ts:
                day = (from_ts - begins[0]) // _DAY_MS
                next_ts = min(begins[0] + (day + 1) * _DAY_MS, upto_ts)
                down[span.destination][day] += next_ts - from_ts
                from_ts = next_ts
        recorded = [
            max(0, min(begin_ts + _DAY_MS, self.now_ts) - max(begin_ts, first_ts))
            for begin_ts in begins
        ]
        return {
            name: Availability(
                since_ts=None if self.since_ts is None else first_ts,
                share=_share(sum(recorded), sum(down[name])),
                days=tuple(
                    AvailableDay(*day)
                    for day in zip(
                        begins, map(_share, recorded, down[name]), strict=True
                    )
                ),
            )
            for name in destinations
        }


def _share(recorded_ms: int, down_ms: int) -> float | None:
    if not recorded_ms:
        return None
    # Cut, not rounded: what was down for a second was not always up.
    return int(max(0, recorded_ms - down_ms) * 10_000 / recorded_ms) / 10_000
