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

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import outages
from synapse_federation_admin.storage.outage_ends import changed_since
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql

# How often it is looked what has ended, and how soon after the start; and how often at
# all outages, as there may be many: not in the first minute, which has enough to do.
_EVERY_MS = 60_000
_FIRST_MS = 2000
_ALL_EVERY_MS = 600_000


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

    def start(self) -> None:
        """Begin to look once a minute, if this process runs background tasks."""
        self._homeserver.retry_timings.before_clearing = self._begin_missing_txn
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_outages",
                _EVERY_MS,
                partial(self.look, at_all=False),
                first_after_ms=_FIRST_MS,
            )
            self._homeserver.every(
                "federation_admin_all_outages",
                _ALL_EVERY_MS,
                self.look,
                first_after_ms=_EVERY_MS,
            )

    async def look(self, *, at_all: bool = True) -> None:
        """Bring the outages up to date. Raises what the database raises.

        Args:
            at_all: Look at all that last, and not only at those of which something was
                written lately.
        """
        look_txn = partial(self._look_txn, at_all=at_all)
        while await self._tables.run(
            "federation_admin_outages", look_txn, read_committed=True
        ):
            pass

    def _begin_missing_txn(
        self, txn: LoggingTransaction, destinations: Sequence[str]
    ) -> None:
        outages.begin_missing_txn(txn, destinations, self._homeserver.now_ms())

    def _look_txn(self, txn: LoggingTransaction, *, at_all: bool) -> bool:
        """Bring some outages up to date; return whether there may be more."""
        now_ts = self._homeserver.now_ms()
        # Again and again: the tables may have been dropped.
        outages.begin_recording_txn(txn, now_ts)
        which = Sql("TRUE") if at_all else changed_since(now_ts - 3 * _EVERY_MS)
        most = limits.OUTAGES_ENDED
        if outages.end_txn(txn, which, now_ts, most) == most:
            return True
        self._then_read_txn(txn)
        return False
