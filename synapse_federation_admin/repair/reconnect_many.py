# SPDX-License-Identifier: Apache-2.0
"""Reconnects many destinations: at a pace, and the most valuable first."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import ClassVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.contact import probe, shown_contact
from synapse_federation_admin.repair.paced import PacedContacts
from synapse_federation_admin.repair.runner import Job
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.run_values import Queued, Run, RunResult
from synapse_federation_admin.storage.sql import FAILING, Sql, any_of

# First what waits to be sent: messages to devices, without which others cannot read
# what they are sent, then events, then changes of devices.
_PRIORITY = """
    CASE
        WHEN EXISTS (
            SELECT 1 FROM device_federation_outbox w
            WHERE w.destination = d.destination
        ) THEN 0
        WHEN EXISTS (
            SELECT 1 FROM destination_rooms w
            WHERE w.destination = d.destination
            AND w.stream_ordering > d.last_successful_stream_ordering
        ) THEN 1
        WHEN EXISTS (
            SELECT 1 FROM device_lists_outbound_pokes w
            WHERE w.destination = d.destination
        ) THEN 2
        ELSE 3
    END
"""


class RunOutcome(Enum):
    """The outcomes of a destination in a run that reconnects."""

    CONNECTED = "connected"
    STILL_FAILING = "still_failing"

    # It was failing when it was queued, and is not any more: it is not contacted.
    NO_LONGER_FAILING = "no_longer_failing"

    # It is no valid server name, or is shut out by `federation_domain_whitelist`, or
    # Synapse has no row for it any more.
    SKIPPED = "skipped"

    # The contact failed because of a bug on this side: it tells nothing of the server.
    INTERNAL = "internal"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ReconnectOptions:
    """How to reconnect many destinations.

    Attributes:
        per_second: How many contacts to begin per second.
        timeout_ms: How long a destination has to answer.
    """

    per_second: float
    timeout_ms: int

    def shown(self) -> dict[str, object]:
        """Return them as the API shows them and the table keeps them."""
        return {"per_second": self.per_second, "timeout_ms": self.timeout_ms}

    @classmethod
    def of(cls, shown: Mapping[str, object]) -> "ReconnectOptions":
        """Return those that are kept."""
        return cls(float(str(shown["per_second"])), int(str(shown["timeout_ms"])))


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SortedNames:
    """The names of a list, each once, by whether they can be contacted.

    Attributes:
        usable: Those that can.
        unknown: Those that Synapse has no row for.
        invalid: Those that are no valid server names.
    """

    usable: Sequence[str]
    unknown: Sequence[str]
    invalid: Sequence[str]


class ReconnectMany:
    """The action `reconnect`."""

    name: ClassVar[str] = "reconnect"
    outcomes: ClassVar[Sequence[str]] = tuple(outcome.value for outcome in RunOutcome)

    def __init__(
        self, homeserver: Homeserver, destinations: DestinationStore, wake: Wake
    ) -> None:
        self._homeserver = homeserver
        self._destinations = destinations
        self._wake = wake

    async def sort_out(self, names: Iterable[str]) -> SortedNames:
        """Sort the names of a list by whether they can be contacted."""
        names = list(dict.fromkeys(names))
        valid = [name for name in names if self._homeserver.is_server_name(name)]
        known = await self._destinations.get_many(valid)
        return SortedNames(
            usable=[name for name in valid if name in known],
            unknown=[name for name in valid if name not in known],
            invalid=sorted(set(names).difference(valid)),
        )

    def rows_of(self, run: Run, names: Sequence[str]) -> Sql:  # noqa: ARG002
        """Select all of them; see `Action.rows_of`."""
        wanted = any_of("d.destination", names, self._homeserver.is_postgres)
        return Sql(
            f"SELECT {_PRIORITY} AS priority, d.destination, "  # noqa: S608
            f"CASE WHEN {FAILING} THEN 1 ELSE 0 END AS was_failing "
            f"FROM destinations d WHERE {wanted.text}",
            wanted.args,
        )

    async def work(self, job: Job) -> None:
        """Contact what is in the queue; see `Action.work`."""
        options = ReconnectOptions.of(job.run.options)

        async def contact(name: str) -> RunResult:
            return await self._contact(name, options.timeout_ms)

        def recorded(result: RunResult) -> None:
            if result.outcome == RunOutcome.CONNECTED.value:
                self._wake.everywhere(result.destination)

        await PacedContacts(
            self._homeserver,
            job,
            per_second=options.per_second,
            without_contact=self._without_contact,
            contact=contact,
            effect=self._clear_txn,
            recorded=recorded,
        ).work()

    async def _without_contact(self, queued: Sequence[Queued]) -> list[RunResult]:
        """Return the results of those that are not contacted."""
        rows = await self._destinations.get_many([one.destination for one in queued])
        results = []
        for one in queued:
            row = rows.get(one.destination)
            if row is None:
                outcome, note = RunOutcome.SKIPPED, "Synapse has no row for it any more"
            elif one.was_failing and not row.is_failing:
                outcome, note = RunOutcome.NO_LONGER_FAILING, ""
            elif not self._homeserver.is_server_name(one.destination):
                outcome, note = RunOutcome.SKIPPED, "Invalid server name"
            elif not self._homeserver.is_allowed(one.destination):
                note = "federation_domain_whitelist does not allow it"
                outcome = RunOutcome.SKIPPED
            else:
                continue
            now_ts = self._homeserver.now_ms()
            details = {"note": note} if note else {}
            results.append(
                RunResult(one.destination, outcome.value, now_ts, now_ts, details)
            )
        return results

    async def _contact(self, name: str, timeout_ms: int) -> RunResult:
        begun_ts = self._homeserver.now_ms()
        contact = await probe(self._homeserver, name, timeout_ms=timeout_ms)
        failure = contact.failure
        outcome = RunOutcome.CONNECTED
        if failure is not None:
            outcome = RunOutcome.STILL_FAILING
            if failure.is_ours:
                outcome = RunOutcome.INTERNAL
        return RunResult(
            name,
            outcome.value,
            begun_ts,
            self._homeserver.now_ms(),
            {"contact": shown_contact(contact)},
            kind=failure.kind.value if failure else "",
            message=message_of(failure) if failure else "",
        )

    def _clear_txn(
        self, txn: LoggingTransaction, results: Sequence[RunResult]
    ) -> Sequence[RunResult]:
        """Clear the retry timings of destinations that have answered."""
        names = [
            result.destination
            for result in results
            if result.outcome == RunOutcome.CONNECTED.value
        ]
        if names:
            wanted = any_of("destination", names, self._homeserver.is_postgres)
            txn.execute(
                "SELECT destination FROM destinations "  # noqa: S608
                f"WHERE {wanted.text} AND {FAILING} ORDER BY destination",
                wanted.args,
            )
            for (name,) in txn.fetchall():
                self._homeserver.retry_timings.clear_txn(txn, name)
        return results
