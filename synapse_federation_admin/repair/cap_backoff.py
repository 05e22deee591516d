# SPDX-License-Identifier: Apache-2.0
"""Shortens backoffs that are longer than what the operator wants by now.

`destination_max_retry_interval` in homeserver.yaml bounds those that Synapse stores
from then on; it does not touch those that are stored already.
"""

from collections.abc import Sequence
from functools import partial

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.runner import Action
from synapse_federation_admin.storage.run_queue import Job
from synapse_federation_admin.storage.sql import FAILING, FITS, Sql, any_of
from synapse_federation_admin.storage.values import Run, RunResult

# Between two transactions, so that others get their turn.
_PAUSE_MS = 5

_SAMPLE = 10

# The outcomes: of one that is not longer any more, the latter.
_CAPPED = "capped"
_UNCHANGED = "unchanged"

# Of the table `destinations`, with one parameter.
_LONGER = f"{FAILING} AND retry_interval > ?"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class CapBackoff(Action):
    """The action `cap_backoff`."""

    name = "cap_backoff"
    outcomes = (_CAPPED, _UNCHANGED)
    options = frozenset({"max_retry_interval_ms"})

    _homeserver: Homeserver

    async def preview(self, max_retry_interval_ms: int) -> tuple[int, list[str]]:
        """Return how many destinations have a longer backoff, and some of them."""

        def preview_txn(txn: LoggingTransaction) -> tuple[int, list[str]]:
            longer = f"FROM destinations WHERE {_LONGER} AND {FITS}"
            args = (max_retry_interval_ms,)
            txn.execute(f"SELECT COUNT(*) {longer}", args)
            ((count,),) = txn.fetchall()
            txn.execute(
                f"SELECT destination {longer} ORDER BY destination LIMIT {_SAMPLE}",
                args,
            )
            return int(count), [name for (name,) in txn.fetchall()]

        return await self._homeserver.run_db_interaction(
            "federation_admin_cap_backoff", preview_txn
        )

    def condition(self, run: Run) -> Sql:
        """Queue those whose backoff is longer."""
        return Sql(_LONGER, (run.options["max_retry_interval_ms"],))

    async def work(self, job: Job) -> None:
        """Shorten the backoffs of what is in the queue; see `Action.work`."""
        cap_txn = partial(
            self._cap_txn, longest_ms=job.run.options["max_retry_interval_ms"]
        )
        # Those that are done leave the queue.
        while queued := await job.next(None, limits.BACKOFFS_CAPPED):
            now_ts = self._homeserver.now_ms()
            results = [
                RunResult(one.destination, _UNCHANGED, now_ts, now_ts) for one in queued
            ]
            if not await job.record(results, cap_txn):
                return
            await self._homeserver.sleep_ms(_PAUSE_MS)

    def _cap_txn(
        self, txn: LoggingTransaction, results: Sequence[RunResult], longest_ms: int
    ) -> Sequence[RunResult]:
        names = [result.destination for result in results]
        these = any_of("destination", names)
        which, args = f"{these.text} AND {_LONGER}", (*these.args, longest_ms)
        lock = "ORDER BY destination FOR UPDATE" if self._homeserver.is_postgres else ""
        txn.execute(
            "SELECT destination, retry_interval FROM destinations "  # noqa: S608
            f"WHERE {which} {lock}",
            args,
        )
        before = dict(txn.fetchall())
        if not before:
            return results
        txn.execute(
            f"UPDATE destinations SET retry_interval = ? WHERE {which}",  # noqa: S608
            (longest_ms, *args),
        )
        self._homeserver.retry_timings.invalidate_txn(txn, list(before))
        return [
            attr.evolve(
                result,
                outcome=_CAPPED,
                details={"retry_interval": before[result.destination]},
            )
            if result.destination in before
            else result
            for result in results
        ]
