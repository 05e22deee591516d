# SPDX-License-Identifier: Apache-2.0
"""Reconnects one destination: contacts it first, and changes only what proved to work.

Within a process a destination is contacted once for all who ask at the same time.
"""

import attr
from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import BacklogStore
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
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import Actor, AuditAction, AuditEntry
from synapse_federation_admin.storage.outcomes import Contact, ReconnectOutcome, Told

# How long a destination has to answer, however long those who ask are willing to wait:
# as long as Synapse gives it to answer a transaction.
_CONTACT_TIMEOUT_MS = 60_000

# How long it has to say what software it runs, which decides nothing.
_SOFTWARE_TIMEOUT_MS = 5_000


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


class Reconnect:
    """Reconnects destinations, one by one."""

    def __init__(
        self,
        homeserver: Homeserver,
        destinations: DestinationStore,
        backlog: BacklogStore,
        audit: Audit,
        wake: Wake,
        follow_up: FollowUp,
    ) -> None:
        self._homeserver = homeserver
        self._destinations = destinations
        self._backlog = backlog
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
    ) -> Reconnected | None:
        """Contact a destination, and if it answers have everybody send to it again.

        Args:
            name: The destination's exact name.
            actor: Who asks for it.
            asked_ts: When.
            timeout_ms: How long to wait; the contact goes on all the same.
            force: Clear the retry timings even if it does not answer well.
            reason: Why, for the audit.

        Returns:
            The result; None if Synapse knows nothing of this destination. Raises what
            the database raises; then the retry timings are as they were.
        """
        before = await self._look(name)
        if before is None:
            return None
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
        left_ms = timeout_ms - (self._homeserver.now_ms() - asked_ts)
        try:
            return await self._homeserver.run_to_end(
                "federation_admin_reconnect",
                lambda: self._finish(name, before, entry, force),
                max(left_ms, 1),
            )
        except TimeoutError:
            return Reconnected(
                ReconnectOutcome.PENDING, before, before, contact=None, told=Told()
            )

    async def _look(self, name: str) -> Destination | None:
        """Return what the row says; None if Synapse knows nothing of a destination."""
        row = await self._destinations.get(name)
        if row is None:
            backlog = (await self._backlog.of([name]))[name]
            if not backlog.is_empty:
                row = Destination(name, None, None, None, None)
        return row

    async def _finish(
        self, name: str, before: Destination, entry: AuditEntry, force: bool
    ) -> Reconnected:
        """Return the result for one of those who have asked; end their entry."""
        try:
            found = await self._homeserver.single_flight.run(
                "federation_admin_reconnect_contact",
                name,
                lambda: self._contact(name, before, None if force else entry),
                joins=True,
            )
            contact = found.contact
            if force and contact is not None and contact.failure is not None:
                return await self._force(name, before, contact, entry)
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception:
            await self._audit.end_as_failed(entry)
            raise
        # If it has not ended with the contact.
        await self._audit.end(self._ended(entry, found.outcome, contact))
        return attr.evolve(found, before=before)

    async def _contact(
        self, name: str, asked: Destination, entry: AuditEntry | None
    ) -> Reconnected:
        """Make the contact, and if it was answered well, clear and wake."""
        async with self._slots(""):
            contact = await probe(
                self._homeserver, name, timeout_ms=_CONTACT_TIMEOUT_MS
            )
            if contact.failure is None:
                contact = await with_software(
                    self._homeserver, name, contact, timeout_ms=_SOFTWARE_TIMEOUT_MS
                )
        return await self._settle(name, asked, contact, outcome_of(contact), entry)

    async def _force(
        self, name: str, asked: Destination, contact: Contact, entry: AuditEntry
    ) -> Reconnected:
        """Clear and wake, though the destination does not answer."""
        outcome = ReconnectOutcome.FORCED
        found = await self._settle(name, asked, contact, outcome, entry)
        if self._homeserver.is_server_name(name):
            # It has failed since when it failed before, whatever comes of it now.
            self._follow_up.start(
                name,
                failing_since_ts=found.before.failure_ts,
                delivered=found.before.last_successful_stream_ordering,
            )
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

        def settle_txn(
            txn: LoggingTransaction,
        ) -> tuple[Destination | None, Destination | None]:
            before = after = self._destinations.get_txn(txn, name)
            if clears and before is not None and (before.is_failing or backs_off):
                homeserver.retry_timings.clear_txn(txn, name)
                after = self._destinations.get_txn(txn, name)
            if entry is not None:
                self._audit.end_txn(txn, self._ended(entry, outcome, contact))
            return before, after

        before, after = await self._audit.run("federation_admin_reconnect", settle_txn)
        told = Told()
        if clears and homeserver.is_server_name(name):
            told = await self._wake.everywhere([name])
        return Reconnected(outcome, before or asked, after or asked, contact, told)

    def _ended(
        self, entry: AuditEntry, outcome: ReconnectOutcome, contact: Contact | None
    ) -> AuditEntry:
        """Return an entry with its end."""
        shown = {"contact": shown_contact(contact)} if contact else {}
        return self._audit.ended(entry, outcome.value, shown)
