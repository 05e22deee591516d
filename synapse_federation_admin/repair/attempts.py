# SPDX-License-Identifier: Apache-2.0
"""Has one attempt at a destination under way at a time, over all processes.

The last attempt at a destination has a row in `federation_admin_attempts`, where its
result is left for the processes that wait for it.
"""

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.outcomes import Contact, Told
from synapse_federation_admin.storage.schema import Tables

logger = logging.getLogger(__name__)

T = TypeVar("T")

# After this an attempt of another process has come to its end, or its process has.
_LONGEST_ATTEMPT_MS = 150_000

# How often to look whether an attempt of another process has ended.
_LOOK_EVERY_MS = 100


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AttemptResult:
    """What came of an attempt.

    Attributes:
        before: The destination before.
        after: The destination afterwards.
        contact: What came of the contact.
        told: Which processes were told, if this process has told any.
    """

    before: Destination
    after: Destination
    contact: Contact
    told: Told = attr.Factory(Told)


class Attempts:
    """Knows of the attempts of all processes."""

    def __init__(self, homeserver: Homeserver, tables: Tables) -> None:
        self._homeserver = homeserver
        self._tables = tables

    async def take(self, name: str, attempt_id: str, asked_ts: int) -> tuple[str, int]:
        """Make an attempt the one under way, if no other process makes one.

        Args:
            name: The destination.
            attempt_id: The ID of the attempt.
            asked_ts: When it was asked for: one that ended before is of no use.

        Returns:
            The ID of the attempt that counts, and when it was begun.
        """
        await self._tables.ready()
        now_ts = self._homeserver.now_ms()
        own = self._homeserver.instance_name

        def take_txn(txn: LoggingTransaction) -> tuple[str, int]:
            # An attempt of this process of which it knows nothing is from an earlier
            # life of its.
            txn.execute(
                "INSERT INTO federation_admin_attempts AS a "
                "(destination, attempt_id, instance, started_ts) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (destination) DO UPDATE SET "
                "attempt_id = EXCLUDED.attempt_id, instance = EXCLUDED.instance, "
                "started_ts = EXCLUDED.started_ts, ended_ts = NULL, result = NULL "
                "WHERE a.ended_ts < ? OR a.instance = ? "
                "OR (a.ended_ts IS NULL AND a.started_ts < ?)",
                (
                    *(name, attempt_id, own, now_ts),
                    *(asked_ts, own, now_ts - _LONGEST_ATTEMPT_MS),
                ),
            )
            txn.execute(
                "SELECT attempt_id, started_ts FROM federation_admin_attempts "
                "WHERE destination = ?",
                (name,),
            )
            ((counts, started_ts),) = txn.fetchall()
            return str(counts), int(started_ts)

        return await self._run(take_txn)

    async def wait_for(
        self, name: str, attempt_id: str, started_ts: int
    ) -> AttemptResult | None:
        """Wait for another process's attempt; None if it will never end."""
        deadline_ts = started_ts + _LONGEST_ATTEMPT_MS

        def look_txn(txn: LoggingTransaction) -> tuple[Any, ...] | None:
            txn.execute(
                "SELECT ended_ts, result FROM federation_admin_attempts "
                "WHERE destination = ? AND attempt_id = ?",
                (name, attempt_id),
            )
            return txn.fetchone()

        while self._homeserver.now_ms() < deadline_ts:
            row = await self._run(look_txn)
            if row is None:
                return None
            if row[0] is not None:
                return from_json(row[1])
            await self._homeserver.sleep_ms(_LOOK_EVERY_MS)
        return None

    def end_txn(
        self,
        txn: LoggingTransaction,
        name: str,
        attempt_id: str,
        result: AttemptResult,
    ) -> None:
        """Leave the result of an attempt for those who wait, in a transaction."""
        txn.execute(
            "UPDATE federation_admin_attempts SET ended_ts = ?, result = ? "
            "WHERE destination = ? AND attempt_id = ?",
            (self._homeserver.now_ms(), to_json(result), name, attempt_id),
        )

    async def give_up(self, name: str, attempt_id: str) -> None:
        """Have no other process wait for an attempt whose outcome is lost.

        For where an exception is on its way, which shall not be hidden by another.
        """

        def give_up_txn(txn: LoggingTransaction) -> None:
            txn.execute(
                "DELETE FROM federation_admin_attempts "
                "WHERE destination = ? AND attempt_id = ?",
                (name, attempt_id),
            )

        try:
            await self._run(give_up_txn)
        except Exception as e:
            logger.warning("Could not give an attempt up: %s", e)

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._homeserver.run_db_interaction(
            "federation_admin_attempts", func
        )


def to_json(result: AttemptResult) -> str:
    """Return a result as it is stored: all but who was told."""
    contact, failure = result.contact, result.contact.failure
    return json.dumps(
        {
            "before": list(result.before),
            "after": list(result.after),
            "contact": [
                contact.duration_ms,
                contact.server_name,
                contact.server_version,
            ],
            "failure": failure and failure_to_json(failure),
        }
    )


def from_json(text: str) -> AttemptResult:
    """Return a result that is stored."""
    found = json.loads(text)
    failure = found["failure"]
    duration_ms, server_name, server_version = found["contact"]
    return AttemptResult(
        Destination(*found["before"]),
        Destination(*found["after"]),
        Contact(
            duration_ms,
            server_name,
            server_version,
            failure and failure_from_json(failure),
        ),
    )


def failure_to_json(failure: Failure) -> list[Any]:
    """Return a failure as values of JSON, for another process of the same release."""
    facts = attr.asdict(failure.facts)
    cause = failure.facts.cause
    facts["also"] = [kind.value for kind in failure.facts.also]
    facts["cause"] = failure_to_json(cause) if cause else None
    reason = failure.reason.value if failure.reason else None
    return [failure.kind.value, reason, facts]


def failure_from_json(found: list[Any]) -> Failure:
    """Return what `failure_to_json` stands for."""
    kind, reason, facts = found
    facts = {
        **facts,
        "names": tuple(facts["names"]),
        "also": tuple(FailureKind(also) for also in facts["also"]),
        "cause": facts["cause"] and failure_from_json(facts["cause"]),
    }
    return Failure(FailureKind(kind), reason and Reason(reason), Facts(**facts))
