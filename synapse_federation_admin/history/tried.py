# SPDX-License-Identifier: Apache-2.0
"""Finds out which destinations were tried lately, and what those that fail share."""

import json
import logging
from collections.abc import Awaitable, Callable, Sequence

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import FAILING
from synapse_federation_admin.history.outlook import outlook
from synapse_federation_admin.history.recorder import SUCCESS_EVERY_MS
from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.models import CauseType, Outlook, SharedCause, Tried
from synapse_federation_admin.tables import Tables

logger = logging.getLogger(__name__)

_HOUR_MS = 3_600_000
_LATELY_MS = 900_000

# How many causes of a type are told.
_MAX_CAUSES = 10

# If so many destinations began to fail within the hour, it is worth to look where they
# lead; how many at once, and how long what was found is good for.
_WORTH_LOOKING = 5
_LOOKED_AT_ONCE = 50
_LOOK_AGAIN_MS = 6 * _HOUR_MS

# Finds the addresses of destinations; those of which there are none are left out.
FindAddresses = Callable[[Sequence[str]], Awaitable[dict[str, list[str]]]]

# Those that failed when they were last tried, since a time. Twice a parameter.
_LATELY_FAILED = f"""
    FROM federation_admin_failures AS f
    JOIN federation_admin_outages AS o ON o.destination = f.destination
        AND o.end_ts IS NULL AND o.last_kind = f.kind
    JOIN destinations AS d ON d.destination = f.destination
    WHERE f.last_ts >= ? AND {FAILING}
"""
_BEGAN = "COUNT(*) FILTER (WHERE o.start_ts >= ?)"


class TriedStore:
    """Knows which were tried. Every method raises what the database raises."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, find_addresses: FindAddresses
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._find_addresses = find_addresses

    async def outlook(self) -> Outlook:
        """Return the outlook; computed once for all who ask at the same time."""
        return await self._homeserver.compute_once(("outlook",), self._outlook)

    async def _outlook(self) -> Outlook:
        return outlook(await self._tried(_HOUR_MS), await self._tried(_LATELY_MS))

    async def _tried(self, window_ms: int) -> Tried:
        await self._tables.ready()
        since_ts = self._homeserver.now_ms() - window_ms
        is_postgres = self._homeserver.is_postgres

        def tried_txn(txn: LoggingTransaction) -> Tried:
            txn.execute(
                f"SELECT COUNT(*), {_BEGAN} {_LATELY_FAILED}",
                (since_ts, since_ts),
            )
            ((failing, began),) = txn.fetchall()
            txn.execute(
                "SELECT COUNT(*) FROM federation_admin_successes AS s "  # noqa: S608
                "LEFT JOIN destinations AS d ON d.destination = s.destination "
                f"AND {FAILING} WHERE s.last_ts >= ? AND d.destination IS NULL",
                (since_ts - SUCCESS_EVERY_MS,),
            )
            ((succeeded,),) = txn.fetchall()
            causes: list[SharedCause] = []
            if failing:
                for type_ in CauseType:
                    causes += _causes(txn, type_, since_ts, is_postgres)
            return Tried(window_ms, failing, began, succeeded, tuple(causes))

        return await self._homeserver.run_db_interaction(
            "federation_admin_outlook", tried_txn
        )

    async def look_up(self) -> None:
        """Find out where destinations lead that began to fail together.

        On the process that runs background tasks, now and then.
        """
        await self._tables.ready()
        now_ts = self._homeserver.now_ms()
        names = await self._homeserver.run_db_interaction(
            "federation_admin_addresses", lambda txn: _unlooked_txn(txn, now_ts)
        )
        if not names:
            return
        found = await self._find_addresses(names)
        rows = [(name, now_ts, json.dumps(found.get(name, []))) for name in names]
        await self._homeserver.run_db_interaction(
            "federation_admin_addresses",
            lambda txn: txn.execute_batch(
                "INSERT INTO federation_admin_addresses "
                "(destination, looked_ts, addresses) VALUES (?, ?, ?) "
                "ON CONFLICT (destination) DO UPDATE SET "
                "looked_ts = EXCLUDED.looked_ts, addresses = EXCLUDED.addresses",
                rows,
            ),
        )


def _unlooked_txn(txn: LoggingTransaction, now_ts: int) -> list[str]:
    """Return some destinations of which it is to be found out where they lead."""
    since_ts = now_ts - _HOUR_MS
    txn.execute(
        f"SELECT {_BEGAN} {_LATELY_FAILED}",
        (since_ts, since_ts),
    )
    ((began,),) = txn.fetchall()
    if began < _WORTH_LOOKING:
        return []
    txn.execute(
        f"SELECT f.destination {_LATELY_FAILED} AND o.start_ts >= ? "  # noqa: S608
        "AND NOT EXISTS (SELECT 1 FROM federation_admin_addresses AS a "
        "WHERE a.destination = f.destination AND a.looked_ts > ?) "
        "ORDER BY f.last_ts DESC LIMIT ?",
        (since_ts, since_ts, now_ts - _LOOK_AGAIN_MS, _LOOKED_AT_ONCE),
    )
    return [name for (name,) in txn.fetchall()]


def _causes(
    txn: LoggingTransaction, type_: CauseType, since_ts: int, is_postgres: bool
) -> list[SharedCause]:
    each_address = (
        "json_array_elements_text(CAST(a.addresses AS json)) AS each (value)"
        if is_postgres
        else "json_each(a.addresses) AS each"
    )
    value, more = {
        CauseType.KIND: ("f.kind", ""),
        CauseType.ISSUER: ("f.issuer", "AND f.issuer <> ''"),
        CauseType.ADDRESS: ("each.value", ""),
    }[type_]
    source = _LATELY_FAILED
    if type_ is CauseType.ADDRESS:
        source = source.replace(
            "WHERE",
            "JOIN federation_admin_addresses AS a ON a.destination = f.destination "
            f"CROSS JOIN {each_address} WHERE",
        )
    least = 1 if type_ is CauseType.KIND else 2
    txn.execute(
        f"SELECT {value}, COUNT(*), {_BEGAN} {source} {more} "
        f"GROUP BY {value} HAVING COUNT(*) >= {least} ORDER BY 2 DESC, 1 LIMIT ?",
        (since_ts, since_ts, _MAX_CAUSES),
    )
    return [SharedCause(type_, *row) for row in txn.fetchall()]
