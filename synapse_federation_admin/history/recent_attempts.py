# SPDX-License-Identifier: Apache-2.0
"""Finds out which destinations were tried lately, and what those that fail share."""

import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import FAILING
from synapse_federation_admin.history.chunking import pieces_since
from synapse_federation_admin.history.correlation import outlook
from synapse_federation_admin.history.values import (
    SUCCESS_EVERY_MS,
    CauseType,
    Outlook,
    SharedCause,
    Tried,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql

T = TypeVar("T")

logger = logging.getLogger(__name__)

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_LATELY_MS = 900_000

# What one transaction looks at on SQLite: some 10 ms.
_ROWS = 2000

# How many causes of a type are told, and of how many destinations one is shared.
_MAX_CAUSES = 10
_LEAST = 2

# If so many destinations began to fail within the hour, it is worth to look where they
# lead; how many at once, of how many, how often, and how long that is good for.
_WORTH_LOOKING = 5
_LOOKED_AT_ONCE = 50
_CANDIDATES = 2000
_LOOK_EVERY_MS = 60_000
_FIRST_MS = 4000
_LOOK_AGAIN_MS = 6 * _HOUR_MS

# Finds the addresses of destinations; those of which there are none are left out.
FindAddresses = Callable[[Sequence[str]], Awaitable[dict[str, list[str]]]]

# Failures f, with the outage o and the row d, of what fails with that kind now; and
# whether it ever worked.
_FAILING_NOW = f"""
    JOIN federation_admin_outages AS o ON o.destination = f.destination
        AND o.end_ts IS NULL AND o.last_kind = f.kind
    JOIN destinations AS d ON d.destination = f.destination AND {FAILING}
"""
_WORKED = """(
    d.last_successful_stream_ordering IS NOT NULL OR EXISTS (
        SELECT 1 FROM federation_admin_successes AS s
        WHERE s.destination = f.destination
    )
)"""


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Share:
    """How many failed with one kind and issuer; see `SharedCause` and `Tried`."""

    kind: str
    issuer: str
    failing: int
    began: int
    worked: int
    recent: int


class TriedStore:
    """Knows which were tried. Every method raises what the database raises."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, find_addresses: FindAddresses
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._find_addresses = find_addresses

    def start(self) -> None:
        """Begin to look where servers lead that began to fail together.

        If this process runs background tasks.
        """
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_addresses",
                _LOOK_EVERY_MS,
                self.look_up,
                first_after_ms=_FIRST_MS,
            )

    async def outlook(self) -> Outlook:
        """Return the outlook; computed once for all who ask at the same time."""
        return await self._homeserver.single_flight.run(
            "federation_admin_outlook", (), self._outlook
        )

    async def _outlook(self) -> Outlook:
        return outlook(await self._tried(_HOUR_MS), await self._tried(_LATELY_MS))

    async def _tried(self, window_ms: int) -> Tried:
        now_ts = self._homeserver.now_ms()
        since_ts = now_ts - window_ms
        shares: list[_Share] = []
        async for piece in self._pieces("federation_admin_failures", since_ts):
            shares += await self._run(
                lambda txn, piece=piece: _shares_txn(  # type: ignore[misc]
                    txn, piece, since_ts, now_ts - _DAY_MS
                )
            )
        succeeded = 0
        async for piece in self._pieces(
            "federation_admin_successes", since_ts - SUCCESS_EVERY_MS
        ):
            succeeded += await self._run(
                lambda txn, piece=piece: _succeeded_txn(txn, piece)  # type: ignore[misc]
            )
        is_postgres = self._homeserver.is_postgres
        looked = 0
        addresses: list[SharedCause] = []
        if shares:
            looked, addresses = await self._run(
                lambda txn: _addresses_txn(txn, since_ts, is_postgres)
            )
        return Tried(
            window_ms,
            failing=sum(share.failing for share in shares),
            began=sum(share.began for share in shares),
            worked=sum(share.worked for share in shares),
            recent=sum(share.recent for share in shares),
            succeeded=succeeded,
            ever_succeeded=await self._run(_ever_succeeded_txn),
            looked=looked,
            causes=(
                *_causes_in(shares, CauseType.KIND),
                *_causes_in(shares, CauseType.ISSUER),
                *addresses,
            ),
        )

    async def _pieces(self, table: str, since_ts: int) -> AsyncIterator[Sql]:
        """Yield conditions that each hold for some of the rows since a time."""
        if self._homeserver.is_postgres:
            yield Sql("last_ts >= ?", (since_ts,))
            return
        source = f"{table} WHERE TRUE"
        async for piece in pieces_since(self._run, source, "last_ts", since_ts, _ROWS):
            yield piece

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._tables.run("federation_admin_outlook", func)

    async def look_up(self) -> None:
        """Find out where destinations lead that began to fail together.

        On the process that runs background tasks, now and then.
        """
        now_ts = self._homeserver.now_ms()
        if (await self._tried(_HOUR_MS)).began < _WORTH_LOOKING:
            return
        names = await self._tables.run(
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


def _shares_txn(
    txn: LoggingTransaction, piece: Sql, since_ts: int, recent_ts: int
) -> list[_Share]:
    txn.execute(
        "SELECT f.kind, f.issuer, COUNT(*), "  # noqa: S608
        "COUNT(*) FILTER (WHERE o.start_ts >= ?), "
        f"COUNT(*) FILTER (WHERE o.start_ts >= ? AND {_WORKED}), "
        f"COUNT(*) FILTER (WHERE o.start_ts >= ? AND {_WORKED}) "
        f"FROM federation_admin_failures AS f {_FAILING_NOW} "
        f"WHERE {piece.text} GROUP BY f.kind, f.issuer",
        (since_ts, since_ts, recent_ts, *piece.args),
    )
    return [_Share(*row) for row in txn.fetchall()]


def _succeeded_txn(txn: LoggingTransaction, piece: Sql) -> int:
    txn.execute(
        "SELECT COUNT(*) FROM federation_admin_successes AS x "  # noqa: S608
        "LEFT JOIN destinations AS d ON d.destination = x.destination "
        f"AND {FAILING} WHERE {piece.text} AND d.destination IS NULL",
        piece.args,
    )
    ((count,),) = txn.fetchall()
    return int(count)


def _ever_succeeded_txn(txn: LoggingTransaction) -> bool:
    txn.execute("SELECT 1 FROM federation_admin_successes LIMIT 1")
    return txn.fetchone() is not None


def _unlooked_txn(txn: LoggingTransaction, now_ts: int) -> list[str]:
    """Return some destinations of which it is to be found out where they lead."""
    since_ts = now_ts - _HOUR_MS
    txn.execute(
        "SELECT f.destination FROM ("  # noqa: S608
        "SELECT destination, kind, last_ts FROM federation_admin_failures "
        f"WHERE last_ts >= ? ORDER BY last_ts DESC LIMIT ?) AS f {_FAILING_NOW} "
        "WHERE o.start_ts >= ? "
        "AND NOT EXISTS (SELECT 1 FROM federation_admin_addresses AS a "
        "WHERE a.destination = f.destination AND a.looked_ts > ?) "
        "ORDER BY f.last_ts DESC LIMIT ?",
        (
            *(since_ts, _CANDIDATES, since_ts),
            *(now_ts - _LOOK_AGAIN_MS, _LOOKED_AT_ONCE),
        ),
    )
    return [name for (name,) in txn.fetchall()]


def _causes_in(found: Sequence[_Share], type_: CauseType) -> list[SharedCause]:
    """Return the causes of a type, what most fail for first."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for share in found:
        value = share.kind if type_ is CauseType.KIND else share.issuer
        for place, count in enumerate((share.failing, share.began, share.worked)):
            counts[value][place] += count
    counts.pop("", None)
    least = 1 if type_ is CauseType.KIND else _LEAST
    most = sorted(counts, key=lambda value: (-counts[value][0], value))[:_MAX_CAUSES]
    return [
        SharedCause(type_, value, *counts[value])
        for value in most
        if counts[value][0] >= least
    ]


def _addresses_txn(
    txn: LoggingTransaction, since_ts: int, is_postgres: bool
) -> tuple[int, list[SharedCause]]:
    """Return of how many that began to fail it is known where they lead, and where."""
    each_address = (
        "json_array_elements_text(CAST(a.addresses AS json)) AS each (value)"
        if is_postgres
        else "json_each(a.addresses) AS each"
    )
    source = (
        "FROM (SELECT destination, addresses FROM federation_admin_addresses "  # noqa: S608
        "ORDER BY looked_ts DESC LIMIT ?) AS a "
        "JOIN federation_admin_failures AS f ON f.destination = a.destination "
        f"{_FAILING_NOW}"
    )
    txn.execute(
        f"SELECT COUNT(*) {source} WHERE f.last_ts >= ? AND o.start_ts >= ?",
        (_CANDIDATES, since_ts, since_ts),
    )
    ((looked,),) = txn.fetchall()
    txn.execute(
        "SELECT each.value, COUNT(*), COUNT(*) FILTER (WHERE o.start_ts >= ?), "
        f"COUNT(*) FILTER (WHERE o.start_ts >= ? AND {_WORKED}) "
        f"{source} CROSS JOIN {each_address} WHERE f.last_ts >= ? "
        f"GROUP BY each.value HAVING COUNT(*) >= {_LEAST} ORDER BY 2 DESC, 1 LIMIT ?",
        (since_ts, since_ts, _CANDIDATES, since_ts, _MAX_CAUSES),
    )
    return looked, [SharedCause(CauseType.ADDRESS, *row) for row in txn.fetchall()]
