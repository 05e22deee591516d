# SPDX-License-Identifier: Apache-2.0
"""Reconnects many destinations: at a pace, and the most valuable first."""

import gc
from collections import deque
from collections.abc import Collection, Sequence
from functools import partial

import attr
from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import waiting_txn
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.failures.kinds import Reason
from synapse_federation_admin.failures.names import why_not_contacted
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.contact import outcome_of, probe, shown_contact
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.pace import Pace
from synapse_federation_admin.repair.runner import Action, persist
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.run_queue import Job
from synapse_federation_admin.storage.sql import FAILING, any_of
from synapse_federation_admin.storage.values import (
    LeftOut,
    Queued,
    ReconnectOutcome,
    RunResult,
)

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

# How long a result may wait until it is written.
_RECORD_EVERY_S = 0.1

# After how many contacts to collect what they have left behind. Each leaves some
# hundred objects that only garbage collection finds, some classes among them. Synapse
# collects them once a second: at 500 per second that takes a tenth of a second.
_COLLECT_AFTER = 125
_COLLECT_OLDER_AFTER = 500

# For how many seconds of its pace a run reads its queue ahead: whether a destination is
# still failing is as old as that.
_AHEAD_S = 0.5

# What a run says while it rests, and until a contact has ended again.
_WAITS = "It waits: this process has no file descriptor, thread or memory left"

# How often to look whether a run has been cancelled, while nothing is written; and how
# many times, at its end, whether all that it has set off was taken or refused.
_LOOK_EVERY_S = 0.4
_LOOKS_AT_THE_END = 25


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ReconnectMany(Action):
    """The action `reconnect`."""

    name = "reconnect"
    outcomes = tuple(
        outcome.value
        for outcome in (*ReconnectOutcome, *LeftOut)
        if outcome is not ReconnectOutcome.FORCED
    )
    options = frozenset({"per_second", "timeout_ms"})
    priority = _PRIORITY

    _homeserver: Homeserver
    _destinations: DestinationStore
    _audit: Audit
    _wake: Wake
    _follow_up: FollowUp

    async def work(self, job: Job) -> None:
        """Contact what is in the queue; see `Action.work`."""
        homeserver = self._homeserver
        await _Contacts(self, homeserver, job).work()
        # What waits for the last of them is being sent.
        for _ in range(_LOOKS_AT_THE_END):
            if not await persist(homeserver, job.look) or not await persist(
                homeserver, lambda: self._audit.has_cleared(job.run.run_id)
            ):
                return
            await homeserver.sleep_ms(int(_LOOK_EVERY_S * 1000))

    async def without_contact(self, queued: Sequence[Queued]) -> list[RunResult]:
        """Return the results of those that are not contacted."""
        rows = await self._destinations.get_many([one.destination for one in queued])
        results = []
        for one in queued:
            row = rows.get(one.destination)
            if row is None:
                outcome, note = LeftOut.SKIPPED, "Synapse has no row for it any more"
            elif one.was_failing and not row.is_failing:
                outcome, note = LeftOut.NO_LONGER_FAILING, ""
            elif failure := why_not_contacted(self._homeserver, one.destination):
                outcome, note = LeftOut.SKIPPED, message_of(failure)
            else:
                continue
            now_ts = self._homeserver.now_ms()
            details = {"note": note} if note else {}
            results.append(
                RunResult(one.destination, outcome.value, now_ts, now_ts, details)
            )
        return results

    async def record(self, job: Job, results: Sequence[RunResult]) -> bool:
        """Write the results of contacts, and wake; return whether the run goes on."""
        connected = _connected(results)
        unsent = await self._follow_up.unsent(connected)
        clear = partial(self._clear_txn, unsent)
        alive = await persist(self._homeserver, lambda: job.record(results, clear))
        if alive and connected:
            await self._wake.everywhere(connected)
            self._follow_up.begin()
        return alive

    def _clear_txn(
        self,
        unsent: Collection[str],
        txn: LoggingTransaction,
        results: Sequence[RunResult],
    ) -> Sequence[RunResult]:
        """Clear the retry timings of destinations that have answered.

        Where something waits for one, it is not known yet what comes of that.

        Args:
            unsent: Those of them to whom it is known that nothing leaves.
            txn: The transaction.
            results: What is recorded now; what was recorded before is left alone.
        """
        names = _connected(results)
        if not names:
            return results
        wanted = any_of("destination", names)
        txn.execute(
            "SELECT destination, failure_ts FROM destinations "  # noqa: S608
            f"WHERE {wanted.text} AND {FAILING} ORDER BY destination",
            wanted.args,
        )
        since = dict(txn.fetchall())
        waiting = waiting_txn(txn, names)
        for name in since:
            self._homeserver.retry_timings.clear_txn(txn, name)
        works = [n for n in names if waiting[n].is_nothing and n not in unsent]
        self._audit.works_txn(txn, works)

        def seen_through(result: RunResult) -> RunResult:
            name = result.destination
            if name not in waiting or name in works:
                return result
            if waiting[name].is_nothing:
                return attr.evolve(result, outcome=ReconnectOutcome.NOT_SENT.value)
            details = self._follow_up.details_of(since.get(name), waiting[name])
            return attr.evolve(
                result,
                outcome=ReconnectOutcome.PENDING.value,
                details={**result.details, **details},
            )

        return [seen_through(result) for result in results]


def _connected(results: Sequence[RunResult]) -> list[str]:
    """Return those of some destinations that have answered."""
    connected = ReconnectOutcome.CONNECTED.value
    return [result.destination for result in results if result.outcome == connected]


class _Contacts:
    """Contacts what is in the queue of a run, as long as it is this process's.

    At a pace, many at once, and not too many.
    """

    def __init__(
        self, reconnect: ReconnectMany, homeserver: Homeserver, job: Job
    ) -> None:
        self._reconnect = reconnect
        self._homeserver = homeserver
        self._job = job
        self._per_second = float(job.run.options["per_second"])
        self._timeout_ms = int(job.run.options["timeout_ms"])
        most = min(limits.CONTACTS_OF_A_RUN, homeserver.most_files // 4)
        self._pace = Pace(self._per_second, most)
        # What has been read of the queue, and up to where.
        self._ahead: deque[str] = deque()
        self._position: tuple[int, str] | None = None
        self._has_more = True
        self._in_flight = 0
        # Whether the run says that it waits.
        self._is_waiting = False
        self._ended: deque[RunResult] = deque()
        # What has kept a contact from having a result.
        self._error: Exception | None = None

    async def work(self) -> None:
        """Do what is in the queue, once."""
        pace, begun, unseen_s = self._pace, 0, 0.0
        at_s = self._now_s()
        while self._error is None and (
            self._has_more or self._ahead or self._in_flight or self._ended
        ):
            most = min(
                pace.allows(self._in_flight),
                # Each looks a name up. Of one whose time is over that may go on until
                # the operating system gives up.
                self._homeserver.federation.look_ups.free,
            )
            if pace.is_resting and not self._is_waiting:
                self._is_waiting = True
                await persist(self._homeserver, lambda: self._job.say(_WAITS))
            if most > 0:
                await self._read_ahead()
            for _ in range(min(most, len(self._ahead))):
                self._begin(self._ahead.popleft())
                pace.begun()
                begun += 1
                _collect(begun)
            wait_s = _RECORD_EVERY_S if self._ended else _LOOK_EVERY_S
            if len(self._ended) >= limits.RESULTS_RECORDED or unseen_s >= wait_s:
                unseen_s = 0
                if not await self._record_ended():
                    return
            pause_ms, slept_s = pace.pause_ms, self._now_s()
            await self._homeserver.sleep_ms(pause_ms)
            before_s, at_s = at_s, self._now_s()
            unseen_s += max(at_s - before_s, 0)
            pace.waited(at_s - before_s, at_s - slept_s - pause_ms / 1000)
        if self._error is not None:
            raise self._error

    async def _read_ahead(self) -> None:
        """Read more of the queue, if needed; what needs no contact has ended."""
        most = max(int(self._per_second * _AHEAD_S), 1)
        if (
            self._has_more
            and len(self._ahead) <= most // 2
            # What needs no contact is not found faster than it is written.
            and len(self._ended) < limits.RESULTS_RECORDED
        ):
            queued = await persist(
                self._homeserver, lambda: self._job.next(self._position, most)
            )
            results = await persist(
                self._homeserver, lambda: self._reconnect.without_contact(queued)
            )
            without_contact = {result.destination for result in results}
            self._ended.extend(results)
            self._ahead.extend(
                one.destination
                for one in queued
                if one.destination not in without_contact
            )
            self._has_more = len(queued) == most
            if queued:
                self._position = queued[-1].position

    def _begin(self, name: str) -> None:
        self._in_flight += 1
        self._homeserver.run_in_background(
            "federation_admin_bulk_contact", self._run, name
        )

    async def _run(self, name: str) -> None:
        try:
            result = await self._contact(name)
            if result is None:
                # It is tried again.
                self._ahead.appendleft(name)
                self._pace.exhausted(self._in_flight)
            else:
                self._ended.append(result)
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception as e:
            # It is raised where the run is worked on.
            self._error = e
        finally:
            self._in_flight -= 1

    async def _record_ended(self) -> bool:
        """Write some of what has ended; return whether the run goes on."""
        some = min(len(self._ended), limits.RESULTS_RECORDED)
        if not some:
            return await persist(self._homeserver, self._job.look)
        if self._is_waiting:
            await persist(self._homeserver, lambda: self._job.say(None))
            self._is_waiting = False
        results = [self._ended.popleft() for _ in range(some)]
        return await self._reconnect.record(self._job, results)

    async def _contact(self, name: str) -> RunResult | None:
        """Contact one; return None if this process has nothing left for it."""
        begun_ts = self._homeserver.now_ms()
        contact = await probe(self._homeserver, name, timeout_ms=self._timeout_ms)
        failure = contact.failure
        if failure is not None and failure.reason is Reason.OUT_OF_RESOURCES:
            return None
        return RunResult(
            name,
            outcome_of(contact).value,
            begun_ts,
            self._homeserver.now_ms(),
            {"contact": shown_contact(contact)},
            kind=failure.kind.value if failure else "",
            message=message_of(failure) if failure else "",
        )

    def _now_s(self) -> float:
        return self._homeserver.reactor.seconds()


def _collect(begun: int) -> None:
    """Collect young garbage, so that there is never much of it at once."""
    if begun % _COLLECT_OLDER_AFTER == 0:
        gc.collect(1)
    elif begun % _COLLECT_AFTER == 0:
        gc.collect(0)
