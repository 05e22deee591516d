# SPDX-License-Identifier: Apache-2.0
"""Which destinations were tried lately, and what those that fail have in common.

Read from the tables of failures, outages, successes and addresses.
"""

from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from typing import Any

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.storage.outages import OPEN_OUTAGES
from synapse_federation_admin.storage.records import (
    ADDRESSES,
    FAILURES,
    SUCCESS_EVERY_MS,
    SUCCESSES,
)
from synapse_federation_admin.storage.sql import FAILING

_DAY_MS = 86_400_000

# Of how many destinations a cause is shared, at least.
_LEAST = 2

# Of how many destinations, the last ones, it is seen where they lead.
_CANDIDATES = 2000

# Failures f, with the outage o and the row d, of what fails with that kind now; and
# whether it ever worked.
_FAILING_NOW = f"""
    JOIN {OPEN_OUTAGES} AS o ON o.destination = f.destination AND o.last_kind = f.kind
    JOIN destinations AS d ON d.destination = f.destination AND {FAILING}
"""
_WORKED = f"""(
    d.last_successful_stream_ordering IS NOT NULL OR EXISTS (
        SELECT 1 FROM {SUCCESSES} AS s WHERE s.destination = f.destination
    )
)"""  # noqa: S608


class CauseType(Enum):
    """What failures may have in common."""

    KIND = "kind"
    ADDRESS = "address"
    ISSUER = "issuer"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SharedCause:
    """What several destinations that fail have in common.

    Attributes:
        type: What of them: the `kind` of the failure, the IP `address`, or the `issuer`
            of certificates that are not trusted.
        value: That kind, address or issuer.
        destinations: How many of those that fail.
        began: How many of them began to fail in that time.
        worked: How many of the latter had worked before.
    """

    type: CauseType
    value: str
    destinations: int
    began: int
    worked: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RecentAttempts:
    """The destinations that were tried in the time up to now.

    Attributes:
        window_ms: How long that is.
        failing: How many of them fail.
        began: How many of those began to fail in that time.
        worked: How many of the latter had worked before.
        recent: How many of those that fail began to within a day, and had worked.
        succeeded: How many do not fail.
        ever_succeeded: Whether any destination has ever answered, as far as is known.
        looked: Of how many that began to fail it is known where they lead.
        causes: What those that fail have in common, the most common first.
    """

    window_ms: int
    failing: int
    began: int
    worked: int
    recent: int
    succeeded: int
    ever_succeeded: bool
    looked: int
    causes: tuple[SharedCause, ...]

    @property
    def total(self) -> int:
        """How many were tried."""
        return self.failing + self.succeeded

    @property
    def share(self) -> float | None:
        """The share that fails, from 0 to 1; None if none was tried."""
        return round(self.failing / self.total, 4) if self.total else None

    def causes_of(self, type_: CauseType) -> list[SharedCause]:
        """Return the causes of a type."""
        return [cause for cause in self.causes if cause.type is type_]


def recent_attempts_txn(
    txn: LoggingTransaction, window_ms: int, now_ts: int, *, is_postgres: bool
) -> RecentAttempts:
    """Read what was tried in some time up to now."""
    since_ts = now_ts - window_ms
    txn.execute(
        "SELECT f.kind, f.issuer, COUNT(*), "  # noqa: S608
        "COUNT(*) FILTER (WHERE o.start_ts >= ?), "
        f"COUNT(*) FILTER (WHERE o.start_ts >= ? AND {_WORKED}), "
        f"COUNT(*) FILTER (WHERE o.start_ts >= ? AND {_WORKED}) "
        f"FROM {FAILURES} AS f {_FAILING_NOW} "
        "WHERE f.last_ts >= ? GROUP BY f.kind, f.issuer",
        (since_ts, since_ts, now_ts - _DAY_MS, since_ts),
    )
    groups = txn.fetchall()
    # Of each of the four counts, all groups together.
    failing, began, worked, recent = (
        sum(group[place] for group in groups) for place in range(2, 6)
    )
    looked, addresses = _addresses_txn(txn, since_ts, is_postgres)
    txn.execute(
        f"SELECT COUNT(*), EXISTS (SELECT 1 FROM {SUCCESSES} AS e) "  # noqa: S608
        f"FROM {SUCCESSES} AS s "
        f"LEFT JOIN destinations AS d ON d.destination = s.destination AND {FAILING} "
        "WHERE s.last_ts >= ? AND d.destination IS NULL",
        (since_ts - SUCCESS_EVERY_MS,),
    )
    ((succeeded, ever_succeeded),) = txn.fetchall()
    kinds = _most_common((kind, *counts) for kind, _, *counts in groups)
    issuers = _most_common((issuer, *counts) for _, issuer, *counts in groups if issuer)
    return RecentAttempts(
        window_ms,
        failing,
        began,
        worked,
        recent,
        succeeded=succeeded,
        ever_succeeded=bool(ever_succeeded),
        looked=looked,
        causes=(
            *(SharedCause(CauseType.KIND, *kind) for kind in kinds),
            *(SharedCause(CauseType.ISSUER, *i) for i in issuers if i[1] >= _LEAST),
            *(SharedCause(CauseType.ADDRESS, *address) for address in addresses),
        ),
    )


def _most_common(groups: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Add up what groups of one value have; return the most common values first.

    Args:
        groups: Each a value, how many fail with it, how many of these began to in that
            time, how many of the latter had worked, and what is left out.

    Returns:
        The values and these three counts.
    """
    added: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for value, *counts in groups:
        added[value] = [
            one + more for one, more in zip(added[value], counts, strict=False)
        ]
    most = sorted(added.items(), key=lambda item: (-item[1][0], item[0]))
    return [(value, *counts) for value, counts in most[: limits.TOLD_CAUSES]]


def _addresses_txn(
    txn: LoggingTransaction, since_ts: int, is_postgres: bool
) -> tuple[int, list[tuple[Any, ...]]]:
    """Read where those lead that began to fail since a time, as far as is known.

    Returns:
        Of how many that is known; and the addresses, each with how many fail, how many
        of these began to fail since, and how many of the latter had worked.
    """
    each_address = (
        "json_array_elements_text(CAST(a.addresses AS json)) AS each (value)"
        if is_postgres
        else "json_each(a.addresses) AS each"
    )
    source = (
        f"FROM (SELECT destination, addresses FROM {ADDRESSES} AS a "  # noqa: S608
        "ORDER BY looked_ts DESC LIMIT ?) AS a "
        f"JOIN {FAILURES} AS f ON f.destination = a.destination {_FAILING_NOW}"
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
        (since_ts, since_ts, _CANDIDATES, since_ts, limits.TOLD_CAUSES),
    )
    return looked, txn.fetchall()


def not_looked_up_txn(
    txn: LoggingTransaction, since_ts: int, looked_ts: int, limit: int
) -> list[str]:
    """Return some destinations of which it is to be found out where they lead.

    Args:
        txn: The transaction.
        since_ts: Those that began to fail since.
        looked_ts: Not those that were looked up since.
        limit: The most to return.
    """
    txn.execute(
        "SELECT f.destination FROM ("  # noqa: S608
        f"SELECT destination, kind, last_ts FROM {FAILURES} AS f "
        f"WHERE last_ts >= ? ORDER BY last_ts DESC LIMIT ?) AS f {_FAILING_NOW} "
        f"WHERE o.start_ts >= ? AND NOT EXISTS (SELECT 1 FROM {ADDRESSES} AS a "
        "WHERE a.destination = f.destination AND a.looked_ts > ?) "
        "ORDER BY f.last_ts DESC LIMIT ?",
        (since_ts, _CANDIDATES, since_ts, looked_ts, limit),
    )
    return [name for (name,) in txn.fetchall()]
