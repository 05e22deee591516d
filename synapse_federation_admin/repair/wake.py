# SPDX-License-Identifier: Apache-2.0
"""Wakes whoever sends to a destination, in whichever process that is."""

from synapse_federation_admin.homeserver import Homeserver

# A sender on another process asks its cache whether the destination is in backoff. The
# invalidation of that cache travels through the database and arrives some ms after the
# wake-up, on a busy host some seconds; the wake-up then comes to nothing. So it is
# repeated: waking twice is harmless. These are the times in between.
_AGAIN_AFTER_MS = (50, 200, 1000, 4000, 15_000)


class Wake:
    """Has every process try a destination that may be up again."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver

    def everywhere(self, name: str) -> None:
        """Wake this process now, and the others now and some times more."""
        self._homeserver.wake(name)
        if self._homeserver.has_other_processes:
            self._homeserver.wake_elsewhere(name)
            self._homeserver.run_in_background(
                "federation_admin_wake", self._wake_again, name
            )

    async def _wake_again(self, name: str) -> None:
        for delay_ms in _AGAIN_AFTER_MS:
            await self._homeserver.sleep_ms(delay_ms)
            self._homeserver.wake_elsewhere(name)
