# SPDX-License-Identifier: Apache-2.0
"""What has changed lately, for those who look at it live.

It is read only when somebody asks, and once for all who ask within some seconds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import outages, records
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.outages import CameBack
from synapse_federation_admin.storage.records import Failed
from synapse_federation_admin.storage.runs import RunStore
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.values import AuditEntry, AuditFilter, Run

# For how long what was read is told to others, and how far back it goes.
_KEEP_MS = 5000
_WINDOW_MS = 600_000


class Changes(NamedTuple):
    """What has changed.

    Attributes:
        as_of_ts: When it was read.
        is_complete: Whether that is all; False if there is more than is told, or if it
            goes further back.
        failed: To which real requests have failed.
        came_back: Whose outage has ended.
        runs: The runs that have begun, gone on or ended, as they are now.
        audit: The entries of the audit that are new or have ended.
    """

    as_of_ts: int
    is_complete: bool
    failed: tuple[Failed, ...] = ()
    came_back: tuple[CameBack, ...] = ()
    runs: tuple[Run, ...] = ()
    audit: tuple[AuditEntry, ...] = ()


class ChangesStore:
    """Tells what has changed. Every method raises what the database raises."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, audit: Audit, runs: RunStore
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._audit = audit
        self._runs = runs
        self._found = Costly(
            homeserver,
            "federation_admin_changes",
            self._refresh,
            keep_ms=_KEEP_MS,
            waits_always=True,
        )
        # When each change was first read: what is written late is told all the same.
        self._seen_ts: Mapping[object, int] = {}

    async def since(self, since_ts: int) -> Changes:
        """Return what was read for the first time after a time."""
        found = await self._found.get()
        assert found is not None
        seen_ts = self._seen_ts

        def new(each: object) -> bool:
            return seen_ts.get(_state_of(each), found.as_of_ts) > since_ts

        return Changes(
            found.as_of_ts,
            found.is_complete and since_ts >= found.as_of_ts - _WINDOW_MS,
            tuple(filter(new, found.failed)),
            tuple(filter(new, found.came_back)),
            tuple(filter(new, found.runs)),
            tuple(filter(new, found.audit)),
        )

    async def _refresh(self) -> Changes:
        now_ms = self._homeserver.now_ms()
        after_ts, most = now_ms - _WINDOW_MS, limits.TOLD_CHANGES
        failed: Sequence[Failed] = ()
        came_back: Sequence[CameBack] = ()
        if self._tables.has_history:
            failed, came_back = await self._tables.run(
                "federation_admin_changes",
                lambda txn: (
                    records.failed_since_txn(txn, after_ts, now_ms, most),
                    outages.ended_since_txn(txn, after_ts, now_ms, most),
                ),
            )
        audit = await self._audit.read(AuditFilter(since_ts=after_ts), None, most)
        runs = await self._runs.read(None, limits.TOLD_RUNS)
        lately = [run for run in runs if run.updated_ts > after_ts]
        states = set(map(_state_of, (*failed, *came_back, *lately, *audit)))
        self._seen_ts = {of: self._seen_ts.get(of, now_ms) for of in states}
        return Changes(
            now_ms,
            max(len(failed), len(came_back), len(audit)) < most
            and len(lately) < limits.TOLD_RUNS,
            tuple(failed),
            tuple(came_back),
            tuple(lately),
            tuple(audit),
        )


def _state_of(each: object) -> object:
    """Return what tells a change from others, and from what it was before."""
    if isinstance(each, Run):
        return each.run_id, each.updated_ts, each.status, each.done
    if isinstance(each, AuditEntry):
        return each.entry_id, each.ended_ts, each.outcome
    return each
