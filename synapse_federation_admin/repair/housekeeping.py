# SPDX-License-Identifier: Apache-2.0
"""Keeps the module's own tables in order: what was left, and what is old, goes.

Each process makes an end of what it was doing when it ended. The one that runs
background tasks deletes, once an hour, what has been kept for long enough.
"""

import time
from functools import partial
from operator import sub

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import (
    audit as entries,
    instances,
    outages,
    records,
    run_queue,
    runs,
)
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import AHEAD_MS

# Nothing is deleted in the first hour, nor in the one in which the clock was set: one
# that is wrong by a year, say, is put right by then, and would have all that is kept
# deleted as too old, or as of after now.
_EVERY_MS = 3_600_000

# Before this code was written: a clock that says so is wrong.
_RELEASED_TS = 1_735_689_600_000

# What is pending for longer will never end: its process is gone.
_DAY_MS = 86_400_000

# The tasks that runs were in Synapse's scheduler until version 2 of the tables. It
# stumbles over those that nobody registers any more.
_OLD_TASKS = "federation_admin_reconnects"


class Housekeeping:
    """Keeps the module's own tables in order."""

    def __init__(
        self,
        homeserver: Homeserver,
        tables: Tables,
        audit: Audit,
        *,
        keep_for_ms: int,
        outages_keep_for_ms: int,
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._audit = audit
        # What is not kept, and for how long it is.
        self._expired = [
            (entries.OLD, keep_for_ms),
            (runs.OLD, keep_for_ms),
            (run_queue.LEFT, 0),
            (instances.OLD, instances.KEPT_MS),
        ]
        if tables.has_history:
            self._expired += [
                *((old, outages_keep_for_ms) for old in (*records.OLD, outages.OLD)),
                (records.OLD_ADDRESSES, _DAY_MS),
                # What a clock recorded that was ahead.
                *((beyond, -AHEAD_MS) for beyond in (*outages.BEYOND, *records.BEYOND)),
            ]
        # By the clock of the host, and by one that nobody sets.
        self._last_ms = (0.0, 0.0)

    def start(self) -> None:
        """Make an end of what this process has left at once, and begin to prune."""
        self._homeserver.every(
            "federation_admin_housekeeping",
            _EVERY_MS,
            partial(self._look_back, self._homeserver.now_ms()),
            first_after_ms=0,
        )
        if self._homeserver.runs_background_tasks:
            self._last_ms = self._clocks_ms()
            self._homeserver.every(
                "federation_admin_prune",
                _EVERY_MS,
                self._prune_if_sure,
                first_after_ms=_EVERY_MS,
            )

    async def _look_back(self, started_ts: int) -> None:
        # An end of what this process was doing when it ended, if it was.
        own = self._homeserver.instance_name
        await self._tables.run(
            "federation_admin_housekeeping",
            lambda txn: self._audit.interrupt_txn(txn, started_ts, own),
        )
        if self._homeserver.runs_background_tasks:
            # Again and again: a process of an earlier version may still make one.
            await self._homeserver.delete_tasks(_OLD_TASKS)
            if not self._tables.has_history:
                await self._homeserver.run_db_interaction(
                    "federation_admin_housekeeping",
                    outages.end_recording_txn,
                )

    def _clocks_ms(self) -> tuple[float, float]:
        return self._homeserver.now_ms(), time.monotonic() * 1000

    async def _prune_if_sure(self) -> None:
        """Prune, unless the clock was set since the last round: then it is too soon."""
        before_ms, self._last_ms = self._last_ms, self._clocks_ms()
        by_host_ms, really_ms = map(sub, self._last_ms, before_ms)
        is_steady = abs(by_host_ms - really_ms) < AHEAD_MS
        if is_steady and self._last_ms[0] > _RELEASED_TS:
            await self.prune()

    async def prune(self) -> None:
        """Delete what has been kept for long enough, in small pieces.

        Raises what the database raises.
        """
        now_ts = self._homeserver.now_ms()
        await self._tables.run(
            "federation_admin_housekeeping",
            lambda txn: self._audit.interrupt_txn(txn, now_ts - _DAY_MS),
        )
        for expired, keep_for_ms in self._expired:
            await self._tables.delete(expired, now_ts - keep_for_ms)
