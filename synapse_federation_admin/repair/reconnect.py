# SPDX-License-Identifier: Apache-2.0
"""Reconnects one destination: contacts it first, and changes only what proved to work.

However many ask at the same time, and whichever process they ask, a destination is
contacted once. Who asks while an attempt is under way waits for that one. Within a
process the attempt is known in memory, and to the others through
`synapse_federation_admin.repair.attempts`.
"""

import secrets
from collections.abc import Callable

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.backlog import BacklogStore
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.single_flight import Flight
from synapse_federation_admin.repair.attempts import AttemptResult, Attempts
from synapse_federation_admin.repair.contact import MAX_CONTACTS, probe, shown_contact
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import Actor, AuditAction, AuditEntry
from synapse_federation_admin.storage.outcomes import Contact, ReconnectOutcome, Told

# How long a destination has to answer, however long those who ask are willing to wait:
# as long as Synapse gives it to answer a transaction.
_CONTACT_TIMEOUT_MS = 60_000

# Ended attempts that are kept in memory, for those who asked before they ended.
_MAX_ENDED = 1000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Reconnected:
    """What came of a request to reconnect a destination.

    Attributes:
        outcome: In a word.
        before: The destination before.
        after: The destination afterwards, as far as it has come.
        contact: What came of the contact; None if it goes on.
        told: Which processes were told.
    """

    outcome: ReconnectOutcome
    before: Destination
    after: Destination
    contact: Contact | None
    told: Told


class _Attempt:
    """One contact with a destination, for all who ask at the same time."""

    def __init__(self) -> None:
        self.attempt_id = secrets.token_hex(8)
        # What the row says before the contact, once it is read; None if Synapse knows
        # nothing of the destination: then there is no result.
        self.before: Flight[Destination | None]
        self.result: Flight[AttemptResult]
        # The entry of who has asked first: the contact is made once it is written.
        self.first: Flight[AuditEntry]
        # Entries of the audit that end with it, in the transaction in which it does.
        self.entries: list[AuditEntry] = []
        self.ended_ts: int | None = None


class Reconnect:
    """Reconnects destinations, one by one."""

    def __init__(
        self,
        homeserver: Homeserver,
        destinations: DestinationStore,
        backlog: BacklogStore,
        attempts: Attempts,
        audit: Audit,
        wake: Wake,
        follow_up: FollowUp,
    ) -> None:
        self._homeserver = homeserver
        self._destinations = destinations
        self._backlog = backlog
        self._shared = attempts
        self._audit = audit
        self._wake = wake
        self._follow_up = follow_up
        # By name: those under way, and those that have ended lately.
        self._attempts: dict[str, _Attempt] = {}
        self._slots = homeserver.linearizer(
            "federation_admin_reconnect_contacts", MAX_CONTACTS
        )

    async def reconnect(
        self,
        name: str,
        actor: Actor,
        *,
        asked_ts: int,
        timeout_ms: int,
        force: bool = False,
        reason: str | None = None,
    ) -> Reconnected | None:
        """Contact a destination, and if it answers have everybody send to it again.

        Args:
            name: The destination's exact name.
            actor: Who asks for it.
            asked_ts: When: an attempt that ended before is of no use.
            timeout_ms: How long to wait; the attempt goes on all the same.
            force: Clear the retry timings even if it does not answer well.
            reason: Why, for the audit.

        Returns:
            What came of it; None if Synapse knows nothing of this destination. Raises
            what the database raises; then the retry timings are as they were.
        """

        def entry_for(attempt: _Attempt, before: Destination) -> AuditEntry:
            return self._audit.entry(
                AuditAction.RECONNECT,
                actor,
                destination=name,
                reason=reason,
                details={
                    "attempt_id": attempt.attempt_id,
                    "failure_ts": before.failure_ts,
                    **({"force": True} if force else {}),
                },
            )

        attempt = self._attempts.get(name)
        is_first = attempt is None or (
            attempt.ended_ts is not None and attempt.ended_ts < asked_ts
        )
        if attempt is None or is_first:
            attempt = self._begin(name, asked_ts, entry_for, force)
        before = await attempt.before.wait()
        if before is None:
            return None
        if is_first:
            entry = await attempt.first.wait()
        else:
            entry = entry_for(attempt, before)
            await self._audit.insert(entry)
            if not force and attempt.ended_ts is None:
                attempt.entries.append(entry)
        finished = self._homeserver.begin(
            "federation_admin_reconnect",
            lambda: self._finish(name, attempt, entry, force),
        )
        left_ms = timeout_ms - (self._homeserver.now_ms() - asked_ts)
        try:
            return await finished.wait(max(left_ms, 1))
        except TimeoutError:
            return Reconnected(
                ReconnectOutcome.PENDING, before, before, contact=None, told=Told()
            )

    def _begin(
        self,
        name: str,
        asked_ts: int,
        entry_for: Callable[[_Attempt, Destination], AuditEntry],
        force: bool,
    ) -> _Attempt:
        attempt = _Attempt()
        if len(self._attempts) >= _MAX_ENDED:
            self._attempts = {
                name: other
                for name, other in self._attempts.items()
                if other.ended_ts is None
            }
        self._attempts[name] = attempt
        begin = self._homeserver.begin
        attempt.before = begin("federation_admin_reconnect", lambda: self._look(name))
        attempt.first = begin(
            "federation_admin_reconnect",
            lambda: self._enter(name, attempt, entry_for, force),
        )
        attempt.result = begin(
            "federation_admin_reconnect", lambda: self._attempt(name, attempt, asked_ts)
        )
        return attempt

    async def _enter(
        self,
        name: str,
        attempt: _Attempt,
        entry_for: Callable[[_Attempt, Destination], AuditEntry],
        force: bool,
    ) -> AuditEntry:
        """Write the entry of who has asked first, before anything is done."""
        before = await attempt.before.wait()
        if before is None:
            raise LookupError(name)
        entry = entry_for(attempt, before)
        await self._audit.insert(entry)
        if not force:
            attempt.entries.append(entry)
        return entry

    async def _look(self, name: str) -> Destination | None:
        """Return what the row says; None if Synapse knows nothing of a destination."""
        row = await self._destinations.get(name)
        if row is None:
            backlog = (await self._backlog.of([name]))[name]
            if not backlog.is_empty:
                row = Destination(name, None, None, None, None)
        return row

    async def _attempt(
        self, name: str, attempt: _Attempt, asked_ts: int
    ) -> AttemptResult:
        try:
            before = await attempt.before.wait()
            if before is None:
                raise LookupError(name)
            await attempt.first.wait()
            result = None
            while result is None:
                counts, started_ts = await self._shared.take(
                    name, attempt.attempt_id, asked_ts
                )
                if counts == attempt.attempt_id:
                    result = await self._contact(name, attempt, before)
                else:
                    result = await self._shared.wait_for(name, counts, started_ts)
            if result.contact.failure is None:
                result = attr.evolve(result, told=self._wake.everywhere(name))
            return result
        finally:
            if attempt.ended_ts is None:
                attempt.ended_ts = self._homeserver.now_ms()

    async def _contact(
        self, name: str, attempt: _Attempt, before: Destination
    ) -> AttemptResult:
        """Make the contact, and if it was answered well, clear and wake."""
        homeserver = self._homeserver
        async with self._slots(""):
            contact = await probe(homeserver, name, timeout_ms=_CONTACT_TIMEOUT_MS)
        connected = contact.failure is None
        # Where somebody has changed the row by hand, Synapse may still be backing off,
        # as it finds in its cache.
        backs_off = connected and await homeserver.retry_timings.is_backing_off(name)
        # From here on nobody joins: his entry would be too late.
        entries, attempt.entries = attempt.entries, []
        outcome = _outcome_of(contact)
        ended = [self._ended(entry, outcome, contact) for entry in entries]

        def end_txn(txn: LoggingTransaction) -> AttemptResult:
            row = self._destinations.get_txn(txn, name)
            if connected and row is not None and (row.is_failing or backs_off):
                homeserver.retry_timings.clear_txn(txn, name)
                row = self._destinations.get_txn(txn, name)
            result = AttemptResult(before, row or before, contact)
            self._audit.end_txn(txn, ended)
            self._shared.end_txn(txn, name, attempt.attempt_id, result)
            return result

        try:
            result = await homeserver.run_db_interaction(
                "federation_admin_reconnect", end_txn
            )
        except Exception:
            await self._shared.give_up(name, attempt.attempt_id)
            raise
        attempt.ended_ts = homeserver.now_ms()
        return result

    async def _finish(
        self, name: str, attempt: _Attempt, entry: AuditEntry, force: bool
    ) -> Reconnected:
        """Return what came of it for one of those who have asked; end his entry."""
        try:
            result = await attempt.result.wait()
        except Exception:
            await self._audit.end_as_failed(entry)
            raise
        if force and result.contact.failure is not None:
            return await self._force(name, result, entry)
        outcome = _outcome_of(result.contact)
        # If it has not ended with the attempt.
        await self._audit.end(self._ended(entry, outcome, result.contact))
        return Reconnected(
            outcome, result.before, result.after, result.contact, result.told
        )

    def _ended(
        self, entry: AuditEntry, outcome: ReconnectOutcome, contact: Contact
    ) -> AuditEntry:
        """Return an entry with its end."""
        return self._audit.ended(
            entry, outcome.value, {"contact": shown_contact(contact)}
        )

    async def _force(
        self, name: str, result: AttemptResult, entry: AuditEntry
    ) -> Reconnected:
        """Clear and wake, though the destination does not answer."""
        homeserver = self._homeserver
        outcome = ReconnectOutcome.FORCED
        ended = self._ended(entry, outcome, result.contact)

        def force_txn(txn: LoggingTransaction) -> tuple[Destination, Destination]:
            before = self._destinations.get_txn(txn, name)
            after = before
            if before is not None:
                homeserver.retry_timings.clear_txn(txn, name)
                after = self._destinations.get_txn(txn, name)
            self._audit.end_txn(txn, [ended])
            return before or result.before, after or result.before

        before, after = await homeserver.run_db_interaction(
            "federation_admin_reconnect", force_txn
        )
        told = Told()
        if homeserver.is_server_name(name):
            told = self._wake.everywhere(name)
            # It has failed since when it failed before, whatever comes of it now.
            self._follow_up.start(
                name,
                failing_since_ts=before.failure_ts,
                delivered=before.last_successful_stream_ordering,
                contact=False,
            )
        return Reconnected(outcome, before, after, result.contact, told)


def _outcome_of(contact: Contact) -> ReconnectOutcome:
    if contact.failure:
        if contact.failure.is_ours:
            return ReconnectOutcome.INTERNAL
        return ReconnectOutcome.STILL_FAILING
    return ReconnectOutcome.CONNECTED
