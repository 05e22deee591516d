# SPDX-License-Identifier: Apache-2.0
"""Reconnects one destination: contacts it first, and changes only what proved to work.

What waits for it is sent then, and a reconnect is over when the first of that was taken
or refused.

Within a process a destination is contacted once for all who ask at the same time.
"""

import attr
from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import waiting_txn
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.server_name import is_server_name
from synapse_federation_admin.repair.contact import (
    outcome_of,
    probe,
    shown_contact,
    with_software,
)
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.values import (
    AUDIT_PENDING,
    Actor,
    AuditAction,
    AuditEntry,
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

# With these the retry timings are cleared.
_CLEARED = (
    ReconnectOutcome.CONNECTED,
    ReconnectOutcome.NOT_SENT,
    ReconnectOutcome.FORCED,
    ReconnectOutcome.PENDING,
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Reconnected:
    """What came of a request to reconnect a destination.

    Attributes:
        outcome: In a word.
        before: The destination before.
        after: The destination afterwards, as far as it has come.
        contact: What came of the contact; None if it goes on.
        told: Which processes were told.
        refused: What it refuses; None if it does not, or if that is not known.
    """

    outcome: ReconnectOutcome
    before: Destination
    after: Destination
    contact: Contact | None
    told: Told = attr.Factory(Told)
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
        self._lock = homeserver.linearizer("federation_admin_reconnect")
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
        found = Reconnected(ReconnectOutcome.PENDING, before, before, None)

        async def finish() -> Reconnected:
            nonlocal found
            found = await self._reconnect(before, entry, force)
            if found.outcome in _CLEARED and is_server_name(name):
                found = attr.evolve(found, told=await self._wake.everywhere([name]))
            return await self._seen_through(found, entry, until_ts)

        try:
            return await self._homeserver.run_to_end(
                "federation_admin_reconnect",
                finish,
                max(until_ts - self._homeserver.now_ms(), 1),
            )
        except TimeoutError:
            return found

    async def _reconnect(
        self, before: Destination, entry: AuditEntry, force: bool
    ) -> Reconnected:
        """Contact a destination, and do what follows from that; end the entry."""
        name = before.destination
        try:
            contact = await self._homeserver.single_flight.run(
                "federation_admin_reconnect_contact",
                name,
                lambda: self._contact(name),
                joins=True,
            )
            outcome = outcome_of(contact)
            if force and contact.failure is not None:
                outcome = ReconnectOutcome.FORCED
            # One after the other: what the first clears the others find cleared.
            async with self._lock(name):
                return await self._settle(before, contact, outcome, entry)
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception:
            self._audit.end_as_failed(entry)
            raise

    async def _seen_through(
        self, found: Reconnected, entry: AuditEntry, until_ts: int
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
        refused = ended.details.get("refused")
        return attr.evolve(
            found,
            outcome=ReconnectOutcome(ended.outcome),
            after=await self._destinations.get(found.before.destination) or found.after,
            refused=Refused(**refused) if refused else None,
        )

    async def _contact(self, name: str) -> Contact:
        async with self._slots(""):
            contact = await probe(
                self._homeserver, name, timeout_ms=_CONTACT_TIMEOUT_MS
            )
            if contact.failure is not None:
                return contact
            return await with_software(
                self._homeserver, name, contact, timeout_ms=_SOFTWARE_TIMEOUT_MS
            )

    async def _settle(
        self,
        before: Destination,
        contact: Contact,
        outcome: ReconnectOutcome,
        entry: AuditEntry,
    ) -> Reconnected:
        """Clear the retry timings, if the outcome says so.

        Args:
            before: What was known of the destination when it was asked for.
            contact: What came of the contact.
            outcome: What comes of it.
            entry: Ends in the transaction in which this has effect, or waits from then
                on for what comes of what waits.
        """
        homeserver, name = self._homeserver, before.destination
        clears = outcome in _CLEARED
        # Where somebody has changed the row by hand, Synapse may still be backing off,
        # as it finds in its cache.
        backs_off = clears and await homeserver.retry_timings.is_backing_off(name)
        is_unsent = clears and bool(await self._follow_up.unsent([name]))

        def settle_txn(txn: LoggingTransaction) -> Reconnected:
            row = after = self._destinations.get_txn(txn, name)
            settled, ended = outcome, outcome.value
            details: dict[str, object] = {"contact": shown_contact(contact)}
            if clears:
                waiting = waiting_txn(txn, [name])[name]
                if row is not None and (row.is_failing or backs_off):
                    homeserver.retry_timings.clear_txn(txn, name)
                    after = self._destinations.get_txn(txn, name)
                if outcome is ReconnectOutcome.CONNECTED and waiting.is_nothing:
                    if is_unsent:
                        settled = ReconnectOutcome.NOT_SENT
                        ended = settled.value
                    else:
                        self._audit.works_txn(txn, [name])
                else:
                    # Another who has asked may have cleared it before.
                    since_ts = before.failure_ts
                    if row is not None and row.failure_ts is not None:
                        since_ts = row.failure_ts
                    details |= self._follow_up.details_of(since_ts, waiting)
                    ended = AUDIT_PENDING
                    if outcome is ReconnectOutcome.CONNECTED:
                        settled = ReconnectOutcome.PENDING
            self._audit.end_txn(txn, self._audit.ended(entry, ended, details))
            return Reconnected(settled, before, after or before, contact)

        return await self._audit.tables.run("federation_admin_reconnect", settle_txn)
