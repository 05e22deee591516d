# SPDX-License-Identifier: Apache-2.0
"""Reconnects one destination: contacts it first, and changes only what proved to work.

What waits for it is sent then, and a reconnect is over when the first of that was taken
or refused.

Within a process a destination is contacted once for all who ask at the same time.
"""

from typing import Any

import attr
from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import Waiting, waiting_txn
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.contact import (
    outcome_of,
    probe,
    shown_contact,
    with_software,
)
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import TAKEN, Audit
from synapse_federation_admin.storage.audit_entry import (
    AUDIT_PENDING,
    Actor,
    AuditAction,
    AuditEntry,
)
from synapse_federation_admin.storage.outcomes import (
    Contact,
    ReconnectOutcome,
    Refused,
    Told,
)

# How long a destination has to answer, however long those who ask are willing to wait:
# as long as Synapse gives it to answer a transaction.
_CONTACT_TIMEOUT_MS = 60_000

# For how long at the most it is waited for what comes of what waits; then that is found
# out all the same.
_LONGEST_WAIT_MS = 60_000

# How long it has to say what software it runs, which decides nothing.
_SOFTWARE_TIMEOUT_MS = 2_000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Reconnected:
    """What came of a request to reconnect a destination.

    Attributes:
        outcome: In a word.
        before: The destination before.
        after: The destination afterwards, as far as it has come.
        contact: What came of the contact; None if it goes on.
        told: Which processes were told.
        waiting: What waited when it was cleared; None if it was not.
        refused: What it refuses; None if it does not, or if that is not known.
    """

    outcome: ReconnectOutcome
    before: Destination
    after: Destination
    contact: Contact | None
    told: Told = attr.Factory(Told)
    waiting: Waiting | None = None
    refused: Refused | None = None


class Reconnect:
    """Reconnects destinations, one by one."""

    def __init__(
        self,
        homeserver: Homeserver,
        destinations: DestinationStore,
        audit: Audit,
        wake: Wake,
        follow_up: FollowUp,
    ) -> None:
        self._homeserver = homeserver
        self._destinations = destinations
        self._audit = audit
        self._wake = wake
        self._follow_up = follow_up
        self._slots = homeserver.linearizer(
            "federation_admin_reconnect_contacts", limits.CONTACTS
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
    ) -> Reconnected:
        """Contact a destination, and if it answers have everybody send to it again.

        Args:
            name: The destination's exact name.
            actor: Who asks for it.
            asked_ts: When.
            timeout_ms: How long to wait; the contact goes on all the same.
            force: Clear the retry timings even if it does not answer well.
            reason: Why, for the audit.

        Returns:
            The result. Raises what the database raises; then the retry timings are as
            they were.
        """
        row = await self._destinations.get(name)
        before = row or Destination(name, None, None, None, None)
        entry = self._audit.entry(
            AuditAction.RECONNECT,
            actor,
            destination=name,
            reason=reason,
            details={
                "failure_ts": before.failure_ts,
                **({"force": True} if force else {}),
            },
        )
        # Nothing is done before it is written.
        await self._audit.insert(entry)
        until_ts = asked_ts + timeout_ms
        pending = Reconnected(ReconnectOutcome.PENDING, before, before, None)
        begun = _Begun(pending)
        try:
            return await self._homeserver.run_to_end(
                "federation_admin_reconnect",
                lambda: self._finish(name, before, entry, force, until_ts, begun),
                max(until_ts - self._homeserver.now_ms(), 1),
            )
        except TimeoutError:
            return begun.found

    async def _finish(
        self,
        name: str,
        before: Destination,
        entry: AuditEntry,
        force: bool,
        until_ts: int,
        begun: "_Begun",
    ) -> Reconnected:
        """Return the result for one of those who have asked; end their entry."""
        try:
            found = await self._homeserver.single_flight.run(
                "federation_admin_reconnect_contact",
                name,
                lambda: self._contact(name, before, entry, force, begun),
                joins=True,
            )
            contact = found.contact
            if force and contact is not None and contact.failure is not None:
                forced = ReconnectOutcome.FORCED
                found = await self._settle(name, before, contact, forced, entry)
                begun.is_written = True
            begun.found = found = attr.evolve(found, before=before)
            if not begun.is_written:
                await self._audit.end(self._ended(entry, found))
                begun.is_written = True
            return await self._seen_through(name, found, entry, until_ts)
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception:
            if not begun.is_written:
                await self._audit.end_as_failed(entry)
            raise

    async def _seen_through(
        self, name: str, found: Reconnected, entry: AuditEntry, until_ts: int
    ) -> Reconnected:
        """Wait for what comes of what waits, if anything does, and not for too long."""
        if found.outcome is ReconnectOutcome.FORCED:
            self._follow_up.begin()
        if found.outcome is not ReconnectOutcome.PENDING:
            return found
        left_ms = until_ts - self._homeserver.now_ms()
        ended = await self._follow_up.end_of(entry, min(left_ms, _LONGEST_WAIT_MS))
        if ended is None:
            return found
        refused: Any = ended.details.get("refused")
        return attr.evolve(
            found,
            outcome=ReconnectOutcome(ended.outcome),
            after=await self._destinations.get(name) or found.after,
            refused=Refused(**refused) if refused else None,
        )

    async def _contact(
        self,
        name: str,
        asked: Destination,
        entry: AuditEntry,
        force: bool,
        begun: "_Begun",
    ) -> Reconnected:
        """Make the contact, and if it was answered well, clear and wake."""
        homeserver = self._homeserver
        async with self._slots(""):
            contact = await probe(homeserver, name, timeout_ms=_CONTACT_TIMEOUT_MS)
            if contact.failure is None:
                contact = await with_software(
                    homeserver, name, contact, timeout_ms=_SOFTWARE_TIMEOUT_MS
                )
        ends = None if force and contact.failure else entry
        found = await self._settle(name, asked, contact, outcome_of(contact), ends)
        begun.is_written = ends is not None
        return found

    async def _settle(
        self,
        name: str,
        asked: Destination,
        contact: Contact,
        outcome: ReconnectOutcome,
        entry: AuditEntry | None,
    ) -> Reconnected:
        """Clear and wake, if the outcome says so.

        Args:
            name: The destination.
            asked: What was known of it when it was asked for.
            contact: What came of the contact.
            outcome: What comes of it all.
            entry: Ends in the transaction in which this has effect.
        """
        homeserver = self._homeserver
        clears = outcome in (ReconnectOutcome.CONNECTED, ReconnectOutcome.FORCED)
        # Where somebody has changed the row by hand, Synapse may still be backing off,
        # as it finds in its cache.
        backs_off = clears and await homeserver.retry_timings.is_backing_off(name)

        def settle_txn(txn: LoggingTransaction) -> Reconnected:
            before = after = self._destinations.get_txn(txn, name)
            waiting = None
            if clears:
                waiting = waiting_txn(txn, [name])[name]
                if before is not None and (before.is_failing or backs_off):
                    homeserver.retry_timings.clear_txn(txn, name)
                    after = self._destinations.get_txn(txn, name)
            found = Reconnected(
                outcome,
                before or asked,
                after or asked,
                contact,
                waiting=waiting,
            )
            is_connected = outcome is ReconnectOutcome.CONNECTED
            if is_connected and waiting and not waiting.is_nothing:
                found = attr.evolve(found, outcome=ReconnectOutcome.PENDING)
            elif is_connected:
                self._audit.note_txn(txn, {name: TAKEN})
            if entry is not None:
                self._audit.end_txn(txn, self._ended(entry, found))
            return found

        found = await self._audit.run("federation_admin_reconnect", settle_txn)
        if clears and homeserver.is_server_name(name):
            found = attr.evolve(found, told=await self._wake.everywhere([name]))
        return found

    def _ended(self, entry: AuditEntry, found: Reconnected) -> AuditEntry:
        """Return an entry with its end, or as of what is cleared."""
        outcome = found.outcome.value
        details: dict[str, object] = {}
        if found.contact:
            details["contact"] = shown_contact(found.contact)
        if found.outcome in (ReconnectOutcome.FORCED, ReconnectOutcome.PENDING):
            # It is seen through from here on.
            outcome = AUDIT_PENDING
            details |= self._follow_up.details_of(
                found.before.failure_ts, found.waiting or Waiting()
            )
        return self._audit.ended(entry, outcome, details)


@attr.s(slots=True, auto_attribs=True, eq=False)
class _Begun:
    """How far a reconnect has come, for one of those who have asked.

    Attributes:
        found: What is told to them if they wait no longer.
        is_written: Whether that is in their entry.
    """

    found: Reconnected
    is_written: bool = False
