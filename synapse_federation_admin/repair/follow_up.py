# SPDX-License-Identifier: Apache-2.0
"""Finds out what comes of destinations whose retry timings were cleared.

That they were is in the audit: an entry that is `pending` and has an `ended_ts`. It
also says since when the destination had been failing and what waited for it then. What
the sender's next real transaction meets is in Synapse's rows, whichever process that
is, and however much later:

- What waited is gone: it was taken. The entry ends as `connected`.
- The destination is failing: it was not. The entry ends, and Synapse, which writes the
  time of the new failure as `failure_ts`, gets the old one back: else "failing for 90
  days" becomes "failing for a second".

Neither is so for up to 25 minutes where Synapse goes on trying, and for longer where
nothing is sent. After a day nobody waits for it any more
(`synapse_federation_admin.repair.housekeeping`).
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import attr
from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import Waiting, waiting_txn
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.transactions import Transaction
from synapse_federation_admin.repair.contact import shown_contact
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import Audit, AuditPosition
from synapse_federation_admin.storage.audit_entry import AUDIT_PENDING, AuditEntry
from synapse_federation_admin.storage.outcomes import (
    Contact,
    ReconnectOutcome,
    Refused,
)
from synapse_federation_admin.storage.runs import RunStore

logger = logging.getLogger(__name__)

# How often to look at the rows: at first often, and then after a quarter of the time
# that has gone by since something was last cleared.
_TICK_MS = 100
_LOOK_RAREST_MS = 60_000

# How long after a failure the process that has sent may take to tell what it was.
_TOLD_WITHIN_MS = 2000


class FollowUp:
    """Ends the entries of what was cleared, and gives back `failure_ts`."""

    def __init__(
        self, homeserver: Homeserver, audit: Audit, runs: RunStore, wake: Wake
    ) -> None:
        self._homeserver = homeserver
        self._audit = audit
        self._runs = runs
        self._wake = wake
        # By their IDs, entries for whose end somebody waits; None until then.
        self._ends: dict[str, AuditEntry | None] = {}
        self._has_started = self._looking = False
        # Whether something was cleared since the last look, and for how long nothing.
        # These are counted: the clock of the host may be set.
        self._is_any = False
        self._quiet_ms = 0
        # How many transactions are being measured.
        self._measured = 0

    def start(self) -> None:
        """Go on where the process before this one has stopped."""
        if not self._has_started:
            self._has_started = True
            self._homeserver.observe_transactions(self._transaction_ended)
            self.begin()

    def begin(self) -> None:
        """Look at what has been cleared, from now on and until nothing is left."""
        self._is_any, self._quiet_ms = True, 0
        if not self._looking:
            self._looking = True
            self._homeserver.run_in_background(
                "federation_admin_follow_up", self._look_while_any
            )

    def watch(self, entry: AuditEntry) -> None:
        """Have the end of an entry be known to `end_of`, until `unwatch`."""
        self._ends[entry.entry_id] = None

    def unwatch(self, entry: AuditEntry) -> None:
        """Forget the end of an entry."""
        self._ends.pop(entry.entry_id, None)

    async def end_of(self, entry: AuditEntry, timeout_ms: int) -> AuditEntry | None:
        """Wait for the end of an entry that is watched; None if it does not end."""
        self.begin()
        for _ in range(timeout_ms // _TICK_MS):
            if (ended := self._ends[entry.entry_id]) is not None:
                return ended
            await self._homeserver.sleep_ms(_TICK_MS)
        return None

    @staticmethod
    def details_of(failure_ts: int | None, waiting: Waiting) -> dict[str, object]:
        """Return what an entry has to say of a destination that is cleared with it."""
        return {"failure_ts": failure_ts, "waiting": attr.asdict(waiting)}

    async def contacted(self, entry: AuditEntry, contact: Contact) -> None:
        """Write what came of the contact after a reset."""
        shown = {"contact": shown_contact(contact)}
        if contact.failure is None:
            connected = ReconnectOutcome.CONNECTED.value
            await self._audit.end(self._audit.ended(entry, connected, shown))
        else:
            await self._audit.note(shown, entry_id=entry.entry_id)
            self.begin()

    async def _look_while_any(self) -> None:
        waited_ms = 0
        try:
            while self._is_any:
                await self._homeserver.sleep_ms(_TICK_MS)
                self._quiet_ms += _TICK_MS
                waited_ms += _TICK_MS
                if waited_ms < min(self._quiet_ms // 4, _LOOK_RAREST_MS):
                    continue
                self._is_any, waited_ms = False, 0
                try:
                    self._is_any = await self._look() or self._is_any
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception as e:
                    self._is_any = True
                    if self._homeserver.is_database_away(e):
                        logger.warning("The database is away after a reset: %s", e)
                    else:
                        logger.exception("Could not follow destinations after a reset")
                    await self._homeserver.sleep_ms(_LOOK_RAREST_MS)
        finally:
            self._looking = False

    async def _look(self) -> bool:
        """Look at all rows once; return whether there is anything left."""
        is_any, after = False, None
        while True:
            entries, ended = await self._audit.run(
                "federation_admin_follow_up", partial(self._look_txn, after=after)
            )
            for entry in ended:
                if entry.entry_id in self._ends:
                    self._ends[entry.entry_id] = entry
            is_any = is_any or len(ended) < len(entries)
            if len(entries) < limits.CLEARED_LOOKED_AT:
                return is_any
            after = (entries[-1].ts, entries[-1].entry_id)

    def _look_txn(
        self, txn: LoggingTransaction, after: AuditPosition | None
    ) -> tuple[list[AuditEntry], list[AuditEntry]]:
        """Return the next entries, and as they have ended those of them that have."""
        entries = self._audit.cleared_txn(txn, after, limits.CLEARED_LOOKED_AT)
        names = sorted({str(entry.destination) for entry in entries})
        if not names:
            return entries, []
        timings = self._homeserver.retry_timings
        failing = timings.failing_txn(txn, names)
        now = waiting_txn(txn, names, is_postgres=self._homeserver.is_postgres)
        ended: list[AuditEntry] = []
        since: dict[str, int] = {}
        counted: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            name = str(entry.destination)
            outcome = self._outcome_of(entry, now[name], failing.get(name))
            if outcome is None:
                continue
            failure_ts = entry.details.get("failure_ts")
            if outcome is not ReconnectOutcome.CONNECTED and isinstance(
                failure_ts, int
            ):
                since[name] = min(failure_ts, since.get(name, failure_ts))
            ended.append(self._audit.ended(entry, outcome.value))
            if entry.run_id:
                counted[entry.run_id].append(outcome.value)
        # In the order in which a run writes, so that neither waits for the other.
        for run_id, outcomes in sorted(counted.items()):
            self._runs.recount_txn(txn, run_id, AUDIT_PENDING, outcomes)
        timings.restore_failure_ts_txn(txn, since)
        for entry in ended:
            self._audit.end_txn(txn, entry)
        return entries, ended

    def _outcome_of(
        self, entry: AuditEntry, now: Waiting, failed_ts: int | None
    ) -> ReconnectOutcome | None:
        """Return what came of what an entry is about; None if that is not known yet.

        Args:
            entry: The entry.
            now: What waits for the destination now.
            failed_ts: When it has failed last; None if it is not failing.
        """
        details: Mapping[str, Any] = entry.details
        waiting = Waiting(**details["waiting"])
        if waiting.was_taken(now):
            return ReconnectOutcome.CONNECTED
        if failed_ts is None:
            return None
        refused = details.get("refused")
        is_fresh = 0 <= self._homeserver.now_ms() - failed_ts < _TOLD_WITHIN_MS
        if waiting.is_any and refused is None and is_fresh:
            return None
        if details.get("force"):
            return ReconnectOutcome.FORCED
        contact = details.get("contact")
        error = details.get("error") or (contact and contact["error"])
        if error and error["kind"] == FailureKind.INTERNAL.value and not refused:
            return ReconnectOutcome.INTERNAL
        if (contact and not contact["error"]) or (refused and refused["status"]):
            return ReconnectOutcome.REFUSED
        return ReconnectOutcome.STILL_FAILING

    # -- what is told by the process that sends ----------------------------------------

    def _transaction_ended(
        self, transaction: Transaction, error: Exception | None
    ) -> None:
        """Take note of what a destination refuses that was just woken."""
        if not self._wake.woken.pop(transaction.destination, False) or error is None:
            return
        self._homeserver.run_in_background(
            "federation_admin_refused", self._note, transaction, failure_of(error)
        )

    async def _note(self, transaction: Transaction, failure: Failure) -> None:
        destination = transaction.destination
        if failure.is_ours:
            error = shown_contact(Contact(0, failure=failure))["error"]
            await self._audit.note({"error": error}, destination=destination)
            return
        size = None
        if self._measured < limits.TRANSACTIONS_MEASURED:
            self._measured += 1
            try:
                size = await transaction.size(partial(self._homeserver.sleep_ms, 0))
            finally:
                self._measured -= 1
        refused = Refused(
            status=failure.facts.status,
            bytes=size,
            pdus=transaction.pdus,
            edus=transaction.edus,
            to_device_messages=transaction.to_device_messages,
        )
        await self._audit.note(
            {"refused": attr.asdict(refused)}, destination=destination
        )
