# SPDX-License-Identifier: Apache-2.0
"""v1's `reset_connection`: clear the retry timings, wake, and contact."""

from functools import partial

from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin.config import FederationAdminConfig
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import Actor, AuditAction, AuditEntry
from synapse_federation_admin.storage.outcomes import ResetOutcome


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
        self._lock = homeserver.linearizer("federation_admin_reset")

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
            entry = self._audit.entry(
                AuditAction.RESET,
                actor,
                destination=name,
                outcome=ResetOutcome.RESET.value,
                details={"failure_ts": destination.failure_ts},
            )
            await self._clear(name, entry)

        # A row may bear a name that is no server's, from an event or a message that was
        # addressed to one. There is nobody to be woken or contacted.
        if self._homeserver.is_server_name(name):
            if self._contacts:
                self._follow_up.start(
                    name,
                    failing_since_ts=destination.failure_ts,
                    delivered=destination.last_successful_stream_ordering,
                    entry=entry,
                )
            await self._wake.everywhere([name])
        return ResetOutcome.RESET

    async def _clear(self, name: str, entry: AuditEntry) -> None:
        """Clear the timings and write that it was done, in one transaction.

        They are cleared even if that cannot be written: v1 needs no tables of ours.
        """
        clear_txn = partial(self._homeserver.retry_timings.clear_txn, destination=name)

        def clear_and_write_txn(txn: LoggingTransaction) -> None:
            clear_txn(txn)
            self._audit.insert_txn(txn, [entry])

        desc = "federation_admin_clear_retry_timings"
        try:
            await self._audit.run(desc, clear_and_write_txn)
        except CancelledError:
            raise
        except Exception as e:
            await self._homeserver.run_db_interaction(
                desc, partial(clear_txn, says_so=False)
            )
            self._audit.log_unwritten(entry, e)
