# SPDX-License-Identifier: Apache-2.0
"""Removes what earlier versions of this module left in Synapse's task scheduler.

Until version 2 of the tables, runs were tasks of Synapse's scheduler, which stumbles
over tasks that nobody registers any more. A process of that version may make one for as
long as it lives, so they are looked for again and again.
"""

import logging

from twisted.internet.defer import CancelledError

from synapse_federation_admin.homeserver.homeserver import Homeserver

logger = logging.getLogger(__name__)

_ACTION = "federation_admin_reconnects"

_LOOK_EVERY_MS = 600_000
_FIRST_LOOK_MS = 1000


def keep_deleting_old_tasks(homeserver: Homeserver) -> None:
    """Delete them now and again, on the process that runs background tasks."""
    has_said = False

    async def look() -> None:
        nonlocal has_said
        try:
            await homeserver.delete_tasks(_ACTION)
        except CancelledError:
            raise
        except Exception as e:
            if not has_said:
                has_said = True
                logger.warning("Cannot delete old tasks of Synapse's scheduler: %s", e)

    if homeserver.runs_background_tasks:
        homeserver.every(
            "federation_admin_old_tasks",
            _LOOK_EVERY_MS,
            look,
            first_after_ms=_FIRST_LOOK_MS,
        )
