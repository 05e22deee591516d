# SPDX-License-Identifier: Apache-2.0
"""Finds out which destinations were tried lately, and what those that fail share."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.history.correlation import Correlation, correlate
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import outages, records
from synapse_federation_admin.storage.recent_attempts import (
    not_looked_up_txn,
    recent_attempts_txn,
)
from synapse_federation_admin.storage.schema import Tables

_HOUR_MS = 3_600_000
_LATELY_MS = 900_000

# If so many destinations began to fail within the hour, it is worth to look where they
# lead; how often, and how long that is good for.
_WORTH_LOOKING = 5
_LOOK_EVERY_MS = 60_000
_FIRST_MS = 4000
_LOOK_AGAIN_MS = 6 * _HOUR_MS

# How old what decides on that may be: it is read once a minute (`outages`).
_READ_WITHIN_MS = 90_000

# For how long a server has to have answered to be known for long: a day; while less is
# recorded than four, a quarter of that.
_KNOWN_MS = 24 * _HOUR_MS
_KNOWN_SHARE = 4

# Finds the addresses of destinations; those of which there are none are left out.
FindAddresses = Callable[[Sequence[str]], Awaitable[dict[str, list[str]]]]


class RecentAttemptsStore:
    """Knows what was tried lately. Every method raises what the database raises."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, find_addresses: FindAddresses
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._find_addresses = find_addresses
        self._told = Costly(
            homeserver, "federation_admin_outlook", self._correlation, waits_always=True
        )
        # What was read last, and when.
        self._latest: tuple[int, Correlation] | None = None

    def start(self) -> None:
        """Begin to look where servers lead that began to fail together.

        If this process runs background tasks.
        """
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_addresses",
                _LOOK_EVERY_MS,
                partial(self.look_up, _READ_WITHIN_MS),
                first_after_ms=_FIRST_MS,
            )

    async def correlation(self, max_age_ms: int = 0) -> Correlation:
        """Tell whether servers fail together; once for all who ask at the same time.

        Where reading it takes long, what was read in the last ten seconds is told.

        Args:
            max_age_ms: What was read before is good enough if it is no older.
        """
        now_ts = self._homeserver.now_ms()
        if self._latest and now_ts - max_age_ms < self._latest[0] <= now_ts:
            return self._latest[1]
        found = await self._told.get()
        assert found is not None
        return found

    async def _correlation(self) -> Correlation:
        return await self._tables.run("federation_admin_outlook", self.correlation_txn)

    def correlation_txn(self, txn: LoggingTransaction) -> Correlation:
        """Tell whether servers fail together, and keep that for who asks next."""
        now_ts = self._homeserver.now_ms()
        known_ms = _known_ms(txn, now_ts)
        hour, lately = (
            recent_attempts_txn(txn, window_ms, known_ms, now_ts)
            for window_ms in (_HOUR_MS, _LATELY_MS)
        )
        found = correlate(hour, lately)
        self._latest = now_ts, found
        return found

    async def look_up(self, max_age_ms: int = 0) -> None:
        """Find out where destinations lead that began to fail together.

        On the process that runs background tasks, now and then.

        Args:
            max_age_ms: How old it may be whether they did.
        """
        now_ts = self._homeserver.now_ms()
        correlation = await self.correlation(max_age_ms)
        if correlation.last_hour.began < _WORTH_LOOKING:
            return

        def not_looked_up(txn: LoggingTransaction) -> list[str]:
            return not_looked_up_txn(
                txn,
                since_ts=now_ts - _HOUR_MS,
                known_ms=_known_ms(txn, now_ts),
                looked_ts=now_ts - _LOOK_AGAIN_MS,
                limit=limits.CORRELATED_SERVERS,
            )

        names = await self._tables.run("federation_admin_addresses", not_looked_up)
        if not names:
            return
        found = await self._find_addresses(names)
        await self._tables.run(
            "federation_admin_addresses",
            partial(
                records.write_addresses_txn,
                found={name: found.get(name, []) for name in names},
                looked_ts=now_ts,
            ),
        )


def _known_ms(txn: LoggingTransaction, now_ts: int) -> int:
    """Return for how long a server has to have answered to be known for long."""
    since_ts = outages.recorded_since_txn(txn, now_ts)
    if since_ts is None:
        return _KNOWN_MS
    return min(_KNOWN_MS, max(0, now_ts - since_ts) // _KNOWN_SHARE)
