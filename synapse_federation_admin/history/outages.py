# SPDX-License-Identifier: Apache-2.0
"""Keeps each outage of a destination: when it began, when it ended, and how.

An outage begins with a request that fails, which `recorder` writes; of one that began
before that, Synapse's row tells all, until it is cleared: then it is written here. What
fails anew within some minutes is the same outage. It ends with the last thing that made
Synapse take the destination as working again: a request that got through, a reset, or
that its row was deleted. Which of these it was, this job finds out once a minute, in
SQL, by Synapse's rows, what `recorder` has written, and the audit
(`synapse_federation_admin.storage.outage_ends`).

It looks at those of which something was written lately; every ten minutes at all. Only
the process that runs background tasks does this.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import outages
from synapse_federation_admin.storage.outage_ends import SETTLED_MS, changed_since
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql

T = TypeVar("T")

# How often it is looked what has ended, and how soon after the start; and each how many
# times at all outages: there may be many.
_EVERY_MS = 60_000
_FIRST_MS = 2000
_ALL_EACH = 10


def _read_nothing(_: LoggingTransaction) -> None:
    """Read nothing else."""


class Outages:
    """Finds out how outages begin and end."""

    def __init__(
        self,
        homeserver: Homeserver,
        tables: Tables,
        then_read_txn: Callable[[LoggingTransaction], object] = _read_nothing,
    ) -> None:
        """Look at nothing yet.

        Args:
            homeserver: Reaches Synapse.
            tables: The tables.
            then_read_txn: Reads what else is read once a minute, in the last
                transaction of each look.
        """
        self._homeserver = homeserver
        self._tables = tables
        self._then_read_txn = then_read_txn
        # Looks left until all are looked at: not in the first minute, which has enough
        # to do.
        self._left = 1
        self._has_begun = False

    def start(self) -> None:
        """Begin to look once a minute, if this process runs background tasks."""
        self._homeserver.retry_timings.before_clearing = self._begin_missing_txn
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_outages",
                _EVERY_MS,
                self._look_as_often,
                first_after_ms=_FIRST_MS,
            )

    async def _look_as_often(self) -> None:
        await self.look(at_all=self._left == 0)
        self._left = (self._left - 1) % _ALL_EACH

    async def look(self, *, at_all: bool = True) -> None:
        """Bring the outages up to date. Raises what the database raises.

        Args:
            at_all: Look at all that last, and not only at those of which something was
                written lately.
        """
        # Again and again: the tables may have been dropped.
        if at_all or not self._has_begun:
            await self._run(self._begin_recording_txn)
            self._has_begun = True
        while await self._run(partial(self._look_txn, at_all=at_all)):
            pass

    def _begin_recording_txn(self, txn: LoggingTransaction) -> None:
        outages.begin_recording_txn(txn, self._homeserver.now_ms())

    def _begin_missing_txn(
        self, txn: LoggingTransaction, destinations: Sequence[str]
    ) -> None:
        outages.begin_missing_txn(txn, destinations, self._homeserver.now_ms())

    def _look_txn(self, txn: LoggingTransaction, *, at_all: bool) -> bool:
        """Bring some outages up to date; return whether there may be more."""
        now_ts = self._homeserver.now_ms()
        lately_ts = now_ts - SETTLED_MS - 2 * _EVERY_MS
        which = Sql("TRUE") if at_all else changed_since(lately_ts)
        most = limits.OUTAGES_ENDED
        if outages.end_txn(txn, which, now_ts, most) == most:
            return True
        self._then_read_txn(txn)
        return False

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._tables.run(
            "federation_admin_outages", func, read_committed=True
        )
