# SPDX-License-Identifier: Apache-2.0
"""What Synapse's store keeps of failing destinations, and its caches of that."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import attr
from synapse.module_api import LoggingTransaction

if TYPE_CHECKING:
    from synapse.server import HomeServer
    from synapse.storage.databases.main.transactions import DestinationRetryTimings

    from synapse_federation_admin.homeserver.database import Database


# Is given the transaction, and the destinations.
BeforeClearing = Callable[[LoggingTransaction, Sequence[str]], None]


def _do_nothing(_txn: LoggingTransaction, _destinations: Sequence[str]) -> None:
    pass


@attr.s(slots=True, frozen=True, auto_attribs=True)
class BeforeReset:
    """What a destination's row said before its retry timings were cleared.

    Attributes:
        failure_ts: Since when it was failing, in ms; None: that is not to be restored.
        delivered: Its `last_successful_stream_ordering`.
    """

    failure_ts: int | None
    delivered: int | None


class RetryTimings:
    """Reads and changes retry timings so that every process knows of it.

    Attributes:
        before_clearing: Called in each transaction before it clears those of some
            destinations.
    """

    def __init__(self, hs: "HomeServer", database: "Database") -> None:
        self.before_clearing: BeforeClearing = _do_nothing
        self._store = hs.get_datastores().main
        self._run_db_interaction = database.run_db_interaction

    async def is_backing_off(self, destination: str) -> bool:
        """Tell whether this process believes a destination to be failing.

        That is what Synapse acts on: a cache of the row, which a change of the row that
        is not Synapse's own does not invalidate.
        """
        return await self._known(destination) is not None

    async def failing_since_ts(self, destination: str) -> int | None:
        """Return since when this process believes a destination to be failing.

        None: it does not believe so. Mostly that is known at once, from the same cache.
        """
        timings = await self._known(destination)
        return timings.failure_ts if timings else None

    async def _known(self, destination: str) -> "DestinationRetryTimings | None":
        return await self._store.get_destination_retry_timings(destination)  # type: ignore[call-arg,arg-type,misc]  # Synapse's own mypy plugin knows how it is called

    def clear_txn(
        self, txn: LoggingTransaction, destination: str, *, says_so: bool = True
    ) -> None:
        """Set a destination's retry timings to "not failing", in a transaction.

        The caches of every process are told once it is committed. Synapse's
        set_destination_retry_timings runs the same in autocommit mode: if telling the
        caches fails there, the row is cleared all the same.

        Args:
            txn: The transaction.
            destination: The destination's exact name.
            says_so: Call `before_clearing`, which may need this module's own tables.
        """
        if says_so:
            self.before_clearing(txn, [destination])
        self._store._set_destination_retry_timings_txn(txn, destination, None, 0, 0)

    def invalidate_txn(
        self, txn: LoggingTransaction, destinations: Collection[str]
    ) -> None:
        """Have every process read some destinations' retry timings anew.

        Once the transaction is committed, in which they are changed.
        """
        self._store._invalidate_cache_and_stream_bulk(
            txn,
            self._store.get_destination_retry_timings,
            [(destination,) for destination in destinations],
        )

    async def restore_failure_ts(
        self, before: Mapping[str, BeforeReset]
    ) -> dict[str, bool]:
        """Give destinations that are failing the time since when they really fail.

        Where a destination is not failing, or its `failure_ts` is already as early,
        nothing is changed; nor where its `last_successful_stream_ordering` is another
        one: it got through in between, or its row is a new one, and so is the failure.
        Synapse's own store has no method for this: its upsert ignores a change of
        `failure_ts` alone.

        Args:
            before: By destination, what its row said when it was reset.

        Returns:
            Those of the destinations that are failing, and for each of them whether
            anything has been delivered to it since.
        """

        def restore_failure_ts_txn(txn: LoggingTransaction) -> dict[str, bool]:
            txn.execute(
                "SELECT destination, failure_ts, last_successful_stream_ordering "  # noqa: S608
                "FROM destinations "
                f"WHERE destination IN ({', '.join('?' * len(before))}) "
                "AND retry_last_ts > 0 ORDER BY destination",
                tuple(before),
            )
            failing: dict[str, bool] = {}
            restored: list[str] = []
            for destination, failure_ts, delivered in txn.fetchall():
                then = before[destination]
                failing[destination] = (delivered or 0) > (then.delivered or 0)
                if (
                    then.failure_ts is None
                    or delivered != then.delivered
                    or (failure_ts and failure_ts <= then.failure_ts)
                ):
                    continue
                # If somebody else has changed the row by now, PostgreSQL refuses this,
                # and Synapse runs the whole transaction again.
                txn.execute(
                    "UPDATE destinations SET failure_ts = ? WHERE destination = ?",
                    (then.failure_ts, destination),
                )
                restored.append(destination)
            self.invalidate_txn(txn, restored)
            return failing

        if not before:
            return {}
        return await self._run_db_interaction(
            "federation_admin_restore_failure_ts", restore_failure_ts_txn
        )
