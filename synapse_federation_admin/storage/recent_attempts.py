# SPDX-License-Identifier: Apache-2.0
"""Which destinations were tried lately, and whose those are that fail.

Read from the tables of failures, outages, successes and addresses.
"""

import json
from collections import defaultdict
from collections.abc import Mapping

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.storage.outages import OPEN_OUTAGES
from synapse_federation_admin.storage.records import (
    ADDRESSES,
    FAILURES,
    SUCCESS_EVERY_MS,
    SUCCESSES,
)
from synapse_federation_admin.storage.sql import FAILING, Sql, any_of

_DAY_MS = 86_400_000

# Of how many destinations, the last ones, it is seen where they lead.
_CANDIDATES = 2000

# Failures f, with the outage o and the row d, of what fails with that kind now.
_FAILING_NOW = f"""
    JOIN {OPEN_OUTAGES} AS o ON o.destination = f.destination AND o.last_kind = f.kind
    JOIN destinations AS d ON d.destination = f.destination AND {FAILING}
"""

# Whether the success s is of a server that is known for long.
_KNOWN = "s.last_ts - s.first_ts >= ?"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class OwnerAttempts:
    """Those destinations of one owner that were tried and are known for long.

    Attributes:
        began: How many began to fail in that time, by kind.
        recent: How many fail that began to within a day, by kind.
        works: How many do not fail.
        addresses: Where some of them lead, as far as that was looked up.
    """

    began: Mapping[str, int] = attr.Factory(dict)
    recent: Mapping[str, int] = attr.Factory(dict)
    works: int = 0
    addresses: frozenset[str] = frozenset()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RecentAttempts:
    """The destinations that were tried in the time up to now.

    Known for long are those that had answered, in the end, for long enough.

    Attributes:
        window_ms: How long that is.
        failing: How many of them fail.
        began: How many of those began to fail in that time.
        succeeded: How many do not fail.
        owners: Those known for long, by whose they are: if some of them fail that began
            to within a day, or if it was looked up where they lead.
        working_owners: How many others there are of whom one does not fail.
    """

    window_ms: int
    failing: int
    began: int
    succeeded: int
    owners: tuple[OwnerAttempts, ...]
    working_owners: int

    @property
    def total(self) -> int:
        """How many were tried."""
        return self.failing + self.succeeded

    @property
    def share(self) -> float | None:
        """The share that fails, from 0 to 1; None if none was tried."""
        return round(self.failing / self.total, 4) if self.total else None


def recent_attempts_txn(
    txn: LoggingTransaction,
    window_ms: int,
    known_ms: int,
    now_ts: int,
) -> RecentAttempts:
    """Read what was tried in some time up to now.

    Args:
        txn: The transaction.
        window_ms: In which time.
        known_ms: For how long a destination has to have answered to be known for long.
        now_ts: The time.
    """
    since_ts = now_ts - window_ms
    txn.execute(
        "SELECT COUNT(*), COUNT(*) FILTER (WHERE o.start_ts >= ?) "  # noqa: S608
        f"FROM {FAILURES} AS f {_FAILING_NOW} WHERE f.last_ts >= ?",
        (since_ts, since_ts),
    )
    ((failing, began),) = txn.fetchall()
    tried = Sql(
        f"FROM {SUCCESSES} AS s "
        f"LEFT JOIN destinations AS d ON d.destination = s.destination AND {FAILING} "
        "WHERE s.last_ts >= ? AND d.destination IS NULL",
        (since_ts - SUCCESS_EVERY_MS,),
    )
    txn.execute(
        f"SELECT COUNT(*), COUNT(DISTINCT s.owner) FILTER (WHERE {_KNOWN}) "
        f"{tried.text}",
        (known_ms, *tried.args),
    )
    ((succeeded, working_owners),) = txn.fetchall()
    owners = _owners_txn(txn, tried, since_ts, known_ms, now_ts - _DAY_MS)
    return RecentAttempts(
        window_ms,
        failing,
        began,
        succeeded=succeeded,
        owners=tuple(owners),
        working_owners=working_owners - sum(owner.works > 0 for owner in owners),
    )


def _owners_txn(
    txn: LoggingTransaction,
    tried: Sql,
    since_ts: int,
    known_ms: int,
    recent_ts: int,
) -> list[OwnerAttempts]:
    """Read whose those are that fail and are known for long; see `RecentAttempts`.

    Args:
        txn: The transaction.
        tried: The FROM and the WHERE of those s that were tried and do not fail.
        since_ts: When the time begins in which they were tried.
        known_ms: For how long they have to have answered.
        recent_ts: Those that began to fail since.
    """
    txn.execute(
        "SELECT s.owner, f.kind, COUNT(*) FILTER (WHERE o.start_ts >= ?), "  # noqa: S608
        f"COUNT(*) FROM {FAILURES} AS f {_FAILING_NOW} "
        f"JOIN {SUCCESSES} AS s ON s.destination = f.destination AND {_KNOWN} "
        "WHERE f.last_ts >= ? AND o.start_ts >= ? GROUP BY s.owner, f.kind LIMIT ?",
        (since_ts, known_ms, since_ts, recent_ts, limits.CORRELATED_OWNERS),
    )
    began: dict[str, dict[str, int]] = defaultdict(dict)
    recent: dict[str, dict[str, int]] = defaultdict(dict)
    for owner, kind, began_count, count in txn.fetchall():
        recent[owner][kind] = count
        if began_count:
            began[owner][kind] = began_count
    if not recent:
        return []
    txn.execute(
        "SELECT s.owner, a.addresses FROM ("  # noqa: S608
        f"SELECT destination, addresses FROM {ADDRESSES} AS a "
        "ORDER BY looked_ts DESC LIMIT ?) AS a "
        f"JOIN {SUCCESSES} AS s ON s.destination = a.destination AND {_KNOWN}",
        (_CANDIDATES, known_ms),
    )
    addresses: dict[str, set[str]] = defaultdict(set)
    for owner, found in txn.fetchall():
        addresses[owner].update(json.loads(found))
    names = sorted(recent.keys() | addresses.keys())
    wanted = any_of("s.owner", names)
    txn.execute(
        f"SELECT s.owner, COUNT(*) {tried.text} AND {_KNOWN} AND {wanted.text} "
        "GROUP BY s.owner",
        (*tried.args, known_ms, *wanted.args),
    )
    works = dict(txn.fetchall())
    return [
        OwnerAttempts(
            began.get(name, {}),
            recent.get(name, {}),
            works.get(name, 0),
            frozenset(addresses.get(name, ())),
        )
        for name in names
    ]


def not_looked_up_txn(
    txn: LoggingTransaction, since_ts: int, known_ms: int, looked_ts: int, limit: int
) -> list[str]:
    """Return some destinations of which it is to be found out where they lead.

    One of each owner, those that are known for long first. Which, nobody can choose.

    Args:
        txn: The transaction.
        since_ts: Those that began to fail since.
        known_ms: For how long those have to have answered that are known for long.
        looked_ts: Not those that were looked up since.
        limit: The most to return.
    """
    txn.execute(
        "SELECT MIN(f.destination) FROM ("  # noqa: S608
        f"SELECT destination, kind FROM {FAILURES} AS f "
        f"WHERE last_ts >= ? ORDER BY last_ts DESC LIMIT ?) AS f {_FAILING_NOW} "
        f"LEFT JOIN {SUCCESSES} AS s ON s.destination = f.destination AND {_KNOWN} "
        f"WHERE o.start_ts >= ? AND NOT EXISTS (SELECT 1 FROM {ADDRESSES} AS a "
        "WHERE a.destination = f.destination AND a.looked_ts > ?) "
        "GROUP BY COALESCE(s.owner, f.destination) "
        "ORDER BY MAX(CASE WHEN s.owner IS NULL THEN 0 ELSE 1 END) DESC, RANDOM() "
        "LIMIT ?",
        (since_ts, _CANDIDATES, known_ms, since_ts, looked_ts, limit),
    )
    return [name for (name,) in txn.fetchall()]


def untrusted_txn(txn: LoggingTransaction, issuer: str) -> list[str]:
    """Return servers that fail because a certificate of an issuer is not trusted.

    Of a bounded number of those that fail because one is not trusted.

    Args:
        txn: The transaction.
        issuer: Who has issued it.
    """
    kind = FailureKind.TLS_UNTRUSTED.value
    txn.execute(
        f"SELECT f.destination FROM (SELECT destination FROM {OPEN_OUTAGES} AS o "  # noqa: S608
        "WHERE o.last_kind = ? ORDER BY destination LIMIT ?) AS untrusted "
        f"JOIN {FAILURES} AS f ON f.destination = untrusted.destination "
        "AND f.kind = ? WHERE f.issuer = ?",
        (kind, limits.UNTRUSTED_SERVERS, kind, issuer),
    )
    return [name for (name,) in txn.fetchall()]
