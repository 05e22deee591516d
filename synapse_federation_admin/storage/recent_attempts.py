# SPDX-License-Identifier: Apache-2.0
"""Which destinations were tried lately, and what those that fail have in common.

Read from the tables of failures, outages, successes and addresses.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

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
from synapse_federation_admin.storage.sql import AHEAD_MS, FAILING, Sql, any_of

_DAY_MS = 86_400_000

# Of how many destinations a cause is shared, at least.
_LEAST = 2

# Of how many destinations, the last ones, it is seen where they lead.
_CANDIDATES = 2000

# Failures f, with the outage o and the row d, of what fails with that kind now.
_FAILING_NOW = f"""
    JOIN {OPEN_OUTAGES} AS o ON o.destination = f.destination AND o.last_kind = f.kind
    JOIN destinations AS d ON d.destination = f.destination AND {FAILING}
"""

# Whether the success s is of a server that is known for long; and the failure f.
_KNOWN = "s.last_ts - s.first_ts >= ?"
_IS_KNOWN = f"""EXISTS (
    SELECT 1 FROM {SUCCESSES} AS s WHERE s.destination = f.destination AND {_KNOWN}
)"""  # noqa: S608


class CauseType(Enum):
    """What failures may have in common."""

    KIND = "kind"
    ADDRESS = "address"
    ISSUER = "issuer"


class SharedCause(NamedTuple):
    """What several destinations that fail have in common.

    Attributes:
        type: What of them: the `kind` of the failure, the IP `address`, or the `issuer`
            of certificates that are not trusted.
        value: That kind, address or issuer.
        destinations: How many of those that fail.
        began: How many of them began to fail in that time.
        known: How many of the latter are known for long.
    """

    type: CauseType
    value: str
    destinations: int
    began: int
    known: int


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


class RecentAttempts(NamedTuple):
    """The destinations that were tried in the time up to now.

    Known for long are those that had answered, in the end, for long enough.

    Attributes:
        window_ms: How long that is.
        failing: How many of them fail.
        began: How many of those began to fail in that time.
        known: How many of the latter are known for long.
        succeeded: How many do not fail, and have answered since they did.
        looked: Of how many that are known for long and began to fail it is known where
            they lead.
        causes: What those that fail have in common, the most common first.
        owners: Those known for long, by whose they are: if some of them fail that began
            to within a day, or if it was looked up where they lead.
        working_owners: How many others there are of whom one does not fail.
        unanswered: How many are in no backoff, and have not answered since a request to
            them failed.
    """

    window_ms: int
    failing: int
    began: int
    known: int
    succeeded: int
    looked: int
    causes: tuple[SharedCause, ...]
    owners: tuple[OwnerAttempts, ...]
    working_owners: int
    unanswered: int = 0

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
    statement = (
        "SELECT f.kind, f.issuer, COUNT(*), "  # noqa: S608
        "COUNT(*) FILTER (WHERE o.start_ts >= ?), "
        f"COUNT(*) FILTER (WHERE o.start_ts >= ? AND {_IS_KNOWN}) "
        f"FROM {FAILURES} AS f {_FAILING_NOW} "
        "WHERE f.last_ts >= ? GROUP BY f.kind, f.issuer"
    )
    txn.execute(_upto(now_ts, statement), (since_ts, since_ts, known_ms, since_ts))
    groups = txn.fetchall()
    # Of each of the three counts, all groups together.
    failing, began, known = (
        sum(group[place] for group in groups) for place in range(2, 5)
    )
    looked, leading, by_owner = _addresses_txn(txn, since_ts, known_ms, now_ts)
    found = (
        f"FROM {SUCCESSES} AS s "  # noqa: S608
        f"LEFT JOIN destinations AS d ON d.destination = s.destination AND {FAILING} "
        "WHERE s.last_ts >= ? AND d.destination IS NULL "
        f"AND NOT EXISTS (SELECT 1 FROM {FAILURES} AS f "
        "WHERE f.destination = s.destination AND f.last_ts > s.last_ts)"
    )
    tried = Sql(_upto(now_ts, found), (since_ts - SUCCESS_EVERY_MS,))
    txn.execute(
        f"SELECT COUNT(*), COUNT(DISTINCT s.owner) FILTER (WHERE {_KNOWN}) "
        f"{tried.text}",
        (known_ms, *tried.args),
    )
    ((succeeded, working_owners),) = txn.fetchall()
    statement = (
        f"SELECT COUNT(DISTINCT f.destination) FROM {FAILURES} AS f "  # noqa: S608
        f"LEFT JOIN destinations AS d ON d.destination = f.destination AND {FAILING} "
        f"LEFT JOIN {SUCCESSES} AS s ON s.destination = f.destination "
        "WHERE f.last_ts >= ? AND d.destination IS NULL "
        "AND f.last_ts > COALESCE(s.last_ts, 0)"
    )
    txn.execute(_upto(now_ts, statement), (since_ts,))
    ((unanswered,),) = txn.fetchall()
    owners = _owners_txn(txn, tried, since_ts, known_ms, now_ts, by_owner)
    kinds = _most_common((kind, *counts) for kind, _, *counts in groups)
    issuers = _most_common(
        ((issuer, *counts) for _, issuer, *counts in groups if issuer), _LEAST
    )
    # Of those that are known for long first.
    addresses = _most_common(leading, _LEAST, by=2)
    return RecentAttempts(
        window_ms,
        failing,
        began,
        known,
        succeeded=succeeded,
        looked=looked,
        causes=(
            *(SharedCause(CauseType.KIND, *kind) for kind in kinds),
            *(SharedCause(CauseType.ISSUER, *issuer) for issuer in issuers),
            *(SharedCause(CauseType.ADDRESS, *address) for address in addresses),
        ),
        owners=tuple(owners),
        working_owners=working_owners - sum(owner.works > 0 for owner in owners),
        unanswered=unanswered,
    )


def _upto(now_ts: int, statement: str) -> str:
    """Return a statement that leaves out what a clock has recorded that was ahead."""
    for rows, ts in (
        (FAILURES, "last_ts"),
        # By the index of those that last, which are few.
        (OPEN_OUTAGES, "+start_ts"),
        (SUCCESSES, "last_ts"),
    ):
        believed = f"(SELECT * FROM {rows} AS r WHERE {ts} <= {now_ts + AHEAD_MS})"  # noqa: S608
        statement = statement.replace(rows, believed)
    return statement


def _owners_txn(
    txn: LoggingTransaction,
    tried: Sql,
    since_ts: int,
    known_ms: int,
    now_ts: int,
    addresses: Mapping[str, set[str]],
) -> list[OwnerAttempts]:
    """Read whose those are that fail and are known for long; see `RecentAttempts`.

    Args:
        txn: The transaction.
        tried: The FROM and the WHERE of those s that were tried and do not fail.
        since_ts: When the time begins in which they were tried.
        known_ms: For how long they have to have answered.
        now_ts: The time.
        addresses: Where those that are known for long lead, by owner.
    """
    statement = (
        "SELECT s.owner, f.kind, COUNT(*) FILTER (WHERE o.start_ts >= ?), "  # noqa: S608
        f"COUNT(*) FROM {FAILURES} AS f {_FAILING_NOW} "
        f"JOIN {SUCCESSES} AS s ON s.destination = f.destination AND {_KNOWN} "
        "WHERE f.last_ts >= ? AND o.start_ts >= ? GROUP BY s.owner, f.kind LIMIT ?"
    )
    recent_ts, most = now_ts - _DAY_MS, limits.CORRELATED_OWNERS
    txn.execute(
        _upto(now_ts, statement), (since_ts, known_ms, since_ts, recent_ts, most)
    )
    began: dict[str, dict[str, int]] = defaultdict(dict)
    recent: dict[str, dict[str, int]] = defaultdict(dict)
    for owner, kind, began_count, count in txn.fetchall():
        recent[owner][kind] = count
        if began_count:
            began[owner][kind] = began_count
    if not recent:
        return []
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


def _most_common(
    groups: Iterable[tuple[Any, ...]], least: int = 0, by: int = 0
) -> list[tuple[Any, ...]]:
    """Add up what groups of one value have; return the most common values first.

    Args:
        groups: Each a value, how many fail with it, how many of these began to in that
            time, and how many of the latter are known for long.
        least: With how many those have to fail that are returned.
        by: By which of these counts they are sorted first.

    Returns:
        The values and these three counts.
    """
    added: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for value, *counts in groups:
        added[value] = [
            one + more for one, more in zip(added[value], counts, strict=True)
        ]
    found = [(value, counts) for value, counts in added.items() if counts[0] >= least]
    found.sort(key=lambda item: (-item[1][by], -item[1][0], item[0]))
    return [(value, *counts) for value, counts in found[: limits.TOLD_CAUSES]]


def _addresses_txn(
    txn: LoggingTransaction, since_ts: int, known_ms: int, now_ts: int
) -> tuple[int, list[tuple[Any, ...]], Mapping[str, set[str]]]:
    """Read where destinations lead, as far as that was looked up.

    Returns:
        Of how many of those that is known that are known for long and began to fail
        since a time; the addresses of those that fail, as groups of one for
        `_most_common`; and those of what is known for long, by owner.
    """
    statement = (
        "SELECT a.addresses, s.owner, CASE WHEN f.destination = d.destination "  # noqa: S608
        "THEN o.start_ts END "
        f"FROM (SELECT destination, addresses FROM {ADDRESSES} AS a "
        "ORDER BY looked_ts DESC LIMIT ?) AS a "
        f"LEFT JOIN {OPEN_OUTAGES} AS o ON o.destination = a.destination "
        f"LEFT JOIN {FAILURES} AS f ON f.destination = a.destination "
        "AND f.kind = o.last_kind AND f.last_ts >= ? "
        f"LEFT JOIN destinations AS d ON d.destination = a.destination AND {FAILING} "
        f"LEFT JOIN {SUCCESSES} AS s ON s.destination = a.destination AND {_KNOWN}"
    )
    txn.execute(_upto(now_ts, statement), (_CANDIDATES, since_ts, known_ms))
    looked = 0
    groups: list[tuple[Any, ...]] = []
    by_owner: dict[str, set[str]] = defaultdict(set)
    for addresses, owner, start_ts in txn.fetchall():
        found = json.loads(addresses)
        if owner is not None:
            by_owner[owner].update(found)
        if start_ts is not None:
            began = int(start_ts >= since_ts)
            known = 0 if owner is None else began
            looked += known
            groups += [(address, 1, began, known) for address in found]
    return looked, groups, by_owner


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
