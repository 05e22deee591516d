# SPDX-License-Identifier: Apache-2.0
"""Contacts the destinations of a run: at a pace, many at once, and not too many."""

import gc
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from twisted.internet.defer import CancelledError

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.pace import Pace, Rate
from synapse_federation_admin.repair.runner import Job
from synapse_federation_admin.storage.run_values import Queued, RunResult
from synapse_federation_admin.storage.runs import Effect

# Contacts under way at once. One that hangs does not hold the others up; so many that
# hang do.
MAX_IN_FLIGHT = 400

# How many results are written in one transaction, and with how many that are still to
# be written no contact is begun.
_RECORDED_AT_ONCE = 100
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

# Returns the results for those of some destinations that need no contact.
WithoutContact = Callable[[Sequence[Queued]], Awaitable[Sequence[RunResult]]]


class PacedContacts:
    """Contacts what is in the queue of a run, as long as it is this process's."""

    def __init__(
        self,
        homeserver: Homeserver,
        job: Job,
        *,
        per_second: float,
        without_contact: WithoutContact,
        contact: Callable[[str], Awaitable[RunResult]],
        effect: Effect,
        recorded: Callable[[RunResult], None],
    ) -> None:
        """Contact nothing yet.

        Args:
            homeserver: Has the time.
            job: The run.
            per_second: How many contacts to begin per second.
            without_contact: Asked before, of some that come next in the queue.
            contact: Contacts a destination. What it raises, `work` raises: that one
                stays in the queue.
            effect: What is changed of destinations when results are written.
            recorded: Called with each result that has been written.
        """
        self._homeserver = homeserver
        self._job = job
        self._per_second = per_second
        self._without_contact = without_contact
        self._contact = contact
        self._effect = effect
        self._recorded = recorded
        # What has been read of the queue, and up to where.
        self._ahead: deque[str] = deque()
        self._position: tuple[int, str] | None = None
        self._has_more = True
        self._in_flight = 0
        self._begun = 0
        self._ended: deque[RunResult] = deque()
        self._rate = Rate()
        self._recording = False
        self._looked_ms = homeserver.now_ms()
        # What has kept results from being written, or a contact from having one.
        self._error: Exception | None = None

    async def work(self) -> None:
        """Do what is in the queue, once."""
        pace = Pace(self._per_second, self._now_s())
        begun_s = self._now_s()
        burst, late_s = max(int(self._per_second * _BURST_S), 1), 0.0
        while self._has_more or self._ahead or self._in_flight or self._ended:
            if self._error is not None:
                raise self._error
            if not await self._is_alive():
                return
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
        if self._error is not None:
            raise self._error

    async def _read_ahead(self) -> None:
        """Read more of the queue, if needed; what needs no contact has ended."""
        most = max(int(self._per_second * _AHEAD_S), 1)
        if self._has_more and len(self._ahead) <= most // 2:
            queued = await self._job.next(self._position, most)
            results = await self._without_contact(queued)
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

    def _begin(self, most: int) -> int:
        """Begin contacts; return how many."""
        begun = min(max(most, 0), len(self._ahead))
        self._in_flight += begun
        for _ in range(begun):
            self._homeserver.run_in_background(
                "federation_admin_bulk_contact", self._run, self._ahead.popleft()
            )
        return begun

    async def _run(self, name: str) -> None:
        try:
            self._ended.append(await self._contact(name))
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception as e:
            # It is raised where the run is worked on.
            self._error = e
        finally:
            self._in_flight -= 1

    def _collect(self, begun: int) -> None:
        """Collect young garbage, so that there is never much of it at once."""
        before, self._begun = self._begun, self._begun + begun
        if before // _COLLECT_OLDER_AFTER < self._begun // _COLLECT_OLDER_AFTER:
            gc.collect(1)
        elif before // _COLLECT_AFTER < self._begun // _COLLECT_AFTER:
            gc.collect(0)

    async def _is_alive(self) -> bool:
        """Tell whether the run is still to be worked on; look at times."""
        now_ms = self._homeserver.now_ms()
        if self._job.alive and not 0 <= now_ms - self._looked_ms < _LOOK_EVERY_MS:
            self._looked_ms = now_ms
            await self._job.look()
        return self._job.alive

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
            while self._ended and self._job.alive:
                # It counts as not written until it is: the run does not end before.
                results = list(islice(self._ended, _RECORDED_AT_ONCE))
                rate = self._rate.add(len(results), self._now_s())
                self._looked_ms = self._homeserver.now_ms()
                await self._job.record(results, self._effect, rate)
                for _ in results:
                    self._ended.popleft()
                if self._job.alive:
                    for result in results:
                        self._recorded(result)
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception as e:
            # It is raised where the run is worked on.
            self._error = e
        finally:
            self._recording = False

    def _now_s(self) -> float:
        return self._homeserver.reactor.seconds()
