# SPDX-License-Identifier: Apache-2.0
"""Finds out what comes of destinations whose retry timings were cleared.

That they were is in the audit: an entry that is `pending` and has an `ended_ts`. It
also says since when the destination had been failing and what waited for it then. What
the sender's next real transaction meets is in Synapse's rows, whichever process that
is, and however much later:

- What waited is gone, or the process that sends has noted that a transaction was taken.
  The entry ends as `connected`.
- The destination is failing: it was not. The entry ends, and Synapse, which writes the
  time of the new failure as `failure_ts`, gets the old one back: else "failing for 90
  days" becomes "failing for a second".

Neither is so for up to 25 minutes where Synapse goes on trying, and for longer where
nothing is sent. After a day nobody waits for it any more
(`synapse_federation_admin.repair.housekeeping`).
"""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import attr
from synapse.module_api import LoggingTransaction
from synapse.module_api.errors import SynapseError
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import Waiting, waiting_txn
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.newest import keep_newest
from synapse_federation_admin.homeserver.transactions import Transaction
from synapse_federation_admin.repair.contact import shown_contact
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import TAKEN, Audit, AuditPosition
from synapse_federation_admin.storage.runs import RunStore
from synapse_federation_admin.storage.values import (
    AUDIT_PENDING,
    AuditEntry,
    Contact,
    ReconnectOutcome,
    Refused,
)

logger = logging.getLogger(__name__)

# How often to look at the rows: at first often, and then after a quarter of the time
# that has gone by since something was last cleared.
_TICK_MS = 100
_LOOK_RAREST_MS = 60_000

# After a look the next one waits for at least so many times as long as it took.
_LOOK_SHARE = 10

# How long after a failure the process that sends may take to note what it met: where a
# contact has failed, too, and where none has.
_TOLD_WITHIN_MS = 2000
_TOLD_ALONE_WITHIN_MS = 10_000

# How often to look for what a process has cleared that is away.
_AWAY_EVERY_MS = 600_000

# How many at once write what came of contacts.
_WRITES = 5


class FollowUp:
    """Ends the entries of what was cleared, and gives back `failure_ts`."""

    def __init__(
        self,
        homeserver: Homeserver,
        audit: Audit,
        runs: RunStore,
        wake: Wake,
        unsent: Callable[[Iterable[str]], Awaitable[Collection[str]]],
    ) -> None:
        self._homeserver = homeserver
        self._audit = audit
        self._runs = runs
        self._wake = wake
        # Of some destinations, those to whom it is known that nothing leaves.
        self.unsent = unsent
        self._writes = homeserver.linearizer("federation_admin_contacted", _WRITES)
        # By their IDs: entries that the table could not take, which are followed while
        # this process runs.
        self._unwritten: dict[str, AuditEntry] = {}
        # By their IDs: entries that have ended, the newest last, for who waits for one.
        self._ended: dict[str, AuditEntry] = {}
        self._has_started = self._looking = self._noting = False
        # What is to be noted of destinations that were woken.
        self._notes: dict[str, Mapping[str, object]] = {}
        # Whether anything is left to look at.
        self._is_any = False
        # For how long nothing was cleared, counted by ticks: the clock of the host may
        # be set; and how long the last look took.
        self._quiet_ms = self._took_ms = 0

    def start(self) -> None:
        """Go on where the process before this one has stopped."""
        if not self._has_started:
            self._has_started = True
            self._homeserver.transactions.observe(self._transaction_ended)
            self.begin()
            if self._homeserver.runs_background_tasks:
                self._homeserver.every(
                    "federation_admin_follow_up",
                    _AWAY_EVERY_MS,
                    self._begin_again,
                    first_after_ms=_AWAY_EVERY_MS,
                )

    def begin(self) -> None:
        """Look at what has been cleared, from now on and until nothing is left."""
        self._is_any, self._quiet_ms = True, 0
        if not self._looking:
            self._looking = True
            self._homeserver.run_in_background(
                "federation_admin_follow_up", self._look_while_any
            )

    async def _begin_again(self) -> None:
        self.begin()

    def keep(self, entry: AuditEntry) -> None:
        """Follow an entry that the table cannot take: it has when it failed first."""
        keep_newest(self._unwritten, entry.entry_id, entry, limits.KEPT_ENDS)

    async def end_of(self, entry: AuditEntry, timeout_ms: int) -> AuditEntry | None:
        """Wait for the end of an entry of this process; None if it does not end."""
        self.begin()
        for _ in range(timeout_ms // _TICK_MS):
            if (ended := self._ended.get(entry.entry_id)) is not None:
                return ended
            await self._homeserver.sleep_ms(_TICK_MS)
        return None

    @staticmethod
    def details_of(failure_ts: int | None, waiting: Waiting) -> dict[str, object]:
        """Return what an entry has to say of a destination that is cleared with it."""
        return {"failure_ts": failure_ts, "waiting": attr.asdict(waiting)}

    async def contacted(self, entry: AuditEntry, contact: Contact) -> None:
        """Write what came of the contact after a reset, as soon as that can be."""
        shown = {"contact": shown_contact(contact)}
        perhaps = entry.details["waiting"]["perhaps"]
        is_connected = contact.failure is None and not perhaps
        if (unwritten := self._unwritten.pop(entry.entry_id, None)) is not None:
            if not is_connected:
                self.keep(self._audit.ended(unwritten, AUDIT_PENDING, shown))
            return
        if is_connected:
            unsent = await self.unsent([str(entry.destination)])
            ended = ReconnectOutcome.NOT_SENT if unsent else ReconnectOutcome.CONNECTED
            entry = self._audit.ended(entry, ended.value, shown)
            write = partial(self._audit.end, entry)
        else:
            write = partial(self._audit.note, {entry.entry_id: shown}, "entry_id")
        # However many wait while the database is away, these few try.
        async with self._writes(""):
            await self._homeserver.await_database(write)
        self.begin()

    async def _look_while_any(self) -> None:
        waited_ms = self._took_ms = 0
        has_said = False
        try:
            while self._is_any:
                await self._homeserver.sleep_ms(_TICK_MS)
                self._quiet_ms += _TICK_MS
                waited_ms += _TICK_MS
                least_ms = max(self._quiet_ms // 4, self._took_ms * _LOOK_SHARE)
                if waited_ms < min(least_ms, _LOOK_RAREST_MS):
                    continue
                self._is_any, waited_ms = False, 0
                try:
                    is_any = await self._homeserver.await_database(self._look)
                    self._is_any, has_said = is_any or self._is_any, False
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception as e:
                    self._is_any = True
                    # What cannot be used says why, once; all else is a bug.
                    is_unusable = isinstance(e, SynapseError)
                    if not (is_unusable and has_said):
                        logger.error(
                            "Could not follow destinations after a reset: %s",
                            e,
                            exc_info=not is_unusable,
                        )
                    has_said = is_unusable
                    await self._homeserver.sleep_ms(_LOOK_RAREST_MS)
        finally:
            self._looking = False

    async def _look(self) -> bool:
        """Look at all rows once; return whether there is anything left."""
        is_any, after = await self._look_at_unwritten(), None
        # That the database was away before is no reason to look rarely.
        began_ms = self._homeserver.now_ms()
        while True:
            entries, ended = await self._audit.tables.run(
                "federation_admin_follow_up",
                partial(self._look_txn, after=after),
                read_committed=True,
            )
            for entry in ended:
                # For those of a run nobody waits.
                if entry.run_id is None:
                    keep_newest(self._ended, entry.entry_id, entry, limits.KEPT_ENDS)
            is_any = is_any or len(ended) < len(entries)
            if len(entries) < limits.CLEARED_LOOKED_AT:
                self._took_ms = self._homeserver.now_ms() - began_ms
                return is_any
            after = (entries[-1].ts, entries[-1].entry_id)

    async def _look_at_unwritten(self) -> bool:
        """Look at what the table could not take; return whether any of it is left."""
        entries = list(self._unwritten.values())

        def look_txn(txn: LoggingTransaction) -> list[AuditEntry]:
            ended = self._ended_txn(txn, entries)
            self._restore_txn(txn, ended)
            return ended

        if entries:
            for entry in await self._homeserver.run_db_interaction(
                "federation_admin_follow_up", look_txn, read_committed=True
            ):
                self._unwritten.pop(entry.entry_id, None)
        return bool(self._unwritten)

    def _look_txn(
        self, txn: LoggingTransaction, after: AuditPosition | None
    ) -> tuple[list[AuditEntry], list[AuditEntry]]:
        """Return the next entries, and as they have ended those of them that have."""
        entries = self._audit.cleared_txn(txn, after, limits.CLEARED_LOOKED_AT)
        ended = self._ended_txn(txn, entries)
        if not ended:
            return entries, ended
        # In the order in which a run writes, so that neither waits for the other: first
        # the run, then destinations, then entries.
        run_ids = sorted({entry.run_id for entry in ended if entry.run_id})
        for run_id in run_ids:
            self._runs.recount_txn(txn, run_id, ())
        works = self._restore_txn(txn, ended)
        counted: dict[str, list[str]] = defaultdict(list)
        ended.sort(key=lambda entry: entry.entry_id)
        for entry in self._audit.end_txn(txn, *ended):
            counted[entry.run_id or ""].append(entry.outcome)
        for run_id in run_ids:
            self._runs.recount_txn(txn, run_id, counted[run_id])
        self._audit.works_txn(txn, works)
        return entries, ended

    def _ended_txn(
        self, txn: LoggingTransaction, entries: Sequence[AuditEntry]
    ) -> list[AuditEntry]:
        """Return those of some entries that have ended, with their end."""
        names = sorted({str(entry.destination) for entry in entries})
        if not names:
            return []
        failing = self._homeserver.retry_timings.failing_txn(txn, names)
        now = waiting_txn(txn, names)
        ended = []
        for entry in entries:
            name = str(entry.destination)
            # Synapse may have written what it does next before a note is written.
            noted = self._audit.ended(entry, AUDIT_PENDING, self._notes.get(name))
            outcome = self._outcome_of(noted, now[name], failing.get(name))
            if outcome is not None:
                ended.append(self._audit.ended(noted, outcome.value))
        return ended

    def _restore_txn(
        self, txn: LoggingTransaction, ended: Sequence[AuditEntry]
    ) -> set[str]:
        """Give back since when those fail that do; return those that work."""
        since: dict[str, int] = {}
        works: set[str] = set()
        for entry in ended:
            name, failure_ts = str(entry.destination), entry.details.get("failure_ts")
            if entry.outcome == ReconnectOutcome.CONNECTED.value:
                works.add(name)
            elif isinstance(failure_ts, int):
                since[name] = min(failure_ts, since.get(name, failure_ts))
        self._homeserver.retry_timings.restore_failure_ts_txn(txn, since)
        return works

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
        try:
            waiting = Waiting(**details["waiting"])
            if details.get("taken"):
                return ReconnectOutcome.CONNECTED
            contact, refused = details.get("contact"), details.get("refused")
            is_no_answer = refused and (refused["status"] or 0) in range(200, 300)
            if failed_ts is None and is_no_answer:
                # Synapse takes the status for a success: it does not back off, and what
                # was sent may wait no more.
                return ReconnectOutcome.REFUSED
            if waiting.was_taken(now):
                return ReconnectOutcome.CONNECTED
            if failed_ts is None:
                return None
            within_ms = _TOLD_WITHIN_MS if contact else _TOLD_ALONE_WITHIN_MS
            is_fresh = 0 <= self._homeserver.now_ms() - failed_ts < within_ms
            if not waiting.is_nothing and refused is None and is_fresh:
                return None
            if details.get("force"):
                return ReconnectOutcome.FORCED
            error = details.get("error") or (contact and contact["error"])
            if error and error["kind"] == FailureKind.INTERNAL.value and not refused:
                return ReconnectOutcome.INTERNAL
            if (contact and not contact["error"]) or (refused and refused["status"]):
                return ReconnectOutcome.REFUSED
        except (AttributeError, KeyError, TypeError):
            # It is of another version, or was changed by hand: it is left alone.
            return None
        return ReconnectOutcome.STILL_FAILING

    # -- what is told by the process that sends ----------------------------------------

    def _transaction_ended(self, transaction: Transaction) -> None:
        """Take note of what a destination takes or refuses that was just woken."""
        name = transaction.destination
        if not self._wake.woken.pop(name, False) or len(self._notes) >= limits.WOKEN:
            return
        if transaction.error is None:
            self._tell(name, TAKEN)
            return
        failure = failure_of(transaction.error)
        if failure.is_ours:
            told = shown_contact(Contact(0, failure=failure))["error"]
            self._tell(name, {"error": told})
        else:
            self._tell(name, _refusal(transaction, failure))

    def _tell(self, name: str, note: Mapping[str, object]) -> None:
        """Have something be noted, soon, of what is pending of a destination."""
        for entry in [e for e in self._unwritten.values() if e.destination == name]:
            self._unwritten[entry.entry_id] = self._audit.ended(
                entry, AUDIT_PENDING, note
            )
        self._notes[name] = note
        if not self._noting:
            self._noting = True
            self._homeserver.run_in_background(
                "federation_admin_refused", self._write_notes
            )

    async def _write_notes(self) -> None:
        """Write what is to be noted, some of it at a time, until nothing is left."""
        try:
            while self._notes:
                some = dict(islice(self._notes.items(), limits.CLEARED_LOOKED_AT))
                try:
                    await self._homeserver.await_database(
                        partial(self._audit.note, some)
                    )
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception:
                    # It would be one again.
                    logger.exception("Could not note what comes of a reset")
                for name, note in some.items():
                    if self._notes[name] is note:
                        del self._notes[name]
                # What others have met meanwhile is written at once.
                await self._homeserver.sleep_ms(_TICK_MS)
        finally:
            self._noting = False


def _refusal(transaction: Transaction, failure: Failure) -> Mapping[str, object]:
    refused = Refused(
        status=failure.facts.status or transaction.status,
        bytes=transaction.bytes,
        pdus=transaction.pdus,
        edus=transaction.edus,
        to_device_messages=transaction.to_device_messages,
    )
    return {"refused": attr.asdict(refused)}
