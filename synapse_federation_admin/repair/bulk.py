# SPDX-License-Identifier: Apache-2.0
"""Reconnects many destinations: at a pace, most valuable first, and to the end.

A run is a task of Synapse's task scheduler, which runs it on the process that runs
background tasks, and runs it again after a restart. All that it has to know is in the
database (`synapse_federation_admin.repair.runs`).
"""

import gc
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from itertools import islice
from typing import TypeVar

from twisted.internet.defer import CancelledError

from synapse_federation_admin.destinations.reader import DestinationReader
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.destinations.values import Position, Sort
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.contact import probe
from synapse_federation_admin.repair.housekeeping import Housekeeping
from synapse_federation_admin.repair.pace import Pace, Rate
from synapse_federation_admin.repair.runs import RunStore
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.run_values import (
    Queued,
    Run,
    RunOrder,
    RunOutcome,
    RunPreview,
    RunResult,
    RunStatus,
    SortedNames,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ACTION = "federation_admin_reconnects"

# Contacts under way at once. One that hangs does not hold the others up; so many that
# hang do.
MAX_IN_FLIGHT = 400

# How many destinations are put into the queue, and how many results are written, in
# one transaction.
_PREPARED_AT_ONCE = 200
_RECORDED_AT_ONCE = 100

# How many names of a list are looked up in one transaction, and how many a preview has.
_SORTED_AT_ONCE = 500
_SAMPLE = 10

# Results that are still to be written: with so many no contact is begun.
_MAX_ENDED = 500

# For so long they are begun one by one. What is most valuable comes first, much of it
# answers, and a contact that is answered takes several times as much as one that fails.
# Whether the reactor can bear more shows a moment later. The pace is made up for.
_SLOW_START_S = 1.0

# After how many contacts to collect what they have left behind. Each leaves some
# hundred objects that only garbage collection finds, some classes among them. Synapse
# collects them once a second: at 500 per second that takes a tenth of a second.
_COLLECT_AFTER = 125
_COLLECT_OLDER_AFTER = 500

# How long to wait between two looks at what is due and what has ended.
_TICK_MS = 5
_LONGEST_TICK_MS = 50

# For how many seconds of its pace a run reads its queue ahead: whether a destination is
# still failing is as old as that.
_AHEAD_S = 0.5

# Contacts begun in one go, at the most for so many seconds of the pace.
_BURST_S = 0.03

# If the reactor is late by so much, half as many.
_LATE_S = 0.02

# How often to look whether a run has been cancelled, while nothing is written.
_LOOK_EVERY_MS = 400

# While the database cannot be used.
_FIRST_RETRY_MS = 500
_LONGEST_RETRY_MS = 5000

# How often to look for a run that nobody works on: the first time soon after the start.
_FIRST_WATCH_MS = 1000
_WATCH_EVERY_MS = 15_000


class BulkReconnect:
    """Makes and works on bulk runs."""

    def __init__(
        self,
        homeserver: Homeserver,
        runs: RunStore,
        destinations: DestinationStore,
        reader: DestinationReader,
        wake: Wake,
        housekeeping: Housekeeping,
    ) -> None:
        self._homeserver = homeserver
        self._runs = runs
        self._destinations = destinations
        self._reader = reader
        self._wake = wake
        self._housekeeping = housekeeping
        # Those that this process works on.
        self._working: set[str] = set()
        homeserver.register_task(_ACTION, self._work)

    def start(self) -> None:
        """Begin to look for runs that nobody works on."""
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_runs",
                _WATCH_EVERY_MS,
                self._watch,
                first_after_ms=_FIRST_WATCH_MS,
            )

    async def sort_out(self, names: Iterable[str]) -> SortedNames:
        """Sort the names of a list by whether they can be contacted."""
        usable: list[str] = []
        unknown: list[str] = []
        invalid: list[str] = []
        names = list(dict.fromkeys(names))
        for begin in range(0, len(names), _SORTED_AT_ONCE):
            piece = names[begin : begin + _SORTED_AT_ONCE]
            valid = [name for name in piece if self._homeserver.is_server_name(name)]
            known = await self._destinations.known(valid)
            usable += [name for name in valid if name in known]
            unknown += [name for name in valid if name not in known]
            invalid += set(piece).difference(valid)
        return SortedNames(usable, unknown, sorted(invalid))

    async def preview(self, order: RunOrder) -> RunPreview:
        """Tell what a run would be for; nothing is changed."""
        wanted = order.criteria.wanted
        if wanted is None:
            return RunPreview(len(order.names), order.names[:_SAMPLE])
        rows = await self._reader.read(wanted, Sort(), None, _SAMPLE)
        count = await self._reader.count(wanted)
        return RunPreview(count, [row.destination for row in rows])

    async def create(self, order: RunOrder) -> tuple[Run, bool]:
        """Make a run and have it begun, if there is none that has not ended.

        Returns:
            The run, and True; or the run that there is, and False. Raises what the
            database raises.
        """
        run, created = await self._runs.create(order)
        if created:
            try:
                await self._homeserver.schedule_task(_ACTION, run.run_id)
            except Exception as e:
                # It is there, and will be found.
                logger.warning("Could not schedule run %s yet: %s", run.run_id, e)
        return run, created

    async def _watch(self) -> None:
        """See to it that a run which has not ended is worked on.

        Synapse runs its tasks again after a restart, but not before a minute has gone
        by; and a process may have been killed between making a run and scheduling it.
        """
        run = await self._runs.active()
        if run is not None and run.run_id not in self._working:
            if await self._homeserver.has_task(_ACTION, run.run_id):
                self._homeserver.launch_tasks()
            else:
                await self._homeserver.schedule_task(_ACTION, run.run_id)

    async def _work(self, run_id: str) -> None:
        """Work on a run to its end; Synapse's task scheduler calls this."""
        if run_id in self._working:
            return
        self._working.add(run_id)
        try:
            runner = secrets.token_hex(8)
            run = await _persist(
                self._homeserver, lambda: self._runs.take(run_id, runner)
            )
            if run is not None:
                logger.info("Working on bulk run %s", run_id)
                await _Worker(
                    self._homeserver,
                    self._runs,
                    self._reader,
                    self._wake,
                    run,
                    runner,
                ).work()
                await _persist(self._homeserver, self._housekeeping.clear_queue)
        finally:
            self._working.discard(run_id)


async def _persist(homeserver: Homeserver, func: Callable[[], Awaitable[T]]) -> T:
    """Use the database, again and again until it works."""
    retry_ms = _FIRST_RETRY_MS
    while True:
        try:
            return await func()
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception as e:
            logger.warning("A bulk run waits for the database: %s", e)
        await homeserver.sleep_ms(retry_ms)
        retry_ms = min(retry_ms * 2, _LONGEST_RETRY_MS)


class _Worker:
    """Works on one run, as long as it is this worker's."""

    def __init__(
        self,
        homeserver: Homeserver,
        runs: RunStore,
        reader: DestinationReader,
        wake: Wake,
        run: Run,
        runner: str,
    ) -> None:
        self._homeserver = homeserver
        self._runs = runs
        self._reader = reader
        self._wake = wake
        self._run = run
        self._runner = runner
        # What has been read of the queue, and up to where.
        self._ahead: deque[Queued] = deque()
        self._position: tuple[int, str] | None = None
        self._has_more = True
        self._in_flight = 0
        self._begun = 0
        self._ended: deque[RunResult] = deque()
        self._rate = Rate()
        self._recording = False
        # Whether the run is still to be worked on, and when that was last looked at.
        self._alive = True
        self._looked_ms = homeserver.now_ms()

    async def work(self) -> None:
        """Find the destinations, and see to each of them."""
        run, runner = self._run, self._runner
        if run.status is RunStatus.PREPARING:
            if not await self._prepare():
                return
            if not await self._persist(lambda: self._runs.prepared(run.run_id, runner)):
                return
        while await self._work_through():
            if await self._persist(lambda: self._runs.complete(run.run_id, runner)):
                return
            # Something has gone wrong with some of them: they are still in the queue.
            self._position, self._has_more = None, True
            await self._homeserver.sleep_ms(_LONGEST_RETRY_MS)

    async def _work_through(self) -> bool:
        """See to what is in the queue; return whether the run is still its."""
        run = self._run
        pace = Pace(run.per_second, self._now_s())
        begun_s = self._now_s()
        burst, late_s = max(int(run.per_second * _BURST_S), 1), 0.0
        while self._has_more or self._ahead or self._in_flight or self._ended:
            if not await self._is_alive():
                return False
            # A reactor that is late has much to do: less of it shall be ours.
            calm_burst = max(int(burst * _LATE_S / (_LATE_S + late_s)), 1)
            if self._now_s() - begun_s < _SLOW_START_S:
                calm_burst = 1
            most = min(
                *(pace.allowed(self._now_s()), calm_burst),
                *(MAX_IN_FLIGHT - self._in_flight, _MAX_ENDED - len(self._ended)),
            )
            if most > 0:
                await self._read_ahead()
            begun = self._begin(most)
            pace.begun(begun)
            self._collect(begun)
            self._start_recording()
            is_idle = not (self._in_flight or self._ended)
            longest_ms = _LOOK_EVERY_MS if is_idle else _LONGEST_TICK_MS
            next_ms = int(pace.next_in_s() * 1000)
            pause_ms = max(min(next_ms, longest_ms), _TICK_MS)
            due_s = self._now_s() + pause_ms / 1000
            await self._homeserver.sleep_ms(pause_ms)
            late_s = max(self._now_s() - due_s, 0)
        return True

    async def _prepare(self) -> bool:
        """Put the destinations into the queue; return whether the run goes on."""
        while True:
            try:
                async with aclosing(self._names()) as pieces:
                    async for names, prepared_to in pieces:
                        if not await self._runs.add(
                            self._run.run_id, self._runner, names, prepared_to
                        ):
                            return False
                return True
            except CancelledError:
                raise
            except Exception as e:
                logger.warning("A bulk run waits for the database: %s", e)
            await self._homeserver.sleep_ms(_LONGEST_RETRY_MS)
            found = await self._persist(
                lambda: self._runs.take(self._run.run_id, self._runner)
            )
            if found is None:
                return False
            self._run = found

    async def _names(self) -> AsyncGenerator[tuple[list[str], str], None]:
        """Yield the names that have not been put into the queue yet, some at a time.

        With each piece, up to where they have been found with it.
        """
        run = self._run
        if run.criteria.wanted is None:
            names = await self._runs.names(run.run_id)
            for begin in range(
                int(run.prepared_to or 0), len(names), _PREPARED_AT_ONCE
            ):
                end = begin + _PREPARED_AT_ONCE
                yield names[begin:end], str(end)
            return
        after = None if run.prepared_to is None else Position(None, run.prepared_to)
        pieces = self._reader.pieces(run.criteria.wanted, Sort(), after)
        async with aclosing(pieces):
            async for rows in pieces:
                for begin in range(0, len(rows), _PREPARED_AT_ONCE):
                    part = rows[begin : begin + _PREPARED_AT_ONCE]
                    yield [row.destination for row in part], part[-1].destination

    async def _read_ahead(self) -> None:
        """Read more of the queue, if that is needed."""
        most = max(int(self._run.per_second * _AHEAD_S), 1)
        if self._has_more and len(self._ahead) <= most // 2:
            rows = await self._persist(
                lambda: self._runs.next(self._run.run_id, self._position, most)
            )
            self._has_more = len(rows) == most
            self._ahead.extend(rows)
            if rows:
                self._position = rows[-1].position

    def _begin(self, most: int) -> int:
        """Begin contacts; return how many. What needs none is done with at once."""
        begun = 0
        while self._ahead and begun < most:
            queued = self._ahead.popleft()
            result = self._without_contact(queued)
            if result is not None:
                self._ended.append(result)
                continue
            begun += 1
            self._in_flight += 1
            self._homeserver.run_in_background(
                "federation_admin_bulk_contact", self._contact, queued.destination
            )
        return begun

    def _collect(self, begun: int) -> None:
        """Collect young garbage, so that there is never much of it at once."""
        before, self._begun = self._begun, self._begun + begun
        if before // _COLLECT_OLDER_AFTER < self._begun // _COLLECT_OLDER_AFTER:
            gc.collect(1)
        elif before // _COLLECT_AFTER < self._begun // _COLLECT_AFTER:
            gc.collect(0)

    def _without_contact(self, queued: Queued) -> RunResult | None:
        """Return what comes of a destination that is not contacted; else None."""
        outcome, note = RunOutcome.SKIPPED, ""
        if queued.row is None:
            note = "Synapse has no row for it any more"
        elif queued.was_failing and not queued.row.is_failing:
            outcome = RunOutcome.NO_LONGER_FAILING
        elif not self._homeserver.is_server_name(queued.destination):
            note = "it is no valid server name"
        elif not self._homeserver.is_allowed(queued.destination):
            note = "federation_domain_whitelist does not allow it"
        else:
            return None
        now_ts = self._homeserver.now_ms()
        return RunResult(queued.destination, outcome, now_ts, now_ts, note=note)

    async def _contact(self, name: str) -> None:
        begun_ts = self._homeserver.now_ms()
        try:
            contact = await probe(
                self._homeserver, name, timeout_ms=self._run.timeout_ms
            )
        finally:
            self._in_flight -= 1
        outcome, note = RunOutcome.CONNECTED, ""
        if contact.failure is not None:
            outcome = RunOutcome.STILL_FAILING
        if contact.failure is not None and contact.failure.is_ours:
            # It tells nothing of the destination.
            outcome, note = RunOutcome.SKIPPED, message_of(contact.failure)
        now_ts = self._homeserver.now_ms()
        self._ended.append(
            RunResult(
                *(name, outcome, begun_ts, now_ts, None if note else contact),
                note=note,
            )
        )

    async def _is_alive(self) -> bool:
        """Tell whether the run is still to be worked on; look at times."""
        now_ms = self._homeserver.now_ms()
        if self._alive and not 0 <= now_ms - self._looked_ms < _LOOK_EVERY_MS:
            self._looked_ms = now_ms
            self._alive = await self._persist(
                lambda: self._runs.is_alive(self._run.run_id, self._runner)
            )
        return self._alive

    def _start_recording(self) -> None:
        """Have what has ended written, beside the contacts that go on."""
        if self._ended and not self._recording:
            self._recording = True
            self._homeserver.run_in_background(
                "federation_admin_bulk_record", self._record
            )

    async def _record(self) -> None:
        """Write what has ended, until there is nothing left."""
        try:
            while self._ended and self._alive:
                # It counts as not written until it is: the run does not end before.
                results = list(islice(self._ended, _RECORDED_AT_ONCE))
                rate = self._rate.add(len(results), self._now_s())
                self._looked_ms = self._homeserver.now_ms()
                self._alive = await self._persist(
                    lambda results=results, rate=rate: self._runs.record(  # type: ignore[misc]
                        self._run, self._runner, results, rate
                    )
                )
                for _ in results:
                    self._ended.popleft()
                if self._alive:
                    for result in results:
                        if result.outcome is RunOutcome.CONNECTED:
                            self._wake.everywhere(result.destination)
        finally:
            self._recording = False

    async def _persist(self, func: Callable[[], Awaitable[T]]) -> T:
        return await _persist(self._homeserver, func)

    def _now_s(self) -> float:
        return self._homeserver.reactor.seconds()
