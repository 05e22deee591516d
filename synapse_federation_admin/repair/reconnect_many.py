# SPDX-License-Identifier: Apache-2.0
"""Reconnects many destinations: at a pace, and the most valuable first."""

from collections.abc import Iterable, Sequence
from enum import Enum

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.contact import probe, shown_contact
from synapse_federation_admin.repair.paced import PacedContacts
from synapse_federation_admin.repair.runner import Action
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.run_queue import Job
from synapse_federation_admin.storage.run_values import Queued, RunResult
from synapse_federation_admin.storage.sql import FAILING, any_of

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


class ReconnectMany(Action):
    """The action `reconnect`."""

    name = "reconnect"
    outcomes = tuple(outcome.value for outcome in RunOutcome)
    priority = _PRIORITY

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

    async def work(self, job: Job) -> None:
        """Contact what is in the queue; see `Action.work`."""
        timeout_ms = int(str(job.run.options["timeout_ms"]))

        async def record(results: Sequence[RunResult]) -> bool:
            alive = await job.record(results, self._clear_txn)
            if alive and (connected := _connected(results)):
                await self._wake.everywhere(connected)
            return alive

        await PacedContacts(
            self._homeserver,
            job,
            per_second=float(str(job.run.options["per_second"])),
            without_contact=self._without_contact,
            contact=lambda name: self._contact(name, timeout_ms),
            record=record,
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
        if names := _connected(results):
            wanted = any_of("destination", names, self._homeserver.is_postgres)
            txn.execute(
                "SELECT destination FROM destinations "  # noqa: S608
                f"WHERE {wanted.text} AND {FAILING} ORDER BY destination",
                wanted.args,
            )
            for (name,) in txn.fetchall():
                self._homeserver.retry_timings.clear_txn(txn, name)
        return results


def _connected(results: Sequence[RunResult]) -> list[str]:
    """Return those of some destinations that have answered."""
    connected = RunOutcome.CONNECTED.value
    return [result.destination for result in results if result.outcome == connected]
