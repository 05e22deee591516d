# SPDX-License-Identifier: Apache-2.0
"""Contacts the destinations of a run: at a pace, many at once, and not too many."""

import gc
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from twisted.internet.defer import CancelledError

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.runner import persist
from synapse_federation_admin.storage.run_queue import Job
from synapse_federation_admin.storage.run_values import Queued, RunResult

T = TypeVar("T")

# Contacts under way at once. One that hangs does not hold the others up; so many that
# hang do.
MAX_IN_FLIGHT = 400

# How many results are written in one transaction.
_RECORDED_AT_ONCE = 100

# After how many contacts to collect what they have left behind. Each leaves some
# hundred objects that only garbage collection finds, some classes among them. Synapse
# collects them once a second: at 500 per second that takes a tenth of a second.
_COLLECT_AFTER = 125
_COLLECT_OLDER_AFTER = 500

# How long to wait between two looks at what is due and what has ended.
_SHORTEST_TICK_MS = 10
_LONGEST_TICK_MS = 50

# For how many seconds of its pace a run reads its queue ahead: whether a destination is
# still failing is as old as that.
_AHEAD_S = 0.5

# Contacts begun in one go, at the most for so many seconds of the pace: a reactor that
# is late begins fewer. What was not begun when it was due is made up for, to an extent.
_BURST_S = 0.02
_MAX_DEBT_S = 2.0

# How often to look whether a run has been cancelled, while nothing is written.
_LOOK_EVERY_S = 0.4


class PacedContacts:
    """Contacts what is in the queue of a run, as long as it is this process's."""

    def __init__(
        self,
        homeserver: Homeserver,
        job: Job,
        *,
        per_second: float,
        without_contact: Callable[[Sequence[Queued]], Awaitable[Sequence[RunResult]]],
        contact: Callable[[str], Awaitable[RunResult]],
        record: Callable[[Sequence[RunResult]], Awaitable[bool]],
    ) -> None:
        """Contact nothing yet.

        Args:
            homeserver: Has the time.
            job: The run.
            per_second: How many contacts to begin per second.
            without_contact: Returns the results for those of some that come next in the
                queue that need no contact.
            contact: Contacts a destination. What it raises, `work` raises: that one
                stays in the queue.
            record: Writes results; returns whether the run goes on.
        """
        self._homeserver = homeserver
        self._job = job
        self._per_second = per_second
        self._without_contact = without_contact
        self._contact = contact
        self._record = record
        # What has been read of the queue, and up to where.
        self._ahead: deque[str] = deque()
        self._position: tuple[int, str] | None = None
        self._has_more = True
        self._in_flight = 0
        self._ended: deque[RunResult] = deque()
        # What has kept a contact from having a result.
        self._error: Exception | None = None

    async def work(self) -> None:
        """Do what is in the queue, once."""
        burst = max(int(self._per_second * _BURST_S), 1)
        most_due = max(self._per_second * _MAX_DEBT_S, 1)
        due, begun = 1.0, 0
        looked_s = at_s = self._now_s()
        while self._error is None and (
            self._has_more or self._ahead or self._in_flight or self._ended
        ):
            most = min(int(due), burst, MAX_IN_FLIGHT - self._in_flight)
            if most > 0:
                await self._read_ahead()
            for _ in range(min(most, len(self._ahead))):
                self._begin(self._ahead.popleft())
                due, begun = due - 1, begun + 1
                _collect(begun)
            if self._ended or self._now_s() - looked_s > _LOOK_EVERY_S:
                looked_s = self._now_s()
                if not await self._record_ended():
                    return
            next_ms = int((1 - due) / self._per_second * 1000)
            await self._homeserver.sleep_ms(
                min(max(next_ms, _SHORTEST_TICK_MS), _LONGEST_TICK_MS)
            )
            elapsed_s, at_s = self._now_s() - at_s, self._now_s()
            due = min(due + elapsed_s * self._per_second, most_due)
        if self._error is not None:
            raise self._error

    async def _read_ahead(self) -> None:
        """Read more of the queue, if needed; what needs no contact has ended."""
        most = max(int(self._per_second * _AHEAD_S), 1)
        if self._has_more and len(self._ahead) <= most // 2:
            queued = await self._persist(lambda: self._job.next(self._position, most))
            results = await self._persist(lambda: self._without_contact(queued))
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
            self._ended.append(await self._contact(name))
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
        some = min(len(self._ended), _RECORDED_AT_ONCE)
        if not some:
            return await self._persist(self._job.look)
        results = [self._ended.popleft() for _ in range(some)]
        return await self._persist(lambda: self._record(results))

    async def _persist(self, func: Callable[[], Awaitable[T]]) -> T:
        """Use the database until it works: what is under way is not to be lost."""
        return await persist(self._homeserver, func)

    def _now_s(self) -> float:
        return self._homeserver.reactor.seconds()


def _collect(begun: int) -> None:
    """Collect young garbage, so that there is never much of it at once."""
    if begun % _COLLECT_OLDER_AFTER == 0:
        gc.collect(1)
    elif begun % _COLLECT_AFTER == 0:
        gc.collect(0)
