# SPDX-License-Identifier: Apache-2.0
"""v1's `reset_connection`: clear the retry timings, wake, and contact."""

from synapse_federation_admin.config import FederationAdminConfig
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.models import ResetOutcome
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.wake import Wake


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
        self._wake = Wake(homeserver)
        self._follow_up = (
            FollowUp(
                homeserver, self._wake, contact_timeout_ms=config.contact_timeout_ms
            )
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
            # Where somebody has changed the row by hand, Synapse may still be backing
            # off, as it finds in its cache.
            if not (
                destination.is_failing or await self._homeserver.is_backing_off(name)
            ):
                return ResetOutcome.NOT_FAILING
            await self._homeserver.clear_retry_timings(name)

        # A row may bear a name that is no server's, from an event or a message that was
        # addressed to one. There is nobody to be woken or contacted.
        if self._homeserver.is_server_name(name):
            self._wake.everywhere(name)
            if self._follow_up is not None:
                self._follow_up.start(
                    name,
                    failing_since_ts=destination.failure_ts,
                    delivered=destination.last_successful_stream_ordering,
                )
        return ResetOutcome.RESET
