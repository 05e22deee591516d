# SPDX-License-Identifier: Apache-2.0
"""Keeps what a run has still to do, and writes what came of it.

Until a run has ended it has a row in `federation_admin_run_queue` for each destination
that it has still to do. The result for a destination is written in one transaction:
what is changed of it, its row in the queue, the counts, and its entry in the audit. So
whenever the process is killed, changes, counts and audit agree, and what is still in
the queue has had none of it.

Each process that takes a run writes its mark into it, and writes nothing more once
another's mark is there.
"""

import json
import secrets
from collections import Counter, deque
from collections.abc import Callable, Sequence

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.storage.runs import UNENDED, RunStore
from synapse_federation_admin.storage.sql import Expired, Sql, any_of
from synapse_federation_admin.storage.values import (
    AuditEntry,
    Queued,
    Run,
    RunError,
    RunErrors,
    RunResult,
    RunStatus,
)

# Of each kind of error, how many are kept.
_RECENT_ERRORS = 5

# For how long back it is told how many are done per second.
_LATELY_MS = 10_000

# What runs have not done that have ended: at any time.
LEFT = Expired(
    "federation_admin_run_queue", "run_id, destination", f"run_id NOT IN {UNENDED}"
)

# Changes something of destinations, in the transaction in which their results are
# written. Called with the results of those that are still in the queue, it returns
# them, or other ones, if it has found something else.
Effect = Callable[[LoggingTransaction, Sequence[RunResult]], Sequence[RunResult]]


class Job:
    """A run that this process has taken. Every method raises what the database raises.

    Attributes:
        run: The run, as it was when it was taken.
        mark: What this process has written into it.
        alive: Whether it is still to be worked on, as far as that is known: it has not
            ended, and no other process has taken it.
    """

    def __init__(self, runs: RunStore, run: Run, mark: str) -> None:
        self.run = run
        self.mark = mark
        self.alive = True
        self._runs = runs
        self._audit = runs.audit
        self._homeserver = runs.homeserver
        # How many were done by this process, and when how many were: lately.
        self._done = 0
        self._lately: deque[tuple[int, int]] = deque()

    @classmethod
    async def take(cls, runs: RunStore, run_id: str) -> "Job | None":
        """Take a run, from whoever has it; None if it has ended, or is none."""
        mark = secrets.token_hex(8)

        def take_txn(txn: LoggingTransaction) -> Run | None:
            run = runs.lock_txn(txn, run_id)
            if run is None:
                return None
            is_new = run.status == RunStatus.SCHEDULED.value
            return runs.update_txn(
                txn,
                run_id,
                "runner = ?, status = ?, started_ts = COALESCE(started_ts, ?), "
                "error = NULL",
                mark,
                RunStatus.PREPARING.value if is_new else run.status,
                runs.homeserver.now_ms(),
            )

        run = await runs.run("take", take_txn)
        return cls(runs, run, mark) if run else None

    async def add(self, rows: Sql, prepared_to: str) -> bool:
        """Put destinations into the queue; return whether the run is still alive.

        Args:
            rows: Selects the columns priority, destination and was_failing (0 or 1).
            prepared_to: Up to where the destinations have been found with these.
        """
        run_id = self.run.run_id

        def add_txn(txn: LoggingTransaction, _run: Run) -> None:
            txn.execute(
                "INSERT INTO federation_admin_run_queue "  # noqa: S608
                "(run_id, priority, destination, was_failing) "
                "SELECT ?, found.priority, found.destination, found.was_failing "
                f"FROM ({rows.text}) AS found WHERE 1 = 1 "
                "ON CONFLICT (run_id, destination) DO NOTHING",
                (run_id, *rows.args),
            )
            self._runs.update_txn(
                txn,
                run_id,
                "matched = matched + ?, prepared_to = ?",
                txn.rowcount,
                prepared_to,
            )

        return await self._change("add", add_txn)

    async def prepared(self) -> bool:
        """Write that all destinations are in the queue; return whether it is alive."""

        def prepared_txn(txn: LoggingTransaction, run: Run) -> None:
            status = RunStatus.RUNNING.value
            self._runs.update_txn(txn, run.run_id, "status = ?", status)

        return await self._change("prepared", prepared_txn)

    async def next(self, after: tuple[int, str] | None, limit: int) -> list[Queued]:
        """Return what comes next in the queue, after a position in it."""
        beyond = "AND (priority, destination) > (?, ?)" if after else ""
        rows = Sql(
            "SELECT destination, priority, was_failing "  # noqa: S608
            f"FROM federation_admin_run_queue WHERE run_id = ? {beyond} "
            "ORDER BY priority, destination LIMIT ?",
            (self.run.run_id, *(after or ()), limit),
        )

        def next_txn(txn: LoggingTransaction) -> list[Queued]:
            return [
                Queued(name, priority, bool(was_failing))
                for name, priority, was_failing in rows.select_txn(txn)
            ]

        return await self._runs.run("next", next_txn)

    async def record(
        self,
        results: Sequence[RunResult],
        effect: Effect,
    ) -> bool:
        """Write the results for some destinations, all of it or nothing.

        What has been written of a destination already, by a call that seemed to have
        failed, is not written again.

        Args:
            results: The results, one for each destination.
            effect: Changes what is to be changed of the destinations.

        Returns:
            Whether the run is still alive. If not, nothing has been written.
        """
        rate = self._rate_with(len(results))

        def record_txn(txn: LoggingTransaction, run: Run) -> None:
            left = self._take_from_queue_txn(txn, results)
            new = effect(txn, [r for r in results if r.destination in left])
            self._audit.insert_txn(txn, [self._entry(result) for result in new])
            outcomes, totals = Counter(run.outcomes), Counter(run.totals)
            errors = dict(run.errors)
            for result in new:
                outcomes[result.outcome] += 1
                totals.update(result.totals)
                if result.kind:
                    before = errors.get(result.kind, RunErrors())
                    errors[result.kind] = _with_error(before, result)
            self._runs.update_txn(
                txn,
                run.run_id,
                "outcomes = ?, totals = ?, errors = ?, rate = ?",
                json.dumps(outcomes),
                json.dumps(totals),
                json.dumps(errors, default=attr.asdict),
                rate,
            )

        # So that the effect sees what has been committed while it waited for a lock.
        await self._change("record", record_txn, read_committed=True)
        self._done += len(results)
        return self.alive

    def _rate_with(self, done: int) -> float | None:
        """Return how many are done per second, lately, once these are done, too."""
        now_ms = self._homeserver.now_ms()
        self._lately.append((now_ms, self._done))
        while now_ms - self._lately[0][0] > _LATELY_MS:
            self._lately.popleft()
        since_ms, before = self._lately[0]
        if now_ms - since_ms < 1000:
            return None
        return (self._done + done - before) / (now_ms - since_ms) * 1000

    async def say(self, error: str | None) -> bool:
        """Write what the run waits for; None: nothing. Return whether it is alive."""

        def say_txn(txn: LoggingTransaction, run: Run) -> None:
            self._runs.update_txn(txn, run.run_id, "error = ?", error)

        return await self._change("say", say_txn)

    async def look(self) -> bool:
        """Look whether the run is still alive."""
        return await self._change("get", lambda _txn, _run: None)

    async def complete(self) -> bool:
        """End the run, if there is nothing left in its queue.

        Returns:
            Whether there is nothing left to do here.
        """

        def complete_txn(txn: LoggingTransaction, run: Run) -> None:
            txn.execute(
                "SELECT 1 FROM federation_admin_run_queue WHERE run_id = ? LIMIT 1",
                (run.run_id,),
            )
            if txn.fetchone() is None:
                self._runs.end_txn(txn, run.run_id, RunStatus.COMPLETE)

        await self._change("complete", complete_txn)
        return not await self.look()

    async def _change(
        self,
        what: str,
        func: Callable[[LoggingTransaction, Run], None],
        *,
        read_committed: bool = False,
    ) -> bool:
        """Call a function with the run, if it is alive; return whether it is."""

        def change_txn(txn: LoggingTransaction) -> bool:
            run = self._runs.lock_txn(txn, self.run.run_id, self.mark)
            if run is not None:
                func(txn, run)
            return run is not None

        self.alive = await self._runs.run(
            what, change_txn, read_committed=read_committed
        )
        return self.alive

    def _take_from_queue_txn(
        self, txn: LoggingTransaction, results: Sequence[RunResult]
    ) -> set[str]:
        """Delete destinations from the queue; return those that were in it."""
        names = [result.destination for result in results]
        these = any_of("destination", names)
        args = (self.run.run_id, *these.args)
        which = f"federation_admin_run_queue WHERE run_id = ? AND {these.text}"
        txn.execute(f"SELECT destination FROM {which}", args)  # noqa: S608
        left = {name for (name,) in txn.fetchall()}
        txn.execute(f"DELETE FROM {which}", args)  # noqa: S608
        return left

    def _entry(self, result: RunResult) -> AuditEntry:
        entry = self._audit.entry(
            self.run.action,
            self.run.actor,
            destination=result.destination,
            reason=self.run.reason,
            run_id=self.run.run_id,
            outcome=result.outcome,
            details=result.details,
        )
        return attr.evolve(entry, ts=result.ts, ended_ts=result.ended_ts)


def _with_error(before: RunErrors, result: RunResult) -> RunErrors:
    """Return the errors of a kind with one more."""
    error = RunError(result.destination, result.message, result.ended_ts)
    return RunErrors(before.count + 1, (error, *before.recent)[:_RECENT_ERRORS])
