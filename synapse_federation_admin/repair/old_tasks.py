# SPDX-License-Identifier: Apache-2.0
"""Removes what earlier versions of this module left in Synapse's task scheduler.

Until version 2 of the tables, runs were tasks of Synapse's scheduler, which stumbles
over tasks that nobody registers any more. A process of that version may make one for as
long as it lives, so they are looked for again for a day.
"""

import logging

from twisted.internet.defer import CancelledError

from synapse_federation_admin.homeserver.homeserver import Homeserver

logger = logging.getLogger(__name__)

_ACTION = "federation_admin_reconnects"

_FOR_MS = 86_400_000
_LOOK_EVERY_MS = 60_000
_FIRST_LOOK_MS = 1000


def keep_deleting_old_tasks(homeserver: Homeserver) -> None:
    """Delete them now and again, on the process that runs background tasks."""
    until_ts = homeserver.now_ms() + _FOR_MS

    async def delete() -> None:
        nonlocal until_ts
        if homeserver.now_ms() >= until_ts:
            return
        try:
            await homeserver.delete_tasks(_ACTION)
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception as e:
            if not homeserver.is_database_away(e):
                # Synapse keeps its tasks elsewhere by now.
                until_ts = 0
                logger.warning("Cannot delete old tasks of this module: %s", e)

    if homeserver.runs_background_tasks:
        homeserver.every(
            "federation_admin_old_tasks",
            _LOOK_EVERY_MS,
            delete,
            first_after_ms=_FIRST_LOOK_MS,
        )
