# SPDX-License-Identifier: Apache-2.0
"""Which destinations were tried lately, and what those that fail have in common.

Read from the tables of failures, outages, successes and addresses.
"""

from collections import defaultdict
from collections.abc import Sequence
from enum import Enum

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.storage.addresses import ADDRESSES
from synapse_federation_admin.storage.failures import FAILURES
from synapse_federation_admin.storage.outages import OPEN_OUTAGES
from synapse_federation_admin.storage.sql import FAILING
from synapse_federation_admin.storage.successes import SUCCESSES

_DAY_MS = 86_400_000

# How many causes of a type are told, and of how many destinations one is shared.
_MAX_CAUSES = 10
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
        type: What of them.
        value: What it is: a kind, an IP address, the issuer of a certificate.
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
class FailingShare:
    """How many destinations fail with one kind and issuer; see `RecentAttempts`."""

    kind: str
    issuer: str
    failing: int
    began: int
    worked: int
    recent: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SharedAddresses:
    """To which addresses those lead that began to fail; see `RecentAttempts`."""

    looked: int = 0
    causes: tuple[SharedCause, ...] = ()


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
    looked: int = 0
    causes: tuple[SharedCause, ...] = ()

    @classmethod
    def of(
        cls,
        window_ms: int,
        shares: Sequence[FailingShare],
        addresses: SharedAddresses,
        *,
        succeeded: int,
        ever_succeeded: bool,
    ) -> "RecentAttempts":
        """Put together what was read."""
        return cls(
            window_ms,
            failing=sum(share.failing for share in shares),
            began=sum(share.began for share in shares),
            worked=sum(share.worked for share in shares),
            recent=sum(share.recent for share in shares),
            succeeded=succeeded,
            ever_succeeded=ever_succeeded,
            looked=addresses.looked,
            causes=(
                *_causes_in(shares, CauseType.KIND),
                *_causes_in(shares, CauseType.ISSUER),
                *addresses.causes,
            ),
        )

    @property
    def total(self) -> int:
        """How many destinations were tried."""
        return self.failing + self.succeeded

    @property
    def share(self) -> float | None:
        """Which share of them fails; None if none was tried."""
        return self.failing / self.total if self.total else None


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


def shares_txn(
    txn: LoggingTransaction, since_ts: int, now_ts: int
) -> list[FailingShare]:
    """Return what those fail with, and how many, that were tried since a time."""
    txn.execute(
        "SELECT f.kind, f.issuer, COUNT(*), "  # noqa: S608
        "COUNT(*) FILTER (WHERE o.start_ts >= ?), "
        f"COUNT(*) FILTER (WHERE o.start_ts >= ? AND {_WORKED}), "
        f"COUNT(*) FILTER (WHERE o.start_ts >= ? AND {_WORKED}) "
        f"FROM {FAILURES} AS f {_FAILING_NOW} "
        "WHERE f.last_ts >= ? GROUP BY f.kind, f.issuer",
        (since_ts, since_ts, now_ts - _DAY_MS, since_ts),
    )
    return [FailingShare(*row) for row in txn.fetchall()]


def _causes_in(found: Sequence[FailingShare], type_: CauseType) -> list[SharedCause]:
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


def addresses_txn(
    txn: LoggingTransaction, since_ts: int, *, is_postgres: bool
) -> SharedAddresses:
    """Return where those lead that began to fail since a time, as far as is known."""
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
        (since_ts, since_ts, _CANDIDATES, since_ts, _MAX_CAUSES),
    )
    found = [SharedCause(CauseType.ADDRESS, *row) for row in txn.fetchall()]
    return SharedAddresses(looked, tuple(found))
