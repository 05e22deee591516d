# SPDX-License-Identifier: Apache-2.0
"""Gives back since when servers fail whose reset could not be written to the audit.

What follows a reset is known by its entry: see
`synapse_federation_admin.repair.follow_up`. Where the audit cannot be written there is
none, and a reset goes on all the same: what it has to give back is then in the memory
of this process, for a day.
"""

import logging
from functools import partial

import attr
from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import Waiting, waiting_txn
from synapse_federation_admin.homeserver.homeserver import Homeserver

logger = logging.getLogger(__name__)

_LOOK_EVERY_MS = 10_000

# How often it is looked at most: for a day.
LOOKS = 86_400_000 // _LOOK_EVERY_MS


@attr.s(slots=True, auto_attribs=True)
class _Reset:
    """A reset that is in no table: since when it failed, and what waited then."""

    failure_ts: int
    waiting: Waiting
    looks_left: int


class Unwritten:
    """Knows the resets of this process that are in no table."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self._resets: dict[str, _Reset] = {}
        self._is_looking = False

    def keep(self, name: str, failure_ts: int, waiting: Waiting) -> None:
        """Give a destination back since when it fails, if it turns out to fail still.

        Args:
            name: The destination that was reset.
            failure_ts: Since when it had been failing.
            waiting: What waited for it then.
        """
        known = self._resets.get(name)
        if known is None and len(self._resets) >= limits.WOKEN:
            return
        since_ts = min(failure_ts, known.failure_ts) if known else failure_ts
        self._resets[name] = _Reset(since_ts, waiting, LOOKS)
        if not self._is_looking:
            self._is_looking = True
            self._homeserver.run_in_background(
                "federation_admin_follow_up", self._look_while_any
            )

    def works(self, name: str) -> None:
        """Forget one that has answered: it fails no more since then."""
        self._resets.pop(name, None)

    async def _look_while_any(self) -> None:
        try:
            while self._resets:
                await self._homeserver.sleep_ms(_LOOK_EVERY_MS)
                for reset in self._resets.values():
                    reset.looks_left -= 1
                try:
                    await self._look()
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception as e:
                    if self._homeserver.is_database_away(e):
                        logger.warning("The database is away after a reset: %s", e)
                    else:
                        logger.exception("Could not follow destinations after a reset")
                for name, reset in tuple(self._resets.items()):
                    if reset.looks_left <= 0:
                        del self._resets[name]
        finally:
            self._is_looking = False

    async def _look(self) -> None:
        names = tuple(self._resets)
        for begin in range(0, len(names), limits.CLEARED_LOOKED_AT):
            resets = {
                name: self._resets[name]
                for name in names[begin : begin + limits.CLEARED_LOOKED_AT]
                if name in self._resets
            }
            if not resets:
                continue
            over = await self._homeserver.run_db_interaction(
                "federation_admin_follow_up", partial(self._look_txn, resets=resets)
            )
            for name in over:
                # Unless it was reset again meanwhile.
                if self._resets.get(name) is resets[name]:
                    del self._resets[name]

    def _look_txn(self, txn: LoggingTransaction, resets: dict[str, _Reset]) -> set[str]:
        """Give back what is to be; return those of which nothing more is to come."""
        names = sorted(resets)
        timings = self._homeserver.retry_timings
        now = waiting_txn(txn, names)
        works = {name for name in names if resets[name].waiting.was_taken(now[name])}
        failing = set(timings.failing_txn(txn, names)) - works
        timings.restore_failure_ts_txn(
            txn, {name: resets[name].failure_ts for name in failing}
        )
        return works | failing
