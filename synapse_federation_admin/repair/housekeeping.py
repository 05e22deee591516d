# SPDX-License-Identifier: Apache-2.0
"""Keeps the module's own tables in order: what was left, and what is old, goes.

Each process makes an end of what it was doing when it ended. The one that runs
background tasks deletes, once an hour, what has been kept for long enough.
"""

from collections.abc import Callable
from functools import partial

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import instances, outages, records, run_queue
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.runs import RunStore
from synapse_federation_admin.storage.schema import Tables

# Nothing is deleted in the first hour: a clock that is ahead at start, by a year say,
# is put right by then, and would have all that is kept deleted as too old.
_EVERY_MS = 3_600_000

# What is pending for longer will never end: its process is gone.
_DAY_MS = 86_400_000

# The tasks that runs were in Synapse's scheduler until version 2 of the tables. It
# stumbles over those that nobody registers any more.
_OLD_TASKS = "federation_admin_reconnects"

# Deletes rows of before a time, at most so many, and returns how many.
_PruneTxn = Callable[..., int]


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
        self._keep_for_ms = keep_for_ms
        self._of_history: tuple[tuple[_PruneTxn, int], ...] = (
            (records.prune_txn, outages_keep_for_ms),
            (records.prune_addresses_txn, _DAY_MS),
            (outages.prune_txn, outages_keep_for_ms),
        )

    def start(self) -> None:
        """Make an end of what this process has left at once, and begin to prune."""
        self._homeserver.every(
            "federation_admin_housekeeping",
            _EVERY_MS,
            partial(self._look_back, self._homeserver.now_ms()),
            first_after_ms=0,
        )
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_prune",
                _EVERY_MS,
                self.prune,
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

    async def prune(self) -> None:
        """Delete what has been kept for long enough, in small pieces.

        Raises what the database raises.
        """
        now_ts = self._homeserver.now_ms()
        await self._tables.run(
            "federation_admin_housekeeping",
            lambda txn: self._audit.interrupt_txn(txn, now_ts - _DAY_MS),
        )
        for prune_txn, keep_for_ms in (
            (self._audit.prune_txn, self._keep_for_ms),
            (RunStore.prune_txn, self._keep_for_ms),
            (run_queue.prune_txn, 0),
            (instances.prune_txn, instances.KEPT_MS),
            *(self._of_history if self._tables.has_history else ()),
        ):
            await self._prune(prune_txn, now_ts - keep_for_ms)

    async def prune_runs(self) -> None:
        """Delete what ended runs have not done. Raises what the database raises."""
        await self._prune(run_queue.prune_txn, 0)

    async def _prune(self, prune_txn: _PruneTxn, before_ts: int) -> None:
        """Delete old rows of a table, as its owner does it, some at a time."""
        prune_some_txn = partial(
            prune_txn, before_ts=before_ts, limit=limits.ROWS_PRUNED
        )
        deleted = limits.ROWS_PRUNED
        while deleted == limits.ROWS_PRUNED:
            deleted = await self._tables.run("federation_admin_prune", prune_some_txn)
