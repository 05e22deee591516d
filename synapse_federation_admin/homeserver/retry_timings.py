# SPDX-License-Identifier: Apache-2.0
"""What Synapse's store keeps of failing destinations, and its caches of that."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from synapse.module_api import LoggingTransaction

if TYPE_CHECKING:
    from synapse.server import HomeServer
    from synapse.storage.databases.main.transactions import DestinationRetryTimings


# Is given the transaction, and the destinations.
BeforeClearing = Callable[[LoggingTransaction, Sequence[str]], None]


def _do_nothing(*_: object) -> None:
    pass


class RetryTimings:
    """Reads and changes retry timings so that every process knows of it.

    Attributes:
        before_clearing: Called in each transaction before it clears those of some
            destinations.
        on_change: Called once some were changed here.
    """

    def __init__(self, hs: "HomeServer") -> None:
        self.before_clearing: BeforeClearing = _do_nothing
        self.on_change: Callable[[], None] = _do_nothing
        self._store = hs.get_datastores().main

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
        txn.call_after(self.on_change)

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
        txn.call_after(self.on_change)

    def failing_txn(
        self, txn: LoggingTransaction, destinations: Collection[str]
    ) -> dict[str, int]:
        """Return which of some destinations fail, and when each has failed last."""
        txn.execute(
            "SELECT destination, retry_last_ts FROM destinations "  # noqa: S608
            f"WHERE destination IN ({', '.join('?' * len(destinations))}) "
            "AND retry_last_ts > 0",
            tuple(destinations),
        )
        return dict(txn.fetchall())

    def restore_failure_ts_txn(
        self, txn: LoggingTransaction, since: Mapping[str, int]
    ) -> None:
        """Give destinations that are failing the time since when they really fail.

        Where `failure_ts` is as early already, nothing is changed. Synapse's own store
        has no method for this: its upsert ignores a change of `failure_ts` alone. If
        somebody else has changed the row by now, PostgreSQL refuses this, and Synapse
        runs the whole transaction again.

        Args:
            txn: The transaction.
            since: By destination, since when it fails, in ms.
        """
        txn.execute_batch(
            "UPDATE destinations SET failure_ts = ? "
            "WHERE destination = ? AND retry_last_ts > 0 AND failure_ts > ?",
            [(ts, name, ts) for name, ts in sorted(since.items())],
        )
        self.invalidate_txn(txn, since)
