# SPDX-License-Identifier: Apache-2.0
"""Reads what was recorded: failures, outages, and how much of the time all was well."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin.destinations.summary import (
    FailureAge,
    ages_begin_ts,
    by_age,
)
from synapse_federation_admin.failures.kinds import FAILURE_KINDS, UNKNOWN_KIND
from synapse_federation_admin.history.owners import owner_of
from synapse_federation_admin.homeserver.features import FeatureOffError
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import outages, recent_attempts, records
from synapse_federation_admin.storage.outages import Outage, Span
from synapse_federation_admin.storage.records import Recorded, RecordedFailure
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import AHEAD_MS, can_be_stored, in_pieces

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Of how many destinations one transaction reads the outages.
_NAMES = 50

_DAY_MS = 86_400_000

# How many days of availability are told.
_DAYS = 14


async def if_readable(read: Callable[[], Awaitable[T]]) -> T | None:
    """Return what was recorded; None if that cannot be read, or recording is off.

    For what is told beside other things, which do without the tables of this module;
    also to write what waits to be recorded before it is read.
    """
    try:
        return await read()
    except CancelledError:
        raise
    except FeatureOffError:
        return None
    except Exception as e:
        logger.warning("The tables of what is recorded cannot be used: %s", e)
        return None


def by_every_kind(
    failing: Mapping[FailureAge, int], known: Mapping[str, Mapping[FailureAge, int]]
) -> dict[str, dict[FailureAge, int]]:
    """Return how many destinations fail with each of FAILURE_KINDS, by age.

    And with any that a later version of this module has written.

    Args:
        failing: How many fail.
        known: Of those with a known kind, how many; the others have UNKNOWN_KIND.
    """
    unknown = {
        # The two may be counted one after the other.
        age: max(0, count - sum(of_kind[age] for of_kind in known.values()))
        for age, count in failing.items()
    }
    found = {kind: dict.fromkeys(FailureAge, 0) for kind in FAILURE_KINDS}
    return {
        **found,
        **{kind: dict(ages) for kind, ages in known.items()},
        UNKNOWN_KIND: unknown,
    }


class AvailableDay(NamedTuple):
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


class Availability(NamedTuple):
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


class HistoryStore:
    """Reads what was recorded. Every method raises what the database raises."""

    def __init__(self, homeserver: Homeserver, tables: Tables) -> None:
        self._homeserver = homeserver
        self._tables = tables

    async def failures(
        self, destinations: Sequence[str]
    ) -> dict[str, list[RecordedFailure]]:
        """Return the failures of some destinations, of each the last kind first.

        At most one for each kind. Destinations without any are left out.
        """
        names = list(filter(can_be_stored, destinations))
        if not names:
            return {}
        now_ts = self._homeserver.now_ms()
        return await self._run(
            "failures", lambda txn: records.failures_txn(txn, names, now_ts)
        )

    async def others_untrusted(self, destination: str, issuer: str) -> int:
        """Count whose servers fail because this host does not trust an issuer.

        Args:
            destination: The server that is known to; its owner does not count.
            issuer: The issuer, as it is recorded.
        """
        found = await self._run(
            "untrusted", partial(recent_attempts.untrusted_txn, issuer=issuer)
        )
        return len(set(map(owner_of, found)) - {owner_of(destination)})

    async def last_successes(self, destinations: Sequence[str]) -> dict[str, int]:
        """Return when destinations last answered well, to within five minutes.

        Those of which none is recorded are left out.
        """
        names = list(filter(can_be_stored, destinations))
        if not names:
            return {}
        now_ts = self._homeserver.now_ms()
        return await self._run(
            "successes", lambda txn: records.last_successes_txn(txn, names, now_ts)
        )

    async def recorded(self, destination: str) -> Recorded:
        """Return what is recorded of real requests to one destination."""
        failures = (await self.failures([destination])).get(destination, ())
        successes = await self.last_successes([destination])
        return Recorded(failures, successes.get(destination))

    async def outages(
        self, destination: str, before_ts: int | None, limit: int
    ) -> list[Outage]:
        """Return the outages of a destination, the newest first.

        Args:
            destination: The server name.
            before_ts: Those that began before; None: all.
            limit: The most to return.
        """
        if not can_be_stored(destination):
            return []
        found = await self._run(
            "outages",
            lambda txn: outages.select_txn(txn, destination, before_ts, limit),
        )
        now_ts = self._homeserver.now_ms()
        upto_ts = now_ts + AHEAD_MS
        # What lasts has begun, also where an earlier clock, or Synapse, says later.
        return [
            outage._replace(start_ts=now_ts) if outage.start_ts > upto_ts else outage
            for outage in found
            if max(outage.start_ts, outage.end_ts or 0) <= upto_ts
            or outage.end_ts is None
        ]

    async def recorded_since_ts(self) -> int | None:
        """Return since when outages are recorded; None if that is not known."""
        now_ts = self._homeserver.now_ms()
        return await self._run(
            "recording", partial(outages.recorded_since_txn, now_ts=now_ts)
        )

    async def availability(
        self, destinations: Sequence[str]
    ) -> dict[str, Availability]:
        """Return how much of the last 14 days some destinations were not failing."""
        names = list(filter(can_be_stored, destinations))
        recorded_ts = await self.recorded_since_ts()
        now_ts = self._homeserver.now_ms()
        since_ts = first_day_ts(now_ts)
        # Most have had no outage.
        found = dict.fromkeys(names, availability_of((), recorded_ts, now_ts))
        for some in in_pieces(names, _NAMES):
            spans = await self._run(
                "availability",
                partial(outages.spans_txn, destinations=some, since_ts=since_ts),
            )
            for name, recorded in spans.items():
                if recorded:
                    found[name] = availability_of(recorded, recorded_ts, now_ts)
        return found

    async def failing_by_kind(self, now_ms: int) -> dict[str, dict[FailureAge, int]]:
        """Return how many destinations fail for which reason, where that is known.

        Args:
            now_ms: The time at which ages are taken.

        Returns:
            By reason, how many of each age; all ages are in it.
        """
        found = await self._run(
            "failing_by_kind",
            partial(outages.count_kinds_txn, after_ts=ages_begin_ts(now_ms)),
        )
        return {kind: by_age(younger) for kind, younger in found.items()}

    async def _run(self, what: str, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._tables.run(f"federation_admin_{what}", func)
