# SPDX-License-Identifier: Apache-2.0
"""Runs whatever is done to many destinations: an action, one destination after another.

A run is a row in `federation_admin_runs`, with a queue. The process that runs
background tasks works on it: it is woken by a signal when a run is made, and looks by
itself once a minute. All that it has to know is in the database, so a run goes on
wherever it was when its process ended (`synapse_federation_admin.storage.run_queue`).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import ClassVar, TypeVar

from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.reader import DestinationReader
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    Position,
    Sort,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.metrics import REPAIRS
from synapse_federation_admin.repair.criteria import wanted_by
from synapse_federation_admin.storage.run_queue import LEFT, Job
from synapse_federation_admin.storage.runs import RunStore, whole_action
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import FAILING, FITS, Sql, any_of, in_pieces
from synapse_federation_admin.storage.values import AUDIT_PENDING, Run, RunStatus

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long to wait before something is tried again, at first and at most, and how often
# it may fail for another reason than that the database is away, each time sooner than
# after so long.
_FIRST_RETRY_MS = 500
_LONGEST_RETRY_MS = 5000
_MOST_FAILURES = 5
_PROGRESS_MS = 60_000

# How often to look for runs that nobody works on: the first time soon after the start.
_FIRST_LOOK_MS = 1000
_LOOK_EVERY_MS = 60_000


class Action(ABC):
    """What can be done to each of many destinations.

    Attributes:
        name: Its name in the API, in the audit and in `federation_admin_runs`.
        outcomes: The outcomes that a destination can have.
        options: The keys of its options.
        priority: The SQL expression of a destination's priority in the queue, of the
            columns of `destinations AS d`: the smallest comes first.
    """

    name: ClassVar[str]
    outcomes: ClassVar[Sequence[str]]
    options: ClassVar[frozenset[str]]
    priority: ClassVar[str] = "0"

    def condition(self, run: Run) -> Sql:  # noqa: ARG002
        """Return what, beside its criteria, a run queues destinations by."""
        return Sql("1 = 1")

    @abstractmethod
    async def work(self, job: Job) -> None:
        """Do what is in the queue, from its start; return when nothing is left.

        Or when the run is not to be worked on any more. Whatever it raises, it is
        called again.
        """


class RunFailedError(Exception):
    """Something has failed again and again, and not because the database is away."""


async def persist(homeserver: Homeserver, func: Callable[[], Awaitable[T]]) -> T:
    """Call something that uses the database until it works.

    Raises:
        RunFailedError: It does not, and the database is not away.
    """
    retry_ms, failures = _FIRST_RETRY_MS, 0
    while True:
        began_ms = homeserver.now_ms()
        try:
            return await homeserver.await_database(func)
        except (CancelledError, RunFailedError):
            raise
        except Exception as e:
            if homeserver.now_ms() - began_ms > _PROGRESS_MS:
                retry_ms, failures = _FIRST_RETRY_MS, 0
            failures += 1
            logger.exception("Error %s of %s in a run", failures, _MOST_FAILURES)
            if failures >= _MOST_FAILURES:
                raise RunFailedError(f"{type(e).__name__}: {e}") from e
        await homeserver.sleep_ms(retry_ms)
        retry_ms = min(retry_ms * 2, _LONGEST_RETRY_MS)


class Runner:
    """Works on runs, where background tasks are run."""

    def __init__(
        self,
        homeserver: Homeserver,
        runs: RunStore,
        reader: DestinationReader,
        tables: Tables,
        actions: Sequence[Action],
    ) -> None:
        self._homeserver = homeserver
        self._runs = runs
        self._reader = reader
        self._tables = tables
        self._actions = {action.name: action for action in actions}
        # Those that this process works on, and those that it leaves alone.
        self._working: dict[str, Job | None] = {}
        self._left: set[str] = set()
        self._wake = homeserver.signal("runs", self._woken)
        ended = [s.value for s in (RunStatus.COMPLETE, RunStatus.CANCELLED)]
        for action in actions:
            for outcome in action.outcomes:
                # What is pending has not ended.
                if outcome != AUDIT_PENDING:
                    homeserver.metrics(REPAIRS, action.name, outcome)
            for outcome in (*ended, RunStatus.FAILED.value):
                homeserver.metrics(REPAIRS, whole_action(action.name), outcome)

    def start(self) -> None:
        """Begin to look for runs."""
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_runner",
                _LOOK_EVERY_MS,
                self._begin,
                first_after_ms=_FIRST_LOOK_MS,
            )

    async def wake(self) -> None:
        """Have a run that was just made be begun, on the process that works on runs."""
        try:
            await self._wake()
        except CancelledError:
            raise
        except Exception as e:
            # It is there, and will be found within a minute.
            logger.warning("Cannot wake the runner: %s", e)

    def _woken(self) -> None:
        if self._homeserver.runs_background_tasks:
            self._homeserver.run_in_background("federation_admin_runner", self._begin)

    async def _begin(self) -> None:
        """Begin to work on every run that nobody works on."""
        for run in await self._runs.unended():
            if run.run_id in self._working or run.run_id in self._left:
                continue
            try:
                action = self._actions[run.action]
                wanted = wanted_by(run.criteria)
                RunStatus(run.status)
                if not run.options.keys() <= action.options:
                    raise ValueError(run.options)
            except Exception:
                # Whatever another version has written: not knowing what it says, this
                # one may do too much.
                self._left.add(run.run_id)
                logger.warning(
                    "Run %s (%s) is left alone, since another version has made it: "
                    "upgrade this process, or cancel the run",
                    run.run_id,
                    run.action,
                )
                continue
            self._working[run.run_id] = None
            self._homeserver.run_in_background(
                "federation_admin_run", self._work, run.run_id, action, wanted
            )

    async def _work(
        self, run_id: str, action: Action, wanted: DestinationFilter | None
    ) -> None:
        """Work on a run to its end."""
        try:
            logger.info("Working on run %s (%s)", run_id, action.name)
            try:
                await persist(
                    self._homeserver, lambda: self._work_on(run_id, action, wanted)
                )
            except RunFailedError as e:
                logger.error("Run %s has failed: %s", run_id, e)
                # If even that fails, nobody here tries again.
                self._left.add(run_id)
                error, job = str(e)[:500], self._working.get(run_id)
                mark = job.mark if job else None
                await persist(
                    self._homeserver, lambda: self._runs.fail(run_id, error, mark)
                )
            await persist(self._homeserver, lambda: self._tables.delete(LEFT, 0))
        finally:
            self._working.pop(run_id, None)

    async def _work_on(
        self, run_id: str, action: Action, wanted: DestinationFilter | None
    ) -> None:
        """Work on a run, from wherever it is."""
        job = await Job.take(self._runs, run_id)
        if job is None:
            return
        self._working[run_id] = job
        if job.run.status == RunStatus.PREPARING.value:
            async with aclosing(self._names(job.run, wanted)) as pieces:
                async for names in pieces:
                    rows = self._rows(job.run, action, names)
                    if not await job.add(rows, names[-1]):
                        return
            if not await job.prepared():
                return
        await action.work(job)
        while job.alive and not await job.complete():
            # Something has gone wrong with some of them: they are still in the queue.
            await self._homeserver.sleep_ms(_LONGEST_RETRY_MS)
            await action.work(job)

    def _rows(self, run: Run, action: Action, names: Sequence[str]) -> Sql:
        """Select what goes into the queue of some destinations that a run is for."""
        these = any_of("d.destination", names)
        condition = action.condition(run)
        return Sql(
            f"SELECT {action.priority} AS priority, d.destination, "  # noqa: S608
            f"CASE WHEN {FAILING} THEN 1 ELSE 0 END AS was_failing "
            "FROM destinations AS d "
            f"WHERE {these.text} AND {FITS} AND {condition.text}",
            (*these.args, *condition.args),
        )

    async def _names(
        self, run: Run, wanted: DestinationFilter | None
    ) -> AsyncGenerator[list[str], None]:
        """Yield the names that have not been put into the queue yet, in their order."""
        after = run.prepared_to
        if wanted is None:
            names = await self._runs.names(run.run_id)
            left = sorted(name for name in names if name > (after or ""))
            for piece in in_pieces(left, limits.DESTINATIONS_QUEUED):
                yield list(piece)
            return
        begin = None if after is None else Position(None, after)
        async with aclosing(self._reader.of(wanted, Sort()).pieces(begin)) as pieces:
            async for rows in pieces:
                for part in in_pieces(rows, limits.DESTINATIONS_QUEUED):
                    yield [row.destination for row in part]
