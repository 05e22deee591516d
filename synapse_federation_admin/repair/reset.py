# SPDX-License-Identifier: Apache-2.0
"""v1's `reset_connection`: clear the retry timings, wake, and contact."""

import logging
from functools import partial

from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.config import FederationAdminConfig
from synapse_federation_admin.destinations.backlog import Waiting, waiting_txn
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.classify import is_ours
from synapse_federation_admin.failures.kinds import Reason
from synapse_federation_admin.failures.names import why_invalid
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.contact import contact_of
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.values import (
    AUDIT_PENDING,
    Actor,
    AuditAction,
    AuditEntry,
    Contact,
    ResetOutcome,
)

logger = logging.getLogger(__name__)

# How long after a contact that has failed Synapse has to have begun its backoff; else
# it is made again, twice as late each time, up to the last; then the next real request
# tells.
_AGAIN_AFTER_MS = 10_000
_LAST_AFTER_MS = 40_000


class ConnectionReset:
    """Resets the connection to a destination, one reset per destination at a time."""

    def __init__(
        self,
        config: FederationAdminConfig,
        homeserver: Homeserver,
        destinations: DestinationStore,
        audit: Audit,
        wake: Wake,
        follow_up: FollowUp,
    ) -> None:
        self._contacts = config.contact_on_reset
        self._homeserver = homeserver
        self._destinations = destinations
        self._audit = audit
        self._wake = wake
        self._follow_up = follow_up
        self._timeout_ms = config.contact_timeout_ms
        self._lock = homeserver.linearizer("federation_admin_reset")
        self._slots = homeserver.linearizer(
            "federation_admin_reset_contacts", limits.CONTACTS
        )
        self._contacts_with = homeserver.linearizer("federation_admin_reset_contact")
        self._waiting_contacts = 0

    def start(self) -> None:
        """Contact those that the process before this one had yet to contact."""
        if self._contacts:
            self._homeserver.run_in_background(
                "federation_admin_contact",
                self._contact_left,
                self._homeserver.now_ms(),
            )

    async def _contact_left(self, started_ts: int) -> None:
        left_txn = partial(
            self._audit.cleared_txn, after=None, limit=limits.WAITING_CONTACTS
        )
        turn = self._homeserver.turn()
        for entry in await self._homeserver.await_database(
            lambda: self._audit.tables.run("federation_admin_contact", left_txn)
        ):
            if entry.ts < started_ts and _waits_for_contact(entry):
                self._begin_contact(str(entry.destination), entry)
            await turn.end_if_long()

    async def reset(self, name: str, actor: Actor) -> ResetOutcome:
        """Clear a destination's retry timings and have every process try it again.

        Returns as soon as the timings are cleared; what waits for the destination, and
        the contact, go out in the background.

        Args:
            name: The destination's exact name.
            actor: Who asks for it.

        Returns:
            What came of it. Raises what the database raises, with nothing changed.
        """
        async with self._lock(name):
            destination = await self._destinations.get(name)
            if destination is None:
                return ResetOutcome.UNKNOWN_DESTINATION
            # Where somebody has changed the row by hand, Synapse may still be backing
            # off, as it finds in its cache.
            if not (
                destination.is_failing
                or await self._homeserver.retry_timings.is_backing_off(name)
            ):
                return ResetOutcome.NOT_FAILING
            begun = self._audit.entry(AuditAction.RESET, actor, destination=name)
            # A row may bear a name that is no server's, from an event or a message that
            # was addressed to one. There is nobody to be woken or contacted.
            is_server = why_invalid(self._homeserver, name) is None
            outcome = AUDIT_PENDING if is_server else ResetOutcome.RESET.value
            entry, waits = await self._clear(destination, begun, outcome)

        if not is_server:
            return ResetOutcome.RESET
        if self._contacts and not waits:
            self._begin_contact(name, entry)
        else:
            # What waits is the contact.
            await self._wake.everywhere([name])
        self._follow_up.begin()
        return ResetOutcome.RESET

    def _begin_contact(
        self, name: str, entry: AuditEntry, again_ms: int = _AGAIN_AFTER_MS
    ) -> None:
        if self._waiting_contacts >= limits.WAITING_CONTACTS:
            logger.warning(
                "%s destinations that were reset wait to be contacted: %s is not",
                limits.WAITING_CONTACTS,
                bounded(name),
            )
            return
        self._waiting_contacts += 1
        self._homeserver.run_in_background(
            "federation_admin_contact", self._contact, name, entry, again_ms
        )

    async def _contact(self, name: str, entry: AuditEntry, again_ms: int) -> None:
        """Contact a destination, of which Synapse's retry limiter is to know.

        Nobody is woken before: two transactions at once would be one too many.
        """
        try:
            contact = await self._homeserver.await_database(
                lambda: self._contact_in_turn(name)
            )
        finally:
            self._waiting_contacts -= 1
        failure = contact.failure
        logger.info(
            "Contact with %s after the reset of its connection %s",
            bounded(name),
            f"failed: {message_of(failure)}" if failure else "succeeded",
        )
        if failure is None:
            await self._wake.everywhere([name])
        await self._follow_up.contacted(entry, contact)
        if failure is None or again_ms > _LAST_AFTER_MS:
            return
        if failure.is_ours and failure.reason is not Reason.OUT_OF_RESOURCES:
            return
        # Synapse writes that it fails, once: not where the database is away just then.
        await self._homeserver.sleep_ms(again_ms)
        row = await self._homeserver.await_database(
            lambda: self._destinations.get(name)
        )
        # Nor is it there if it was forgotten meanwhile: a failure would bring it back.
        if row is not None and not row.is_failing:
            self._begin_contact(name, entry, again_ms * 2)

    async def _contact_in_turn(self, name: str) -> Contact:
        """Contact once; others do not wait for its place while the database is away."""
        homeserver = self._homeserver
        async with self._slots(""), self._contacts_with(name):
            # If another attempt has put it into backoff by now, ask all the same: a
            # failure then leaves that as it is. Else it has to lead to one.
            backs_off = await homeserver.retry_timings.is_backing_off(name)
            request = homeserver.federation.contact(
                name,
                timeout_ms=self._timeout_ms,
                ignore_backoff=backs_off,
                is_ours=is_ours,
            )
            return await contact_of(homeserver, request)

    async def _clear(
        self, destination: Destination, entry: AuditEntry, outcome: str
    ) -> tuple[AuditEntry, bool]:
        """Clear the timings and write that it was done, in one transaction.

        They are cleared even if that cannot be written: v1 needs no tables of ours.

        Returns:
            The entry as it is written, or kept in memory if it cannot be, and whether
            anything waits that Synapse sends once it is woken.
        """
        homeserver, name = self._homeserver, destination.destination

        def clear_txn(
            txn: LoggingTransaction, *, writes: bool
        ) -> tuple[AuditEntry, Waiting]:
            # As it is now: an earlier reset may just have got its own value back.
            row = self._destinations.get_txn(txn, name) or destination
            homeserver.retry_timings.clear_txn(txn, name, says_so=writes)
            waiting = waiting_txn(txn, [name])[name]
            details = self._follow_up.details_of(row.failure_ts, waiting)
            cleared = self._audit.ended(entry, outcome, details)
            if writes:
                self._audit.insert_txn(txn, [cleared])
            return cleared, waiting

        desc = "federation_admin_clear_retry_timings"
        try:
            cleared, waiting = await self._audit.tables.run(
                desc, partial(clear_txn, writes=True)
            )
        except CancelledError:
            raise
        except Exception as e:
            cleared, waiting = await homeserver.run_db_interaction(
                desc, partial(clear_txn, writes=False)
            )
            self._audit.log_unwritten(cleared, e)
            if outcome == AUDIT_PENDING:
                self._follow_up.keep(cleared)
        return cleared, waiting.is_any


def _waits_for_contact(entry: AuditEntry) -> bool:
    """Tell whether a contact is what an entry waits for; of an odd one, it is not."""
    try:
        waiting = Waiting(**entry.details["waiting"])
    except (KeyError, TypeError):
        return False
    is_reset = entry.action == AuditAction.RESET.value
    return is_reset and not waiting.is_any and not entry.details.get("contact")
