# SPDX-License-Identifier: Apache-2.0
"""What the rest of the module needs of the Synapse process that it is loaded into."""

import logging
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING

from synapse.types import JsonMapping, ScheduledTask, TaskStatus

from synapse_federation_admin.homeserver.background import Background
from synapse_federation_admin.homeserver.requests import Requests

if TYPE_CHECKING:
    from synapse_federation_admin.homeserver.federation import Federation
    from synapse_federation_admin.homeserver.retry_timings import RetryTimings
    from synapse_federation_admin.homeserver.traffic import TrafficObserver

logger = logging.getLogger(__name__)


class Homeserver(Requests, Background):
    """The Synapse process that this module is loaded into.

    What everything needs of it are methods: `process`, `database`, `background` and
    `requests` have them. What only some features need are parts, made when they are
    first used: if Synapse has no longer what a part is made of, the others stay.
    """

    @cached_property
    def retry_timings(self) -> "RetryTimings":
        """What Synapse's store keeps of failing destinations."""
        from synapse_federation_admin.homeserver.retry_timings import RetryTimings

        return RetryTimings(self._hs, self)

    @cached_property
    def federation(self) -> "Federation":
        """Requests to other servers."""
        from synapse_federation_admin.homeserver.federation import Federation

        return Federation(self._hs)

    def observe_traffic(self, observer: "TrafficObserver") -> None:
        """Have an observer told of this process's federation requests, from now on.

        Whatever is wrong with that, Synapse goes on.
        """
        from synapse_federation_admin.homeserver.traffic import (
            observe,
            stop_observing,
        )

        try:
            observe(self._hs, observer)
        except Exception:
            logger.exception("Cannot take note of why federation requests fail")
            return
        self._hs.register_sync_shutdown_handler(
            phase="during",
            eventType="shutdown",
            shutdown_func=stop_observing,
            hs=self._hs,
        )

    # -- scheduled tasks ---------------------------------------------------------------

    def register_task(self, action: str, run: Callable[[str], Awaitable[None]]) -> None:
        """Tell Synapse's task scheduler how to run tasks of a kind.

        Before any is scheduled, and at every start: those that were running when the
        process ended are run again.

        Args:
            action: The kind, which no other task of Synapse's has.
            run: Called with what the task is about, on the process that runs background
                tasks.
        """

        async def run_task(
            task: ScheduledTask,
        ) -> tuple[TaskStatus, JsonMapping | None, str | None]:
            await run(task.resource_id or "")
            return TaskStatus.COMPLETE, None, None

        self._hs.get_task_scheduler().register_action(run_task, action)

    async def schedule_task(self, action: str, about: str) -> None:
        """Have a task run as soon as may be."""
        await self._hs.get_task_scheduler().schedule_task(action, resource_id=about)

    async def has_task(self, action: str, about: str) -> bool:
        """Tell whether there is a task that has not come to its end."""
        tasks = await self._hs.get_task_scheduler().get_tasks(
            actions=[action],
            resource_id=about,
            statuses=[TaskStatus.ACTIVE, TaskStatus.SCHEDULED],
        )
        return bool(tasks)

    def launch_tasks(self) -> None:
        """Have the scheduler look for tasks now; else it does so once a minute.

        Only on the process that runs background tasks.
        """
        self._hs.get_task_scheduler().on_new_task("")
