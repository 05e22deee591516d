# SPDX-License-Identifier: Apache-2.0
"""Keeps each outage of a destination: when it began, when it ended, and how.

An outage begins with a request that fails, which `recorder` writes; of one that began
before that, Synapse's row tells all, until it is cleared: then it is written here. It
ends with the last thing that made Synapse take the destination as working again: a
request that got through, a reset, or that its row was deleted. Which of these it was,
this job finds out once a minute, in SQL, by Synapse's rows, what `recorder` has
written, and the audit (`synapse_federation_admin.storage.outage_ends`). It also writes
at once that of what fails anew, noted while the outage before it seemed to last.

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
from synapse_federation_admin.storage.outage_ends import changed_since
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql, marks

T = TypeVar("T")

# How often it is looked what has ended, and how soon after the start; and each how many
# times at all outages: there may be many.
_EVERY_MS = 60_000
_FIRST_MS = 2000
_ALL_EACH = 10

# What a reset was followed by within this time may still turn out to have been in vain.
_IN_VAIN_MS = 86_400_000

# How much longer than the contact takes it may be until it is known whether a reset was
# of use: what comes of it is written in the background.
SETTLED_MS = 20_000


class Outages:
    """Finds out how outages begin and end."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, *, contact_timeout_ms: int
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._settled_ms = contact_timeout_ms + SETTLED_MS
        # Looks left until all are looked at: not in the first minute, which has enough
        # to do.
        self._left = 1
        self._has_begun = False

    def start(self) -> None:
        """Begin to look once a minute, if this process runs background tasks."""
        self._homeserver.retry_timings.before_clearing = self.begin_txn
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
        if not self._has_begun:
            await self._run(self._begin_recording_txn)
            self._has_begun = True
        while await self._run(partial(self._look_txn, at_all=at_all)):
            pass

    def _begin_recording_txn(self, txn: LoggingTransaction) -> None:
        outages.begin_recording_txn(txn, self._homeserver.now_ms())

    def _look_txn(self, txn: LoggingTransaction, *, at_all: bool) -> bool:
        """Bring some outages up to date; return whether there may be more."""
        now_ts = self._homeserver.now_ms()
        lately_ts = now_ts - self._settled_ms - 2 * _EVERY_MS
        which = Sql("TRUE") if at_all else changed_since(lately_ts)
        limit = limits.OUTAGES_CHANGED
        return limit in (
            outages.reopen_txn(txn, now_ts - _IN_VAIN_MS, limit),
            self._end_txn(txn, which, limit),
            # What fails anew was noted while the outage before it seemed to last.
            outages.begin_missing_txn(txn, outages.ended_since(lately_ts), limit),
        )

    def begin_txn(self, txn: LoggingTransaction, destinations: Sequence[str]) -> None:
        """Write the outages of some destinations that last, if they are not yet.

        For before the rows that tell of them are cleared. The tables have to be there.
        """
        which = Sql(f"destination IN ({marks(destinations)})", tuple(destinations))
        outages.begin_missing_txn(txn, which)

    def end_txn(self, txn: LoggingTransaction, destinations: Sequence[str]) -> None:
        """End those outages of some destinations that are over, in a transaction.

        For before what tells so is deleted. The tables have to be there.
        """
        self.begin_txn(txn, destinations)
        which = Sql(f"o.destination IN ({marks(destinations)})", tuple(destinations))
        self._end_txn(txn, which, len(destinations))

    def _end_txn(self, txn: LoggingTransaction, which: Sql, limit: int) -> int:
        now_ts = self._homeserver.now_ms()
        settled_ts = now_ts - self._settled_ms
        return outages.end_txn(txn, which, limit, now_ts, settled_ts)

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._tables.run(
            "federation_admin_outages", func, read_committed=True
        )
