# SPDX-License-Identifier: Apache-2.0
"""Keeps each outage of a destination: when it began, when it ended, and how.

An outage begins with a request that fails, which `recorder` writes. It ends with the
last thing that made Synapse take the destination as working again: a request that got
through, a reset, or that its row was deleted. Which of these it was, this job finds out
once a minute, in SQL, by Synapse's rows, what `recorder` has written, and the audit
(`synapse_federation_admin.storage.outage_ends`). It also begins the outages that
`recorder` does not: at once that of what fails anew, noted while the outage before it
seemed to last; at the start, and then every five minutes, those of what was failing
before, and of what a killed process could not write.

Only the process that runs background tasks does this.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import outages
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql, marks

T = TypeVar("T")

# How often it is looked what has ended, and how soon after the start; and each how many
# times what has begun: for that there is the recorder, and the table is large.
_EVERY_MS = 60_000
_FIRST_MS = 2000
_BEGIN_EACH = 5

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
        # Looks left until those that nobody has begun are looked for.
        self._left = 0

    def start(self) -> None:
        """Begin to look once a minute, if this process runs background tasks."""
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_outages",
                _EVERY_MS,
                self._look_as_often,
                first_after_ms=_FIRST_MS,
            )

    async def _look_as_often(self) -> None:
        await self.look(begins=self._left == 0)
        self._left = (self._left or _BEGIN_EACH) - 1

    async def look(self, *, begins: bool = True) -> None:
        """Bring the outages up to date. Raises what the database raises.

        Args:
            begins: Look for those that nobody has begun, too.
        """
        now_ts = self._homeserver.now_ms()
        most = (
            limits.OUTAGES_BEGUN
            if self._homeserver.is_postgres
            else limits.OUTAGES_BEGUN_ON_SQLITE
        )
        await self._all(
            limits.OUTAGES_REOPENED, outages.reopen_txn, now_ts - _IN_VAIN_MS
        )
        await self._all(limits.OUTAGES_ENDED, self._end_txn, Sql("TRUE"))
        # What fails anew was noted while the outage before it seemed to last.
        ended_since_ts = now_ts - self._settled_ms - 2 * _EVERY_MS
        await self._all(most, outages.begin_missing_txn, ended_since_ts)
        if begins:
            await self._run(partial(outages.begin_recording_txn, now_ts=now_ts))
            await self._all(most, outages.begin_missing_txn, None)

    def end_txn(self, txn: LoggingTransaction, destinations: Sequence[str]) -> None:
        """End those outages of some destinations that are over, in a transaction.

        For before what tells so is deleted. The tables have to be there.
        """
        which = Sql(f"o.destination IN ({marks(destinations)})", tuple(destinations))
        self._end_txn(txn, which, len(destinations))

    def _end_txn(self, txn: LoggingTransaction, which: Sql, limit: int) -> int:
        now_ts = self._homeserver.now_ms()
        settled_ts = now_ts - self._settled_ms
        return outages.end_txn(txn, which, limit, now_ts, settled_ts)

    async def _all(self, most: int, func: Callable[..., int], *args: object) -> None:
        """Run a function until it changes less than it may at once."""
        while await self._run(lambda txn: func(txn, *args, most)) == most:
            pass

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._tables.run(
            "federation_admin_outages", func, read_committed=True
        )
