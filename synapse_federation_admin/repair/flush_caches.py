# SPDX-License-Identifier: Apache-2.0
"""Has every process forget what it keeps in memory of a server.

For one that has moved, or whose well-known file was put right: Synapse keeps the old
answer for a day and longer, also that there is none. Nothing is deleted from tables.
"""

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.wake import tell_all
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.values import (
    AUDIT_FLUSHED,
    AUDIT_FLUSHED_IN_PART,
    Actor,
    AuditAction,
    Told,
)


class FlushCaches:
    """Has processes forget what they keep in memory of a server."""

    def __init__(self, homeserver: Homeserver, audit: Audit) -> None:
        self._homeserver = homeserver
        self._audit = audit
        self._send = homeserver.signal("flush_caches", self._flush)

    async def flush(self, name: str, actor: Actor, reason: str | None) -> Told:
        """Have every process forget what it keeps of a server; return who was told.

        Args:
            name: The server name.
            actor: Who asks for it.
            reason: Why, for the audit.

        Raises:
            Exception: Whatever the database raises; then nothing may have changed.
        """
        # To its end, even if the client goes away.
        return await self._homeserver.run_to_end(
            "federation_admin_flush_caches",
            lambda: self._flush_all(name, actor, reason),
        )

    async def _flush_all(self, name: str, actor: Actor, reason: str | None) -> Told:
        entry = self._audit.entry(
            AuditAction.FLUSH_CACHES, actor, destination=name, reason=reason
        )

        def begin_txn(txn: LoggingTransaction) -> None:
            self._audit.insert_txn(txn, [entry])
            # What processes believe of the backoff, where somebody has changed the row.
            self._homeserver.retry_timings.invalidate_txn(txn, [name])

        await self._audit.tables.run("federation_admin_flush_caches", begin_txn)
        told = await tell_all(self._homeserver, self._send, [name])
        await self._audit.end(
            self._audit.ended(
                entry,
                AUDIT_FLUSHED_IN_PART if told.error else AUDIT_FLUSHED,
                {"told": list(told.names), "note": told.error or ""},
            )
        )
        return told

    def _flush(self, *names: str) -> None:
        for name in names:
            self._homeserver.drop_way(name)
