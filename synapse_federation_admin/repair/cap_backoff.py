# SPDX-License-Identifier: Apache-2.0
"""Shortens backoffs that are longer than what the operator wants by now.

`destination_max_retry_interval` in homeserver.yaml bounds those that Synapse stores
from then on; it does not touch those that are stored already.
"""

from functools import partial

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations import statements
from synapse_federation_admin.destinations.query import FAILING
from synapse_federation_admin.destinations.values import Direction
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import AUDIT_DONE, Actor, AuditAction
from synapse_federation_admin.storage.sql import Sql, where

# How many rows next to each other by name one transaction looks at, and may change.
_WINDOW = 1000

# Between two transactions that have changed something, so that others get their turn.
_PAUSE_MS = 5


class Clamp:
    """Shortens backoffs; one such request at a time in one process."""

    def __init__(self, homeserver: Homeserver, audit: Audit) -> None:
        self._homeserver = homeserver
        self._audit = audit
        self._lock = homeserver.linearizer("federation_admin_clamp")

    async def count(self, longest_ms: int) -> int:
        """Return how many failing destinations have a longer backoff."""
        counts: list[int] = []
        await self._walk(longest_ms, counts, change=False)
        return sum(counts)

    async def clamp(self, longest_ms: int, actor: Actor, *, reason: str | None) -> int:
        """Shorten every longer backoff, and have every process know.

        It goes on to its end, even if nobody waits for it any more.

        Args:
            longest_ms: How long a backoff may be.
            actor: Who asks for it.
            reason: Why, for the audit.

        Returns:
            How many have been shortened. Raises what the database raises; what has been
            shortened by then stays so.
        """
        return await self._homeserver.begin(
            "federation_admin_clamp", partial(self._clamp, longest_ms, actor, reason)
        ).wait()

    async def _clamp(self, longest_ms: int, actor: Actor, reason: str | None) -> int:
        async with self._lock(""):
            entry = self._audit.entry(
                AuditAction.CLAMP,
                actor,
                reason=reason,
                details={"max_retry_interval_ms": longest_ms},
            )
            await self._audit.insert(entry)
            counts: list[int] = []
            try:
                await self._walk(longest_ms, counts, change=True)
            except Exception:
                await self._audit.end_as_failed(entry, {"changed": sum(counts)})
                raise
            changed = sum(counts)
            await self._audit.end(
                self._audit.ended(entry, AUDIT_DONE, {"changed": changed})
            )
            return changed

    async def _walk(self, longest_ms: int, counts: list[int], *, change: bool) -> None:
        """Look at all destinations, some at a time.

        Args:
            longest_ms: How long a backoff may be.
            counts: Is given how many have a longer one, of each piece when it is done.
            change: Whether to shorten it.
        """
        after: str | None = None
        while True:

            def look_txn(
                txn: LoggingTransaction, after: str | None = after
            ) -> tuple[int, str | None]:
                end = statements.name_at(txn, after, Direction.FORWARDS, _WINDOW)
                which = where(
                    [
                        *statements.between(after, end, Direction.FORWARDS),
                        Sql(FAILING),
                        Sql("retry_interval > ?", (longest_ms,)),
                    ]
                )
                txn.execute(
                    f"SELECT destination FROM destinations {which.text}",  # noqa: S608
                    which.args,
                )
                names = [name for (name,) in txn.fetchall()]
                if change and names:
                    txn.execute(
                        "UPDATE destinations SET retry_interval = ? "  # noqa: S608
                        f"{which.text}",
                        (longest_ms, *which.args),
                    )
                    self._homeserver.retry_timings.invalidate_txn(txn, names)
                return len(names), end

            count, after = await self._homeserver.run_db_interaction(
                "federation_admin_clamp", look_txn
            )
            counts.append(count)
            if after is None:
                return
            if change and count:
                await self._homeserver.sleep_ms(_PAUSE_MS)
