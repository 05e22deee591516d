# SPDX-License-Identifier: Apache-2.0
"""Keeps the gauges among the metrics up to date, on the process with background tasks.

A scrape reads what was counted last: it never waits for the database. Where nobody
scrapes, nothing is counted.
"""

from collections.abc import Awaitable, Callable, Sequence

from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.destinations.summary import Summary, SummaryStore
from synapse_federation_admin.history.outlook import (
    CorrelationVerdict,
    RecentAttemptsStore,
    with_senders,
)
from synapse_federation_admin.history.store import by_every_kind
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.metrics import (
    BACKLOG,
    DESTINATIONS,
    FAILING,
    OLDEST_STUCK_TO_DEVICE,
    OLDEST_TO_DEVICE,
    OUTLOOK,
    SENDER_AHEAD,
    SENDER_BEHIND,
    SENDER_LAG,
    SENDER_LATE,
    SENDER_UP,
    TRIED,
    UPDATED,
)

# How old the gauges may become; how often it is looked whether anybody has read them,
# and how soon after the start: when outages are up to date.
_EVERY_MS = 120_000
_LOOK_EVERY_MS = 10_000
_FIRST_MS = 5000

# How old the correlation may be, which is read once a minute for other things.
_CORRELATION_MS = 90_000


class Monitor:
    """Keeps the gauges up to date."""

    def __init__(
        self,
        homeserver: Homeserver,
        summary: SummaryStore,
        senders: Callable[[], Awaitable[Sequence[Sender]]],
        recent_attempts: RecentAttemptsStore | None,
    ) -> None:
        """Count nothing yet.

        Args:
            homeserver: The homeserver.
            summary: Counts destinations.
            senders: Returns who sends.
            recent_attempts: Knows what was tried lately; None: nothing is recorded.
        """
        self._homeserver = homeserver
        self._summary = summary
        self._senders = senders
        self._recent_attempts = recent_attempts
        self._updated_ts = homeserver.now_ms()
        self._next_ts = 0
        self._is_read = False

    def start(self) -> None:
        """Begin, if this process runs background tasks."""
        if self._homeserver.runs_background_tasks:
            self._homeserver.metrics(UPDATED).set_function(self._read)
            self._homeserver.every(
                "federation_admin_monitor",
                _LOOK_EVERY_MS,
                self._update_if_read,
                first_after_ms=_FIRST_MS,
            )

    def _read(self) -> float:
        """Tell when the gauges were updated, and take note that they are read.

        Perhaps on a thread of Prometheus's client.
        """
        self._is_read = True
        return self._updated_ts / 1000

    async def _update_if_read(self) -> None:
        now_ts = self._homeserver.now_ms()
        if self._is_read and now_ts >= self._next_ts:
            await self.update()
            self._is_read = False
            self._next_ts = now_ts + _EVERY_MS

    async def update(self) -> None:
        """Bring all gauges up to date. Raises what the database raises."""
        metrics = self._homeserver.metrics
        summary = await self._summary.get()
        for status, count in summary.by_status.items():
            metrics(DESTINATIONS, status.value).set(count)
        now_ts = self._homeserver.now_ms()
        totals = summary.backlog
        if totals is not None:
            for queue, waiting in (
                ("rooms", totals.rooms),
                ("rooms_never_caught_up", totals.rooms_never_caught_up),
                ("to_device_messages", totals.to_device_messages),
                ("device_list_updates", totals.device_list_updates),
            ):
                metrics(BACKLOG, queue).set(waiting)
            metrics(OLDEST_TO_DEVICE).set(_age_s(now_ts, totals.oldest_to_device_ts))
            metrics(OLDEST_STUCK_TO_DEVICE).set(
                _age_s(now_ts, totals.oldest_stuck_to_device_ts)
            )
        senders = await self._senders()
        for sender in senders:
            name = sender.instance or ""
            metrics(SENDER_UP, name).set(not sender.is_down)
            metrics(SENDER_LATE, name).set(sender.is_late)
            metrics(SENDER_BEHIND, name).set(sender.behind_events or 0)
            metrics(SENDER_LAG, name).set((sender.behind_ms or 0) / 1000)
            metrics(SENDER_AHEAD, name).set(sender.ahead_events or 0)
        if self._recent_attempts is not None:
            await self._update_recorded(self._recent_attempts, summary, senders)
        self._updated_ts = now_ts

    async def _update_recorded(
        self,
        recent_attempts: RecentAttemptsStore,
        summary: Summary,
        senders: Sequence[Sender],
    ) -> None:
        """Bring those up to date that are of what is recorded."""
        metrics = self._homeserver.metrics
        known = summary.failing_by_kind
        if known is not None:
            for kind, ages in by_every_kind(summary.failing_by_age, known).items():
                metrics(FAILING, kind).set(sum(ages.values()))
        correlation = with_senders(
            await recent_attempts.correlation(_CORRELATION_MS), senders
        )
        for verdict in CorrelationVerdict:
            metrics(OUTLOOK, verdict.value).set(verdict is correlation.verdict)
        metrics(TRIED, "failed").set(correlation.last_hour.failing)
        metrics(TRIED, "succeeded").set(correlation.last_hour.succeeded)


def _age_s(now_ts: int, since_ts: int | None) -> float:
    """Return how long ago a time is in seconds; 0 if there is none."""
    return 0 if since_ts is None else max(0, now_ts - since_ts) / 1000
