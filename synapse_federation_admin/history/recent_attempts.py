# SPDX-License-Identifier: Apache-2.0
"""Finds out which destinations were tried lately, and what those that fail share."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from synapse_federation_admin import limits
from synapse_federation_admin.history.correlation import Correlation, correlate
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import records
from synapse_federation_admin.storage.recent_attempts import (
    RecentAttempts,
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

    def start(self) -> None:
        """Begin to look where servers lead that began to fail together.

        If this process runs background tasks.
        """
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_addresses",
                _LOOK_EVERY_MS,
                self.look_up,
                first_after_ms=_FIRST_MS,
            )

    async def correlation(self) -> Correlation:
        """Tell whether servers fail together; once for all who ask at the same time."""
        return await self._homeserver.single_flight.run(
            "federation_admin_outlook", (), self._correlation
        )

    async def _correlation(self) -> Correlation:
        return correlate(await self._tried(_HOUR_MS), await self._tried(_LATELY_MS))

    async def _tried(self, window_ms: int) -> RecentAttempts:
        return await self._tables.run(
            "federation_admin_outlook",
            partial(
                recent_attempts_txn,
                window_ms=window_ms,
                now_ts=self._homeserver.now_ms(),
                is_postgres=self._homeserver.is_postgres,
            ),
        )

    async def look_up(self) -> None:
        """Find out where destinations lead that began to fail together.

        On the process that runs background tasks, now and then.
        """
        now_ts = self._homeserver.now_ms()
        if (await self._tried(_HOUR_MS)).began < _WORTH_LOOKING:
            return
        names = await self._tables.run(
            "federation_admin_addresses",
            partial(
                not_looked_up_txn,
                since_ts=now_ts - _HOUR_MS,
                looked_ts=now_ts - _LOOK_AGAIN_MS,
                limit=limits.CORRELATED_SERVERS,
            ),
        )
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
