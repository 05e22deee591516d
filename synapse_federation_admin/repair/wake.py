# SPDX-License-Identifier: Apache-2.0
"""Wakes whoever sends to a destination, in whichever process that is."""

import logging
from collections import deque

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.outcomes import Told

logger = logging.getLogger(__name__)

# A sender on another process asks its cache whether the destination is in backoff. The
# invalidation of that cache travels through the database and arrives some ms after the
# wake-up, on a busy host some seconds; the wake-up then comes to nothing. So it is
# repeated, at these times after the first. Not more often than that: if the sender is
# between two attempts at one transaction, each wake-up has it try at once, and uses up
# one of its long retries, which are ten by default.
_AGAIN_AFTER_MS = (50, 250, 1000, 15_000)


class Wake:
    """Has every process try a destination that may be up again."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        # By how long after the first, whom to wake again, and when; the next one first.
        # One process of Synapse's sees to each queue that is not empty.
        self._again: dict[int, deque[tuple[int, str]]] = {
            after_ms: deque() for after_ms in _AGAIN_AFTER_MS
        }

    def everywhere(self, name: str) -> Told:
        """Wake this process now, and the others now and some times more.

        Returns:
            Who was told; what is tried again later may still reach the others.
        """
        homeserver = self._homeserver
        homeserver.wake(name)
        own_name = homeserver.instance_name
        if not homeserver.has_other_processes:
            return Told((own_name,))
        is_connected = homeserver.can_tell_others
        homeserver.wake_elsewhere(name)
        now_ts = homeserver.now_ms()
        for after_ms, queue in self._again.items():
            queue.append((now_ts + after_ms, name))
            if len(queue) == 1:
                homeserver.run_in_background(
                    "federation_admin_wake", self._wake_again, after_ms, queue
                )
        if not is_connected:
            return Told(
                (own_name,),
                tuple(homeserver.other_instances),
                f"Not connected to Redis: only this process ({own_name}) could be told",
            )
        return Told((own_name, *homeserver.other_instances))

    async def _wake_again(self, after_ms: int, queue: deque[tuple[int, str]]) -> None:
        while queue:
            due_ts, name = queue[0]
            # The system's clock may be set back.
            wait_ms = min(max(due_ts - self._homeserver.now_ms(), 0), after_ms)
            await self._homeserver.sleep_ms(wait_ms)
            try:
                self._homeserver.wake_elsewhere(name)
            except Exception:
                logger.exception("Could not wake other processes")
            queue.popleft()
