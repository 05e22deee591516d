# SPDX-License-Identifier: Apache-2.0
"""The processes of this homeserver that run this module: when each was last seen.

Every process writes its row every `BEAT_MS`. All times are those of the database's
clock, which is one for all processes; a time beyond its now is not believed.
"""

from enum import Enum
from typing import NamedTuple

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.database import on_postgres
from synapse_federation_admin.homeserver.homeserver import InMemory
from synapse_federation_admin.storage.sql import Expired, Sql, marks

_TABLE = "federation_admin_instances"

BEAT_MS = 15_000

# A process that has not been seen for so long does not run as it should; and for so
# long, it is gone.
_LATE_MS = 30_000
_GONE_MS = 60_000

# How late its reactor may be.
REACTOR_LATE_MS = 5000

# One that has not been seen for so long is not about to come back: another follows up
# what it has begun.
AWAY_MS = 600_000

# For so long it is told of one that is gone and that nobody expects.
KEPT_MS = 7 * 86_400_000

# Those that were seen before, or that are from a time as long after now.
OLD = Expired(_TABLE, "instance", f"seen_ts < ? OR seen_ts - {2 * KEPT_MS} > ?")

# The columns of what a process tells of itself.
_TOLD = (
    "module_version",
    "synapse_version",
    "sends",
    *InMemory._fields,
    "reactor_late_ms",
)

_NOW_ON_POSTGRES = "CAST(date_part('epoch', clock_timestamp()) * 1000 AS BIGINT)"
_NOW = "CAST((julianday('now') - 2440587.5) * 86400000 AS BIGINT)"


class InstanceState(Enum):
    """Whether a process runs."""

    # Seen within 30 seconds.
    RUNNING = "running"

    # Seen within a minute, or its reactor is five seconds late or more.
    LATE = "late"

    # Not seen for longer, or it has said that it ends.
    GONE = "gone"

    # None of that name that runs this module has ever been seen.
    NEVER_SEEN = "never_seen"

    # There is none: the configuration names nobody who sends.
    NOBODY = "nobody"


class Instance(NamedTuple):
    """One process of this homeserver.

    Attributes:
        name: Its name; that of the main process is `main`.
        state: Whether it runs.
        seen_ts: When it was last seen, by the database's clock; None if never.
        started_ts: When it was started; None if it was never seen.
        module_version: That of this module in it; None if it was never seen.
        synapse_version: That of Synapse; None if it was never seen.
        sends: Whether it sends to other servers.
        in_memory: What it has in memory to be sent; None if it was never seen.
        reactor_late_ms: How late its reactor was then; None if it was never seen.
    """

    name: str
    state: InstanceState = InstanceState.NEVER_SEEN
    seen_ts: int | None = None
    started_ts: int | None = None
    module_version: str | None = None
    synapse_version: str | None = None
    sends: bool = False
    in_memory: InMemory | None = None
    reactor_late_ms: int | None = None

    @property
    def is_reactor_late(self) -> bool:
        """Whether it was overloaded, or held up, when it was last seen."""
        return (self.reactor_late_ms or 0) >= REACTOR_LATE_MS


def state_of(age_ms: int, *, has_ended: bool, reactor_late_ms: int) -> InstanceState:
    """Tell whether a process runs.

    Args:
        age_ms: How long ago it was seen; below 0: beyond now.
        has_ended: Whether it has said so.
        reactor_late_ms: How late its reactor was.
    """
    if has_ended or not -_GONE_MS < age_ms < _GONE_MS:
        return InstanceState.GONE
    if age_ms >= _LATE_MS or reactor_late_ms >= REACTOR_LATE_MS:
        return InstanceState.LATE
    return InstanceState.RUNNING


def beat_txn(txn: LoggingTransaction, instance: Instance, uptime_ms: int) -> None:
    """Write that a process runs.

    Args:
        txn: The transaction.
        instance: What is known of it; its times are not used.
        uptime_ms: For how long it has been running.
    """
    now = _NOW_ON_POSTGRES if on_postgres(txn) else _NOW
    changes = ", ".join(
        f"{column} = EXCLUDED.{column}"
        for column in ("seen_ts", "started_ts", "has_ended", *_TOLD)
    )
    txn.execute(
        f"INSERT INTO {_TABLE} "  # noqa: S608
        f"(instance, seen_ts, started_ts, has_ended, {', '.join(_TOLD)}) "
        f"VALUES (?, {now}, {now} - ?, 0, {marks(_TOLD)}) "
        f"ON CONFLICT (instance) DO UPDATE SET {changes}",
        (
            instance.name,
            uptime_ms,
            instance.module_version,
            instance.synapse_version,
            int(instance.sends),
            *(instance.in_memory or InMemory()),
            instance.reactor_late_ms,
        ),
    )


def end_txn(txn: LoggingTransaction, name: str) -> None:
    """Write that a process ends."""
    txn.execute(f"UPDATE {_TABLE} SET has_ended = 1 WHERE instance = ?", (name,))  # noqa: S608


def away(txn: LoggingTransaction, own: str) -> Sql:
    """Return the subquery of the names of those that are away, for statements.

    None are where the process that asks, `own`, has not been seen, either: then it is
    not known that those run that have not been.
    """
    now = _NOW_ON_POSTGRES if on_postgres(txn) else _NOW
    return Sql(
        f"(SELECT other.instance FROM {_TABLE} AS other, {_TABLE} AS own "  # noqa: S608
        f"WHERE own.instance = ? AND {now} - own.seen_ts < {AWAY_MS} "
        f"AND {now} - other.seen_ts >= {AWAY_MS})",
        (own,),
    )


def select_txn(txn: LoggingTransaction) -> dict[str, Instance]:
    """Return the processes that were seen, by name."""
    now = _NOW_ON_POSTGRES if on_postgres(txn) else _NOW
    txn.execute(
        f"SELECT {now} - seen_ts, has_ended, instance, seen_ts, started_ts, "  # noqa: S608
        f"{', '.join(_TOLD)} FROM {_TABLE}"
    )
    found = {}
    for age_ms, has_ended, name, seen_ts, started_ts, *told, late_ms in txn:
        module_version, synapse_version, sends, *in_memory = told
        found[name] = Instance(
            name,
            state_of(age_ms, has_ended=bool(has_ended), reactor_late_ms=late_ms),
            seen_ts=seen_ts,
            started_ts=started_ts,
            module_version=module_version,
            synapse_version=synapse_version,
            sends=bool(sends),
            in_memory=InMemory(*in_memory),
            reactor_late_ms=late_ms,
        )
    return found
