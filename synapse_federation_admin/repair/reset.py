# SPDX-License-Identifier: Apache-2.0
"""v1's `reset_connection`: clear the retry timings, wake, and contact."""

import logging

from synapse_federation_admin.config import FederationAdminConfig
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.models import ResetOutcome
from synapse_federation_admin.repair.contact import BackgroundContacts

logger = logging.getLogger(__name__)

# A sender on another process asks its cache whether the destination is in backoff. The
# invalidation of that cache travels through the database and arrives some ms after the
# wake-up, which then comes to nothing; so it is repeated. Waking twice is harmless.
_WAKE_AGAIN_AFTER_MS = (50, 200, 1000)


class ConnectionReset:
    """Resets the connection to a destination, one reset per destination at a time."""

    def __init__(
        self,
        config: FederationAdminConfig,
        homeserver: Homeserver,
        destinations: DestinationStore,
    ) -> None:
        self._homeserver = homeserver
        self._destinations = destinations
        self._lock = homeserver.linearizer("federation_admin_reset")
        self._contacts = (
            BackgroundContacts(homeserver, timeout_ms=config.contact_timeout_ms)
            if config.contact_on_reset
            else None
        )

    async def reset(self, name: str) -> ResetOutcome:
        """Clear a destination's retry timings and have every process try it again.

        Returns as soon as the timings are cleared; what waits for the destination, and
        the contact, go out in the background.

        Args:
            name: The destination's exact name.

        Returns:
            What came of it. Raises what the database raises, with nothing changed.
        """
        async with self._lock(name):
            destination = await self._destinations.get(name)
            if destination is None:
                return ResetOutcome.UNKNOWN_DESTINATION
            if not destination.is_failing:
                return ResetOutcome.NOT_FAILING
            await self._homeserver.clear_retry_timings(name)

        self._homeserver.wake(name)
        if self._homeserver.has_other_processes:
            self._homeserver.wake_elsewhere(name)
            self._homeserver.run_in_background(
                "federation_admin_wake", self._wake_again, name
            )
        if self._contacts is not None:
            self._contacts.start(name, failing_since_ts=destination.failure_ts)
        return ResetOutcome.RESET

    async def _wake_again(self, name: str) -> None:
        for delay_ms in _WAKE_AGAIN_AFTER_MS:
            await self._homeserver.sleep_ms(delay_ms)
            self._homeserver.wake_elsewhere(name)
