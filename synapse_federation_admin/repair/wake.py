# SPDX-License-Identifier: Apache-2.0
"""Wakes whoever sends to a destination, in whichever process that is."""

import logging
from collections.abc import Sequence

from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.background import Send
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.newest import keep_newest
from synapse_federation_admin.storage.values import Told

logger = logging.getLogger(__name__)

# How long after the signal those processes are woken that do not have this version of
# the module. They have heard by then that the retry timings are cleared.
_OTHERS_AFTER_MS = 1000


async def tell_all(homeserver: Homeserver, send: Send, names: Sequence[str]) -> Told:
    """Send a signal about some destinations; return which processes were told."""
    own_name, others = homeserver.instance_name, homeserver.other_instances
    error = None
    try:
        await send(*names)
    except CancelledError:
        # Synapse is shutting down.
        raise
    except Exception as e:
        logger.warning("Cannot tell other processes: %s", e)
        error = f"The database failed: only this process ({own_name}) was told"
    if homeserver.has_other_processes and not homeserver.can_tell_others:
        error = f"Not connected to Redis: only this process ({own_name}) was told"
    if error:
        return Told((own_name,), tuple(others), error)
    return Told((own_name, *others))


class Wake:
    """Has every process try destinations that may be up again.

    Attributes:
        woken: The names of those for whom a transaction of this process's has not
            ended since they were woken, the newest last.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        # Those woken in this process of which it is not known yet what comes of it.
        self.woken: dict[str, bool] = {}
        self._send = homeserver.signal("wake", self._wake)

    async def everywhere(self, names: Sequence[str]) -> Told:
        """Wake this process at once, and then the others.

        A sender asks its cache whether a destination is in backoff. The signal travels
        behind the invalidation of that cache, in one stream: who is woken knows that
        the retry timings have been cleared.

        Returns:
            Who was told. Those that could not be learn of it when they can again.
        """
        told = await tell_all(self._homeserver, self._send, names)
        if self._homeserver.has_other_processes:
            self._homeserver.run_in_background(
                "federation_admin_wake", self._wake_others, names
            )
        return told

    async def _wake_others(self, names: Sequence[str]) -> None:
        await self._homeserver.sleep_ms(_OTHERS_AFTER_MS)
        for name in names:
            self._homeserver.wake_elsewhere(name)

    def _wake(self, *names: str) -> None:
        self._homeserver.look_for_events()
        for name in names:
            keep_newest(self.woken, name, True, limits.WOKEN)
            self._homeserver.wake(name)
