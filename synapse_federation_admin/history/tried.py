# SPDX-License-Identifier: Apache-2.0
"""Finds out which destinations were tried lately, and what those that fail share."""

import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import attr
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

# How many causes of a type are told, and of how many destinations one is shared.
_MAX_CAUSES = 10
_LEAST = 2

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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Share:
    """How many failed with one kind and issuer, and how many of them began to."""

    kind: str
    issuer: str
    failing: int
    began: int


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
            # Each of them is looked at once, and not for each type of cause.
            txn.execute(
                f"SELECT f.kind, f.issuer, COUNT(*), {_BEGAN} {_LATELY_FAILED} "
                "GROUP BY f.kind, f.issuer",
                (since_ts, since_ts),
            )
            found = [_Share(*row) for row in txn.fetchall()]
            failing = sum(share.failing for share in found)
            began = sum(share.began for share in found)
            txn.execute(
                "SELECT COUNT(*) FROM federation_admin_successes AS s "  # noqa: S608
                "LEFT JOIN destinations AS d ON d.destination = s.destination "
                f"AND {FAILING} WHERE s.last_ts >= ? AND d.destination IS NULL",
                (since_ts - SUCCESS_EVERY_MS,),
            )
            ((succeeded,),) = txn.fetchall()
            causes: list[SharedCause] = []
            if failing:
                causes += _causes_in(found, CauseType.KIND)
                causes += _causes_in(found, CauseType.ISSUER)
                causes += _addresses(txn, since_ts, is_postgres)
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


def _causes_in(found: Sequence[_Share], type_: CauseType) -> list[SharedCause]:
    """Return the causes of a type, what most fail for first."""
    failing: dict[str, int] = defaultdict(int)
    began: dict[str, int] = defaultdict(int)
    for share in found:
        value = share.kind if type_ is CauseType.KIND else share.issuer
        failing[value] += share.failing
        began[value] += share.began
    failing.pop("", None)
    least = 1 if type_ is CauseType.KIND else _LEAST
    most = sorted(failing, key=lambda value: (-failing[value], value))[:_MAX_CAUSES]
    return [
        SharedCause(type_, value, failing[value], began[value])
        for value in most
        if failing[value] >= least
    ]


def _addresses(
    txn: LoggingTransaction, since_ts: int, is_postgres: bool
) -> list[SharedCause]:
    each_address = (
        "json_array_elements_text(CAST(a.addresses AS json)) AS each (value)"
        if is_postgres
        else "json_each(a.addresses) AS each"
    )
    source = _LATELY_FAILED.replace(
        "WHERE",
        "JOIN federation_admin_addresses AS a ON a.destination = f.destination "
        f"CROSS JOIN {each_address} WHERE",
    )
    txn.execute(
        f"SELECT each.value, COUNT(*), {_BEGAN} {source} "
        f"GROUP BY each.value HAVING COUNT(*) >= {_LEAST} ORDER BY 2 DESC, 1 LIMIT ?",
        (since_ts, since_ts, _MAX_CAUSES),
    )
    return [SharedCause(CauseType.ADDRESS, *row) for row in txn.fetchall()]
