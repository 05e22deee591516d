# SPDX-License-Identifier: Apache-2.0
"""Keeps runs: what they are, what they have still to do, and their results.

A run has a row in `federation_admin_runs`, and until it has ended a row in
`federation_admin_run_queue` for each destination that it has still to do. The result
for a destination is written in one transaction: what is changed of it, its row in the
queue, the counts, and its entry in the audit. So whenever the process is killed,
changes, counts and audit agree, and what is still in the queue has had none of it.

Each process that takes a run writes its mark into it, and writes nothing more once
another's mark is there. Nothing is written to a run that has ended.
"""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import Actor, AuditAction, AuditEntry
from synapse_federation_admin.storage.run_rows import (
    COLUMNS,
    errors_to_json,
    to_run,
    whole_action,
    whole_entry,
    with_errors,
)
from synapse_federation_admin.storage.run_values import (
    Queued,
    Run,
    RunOrder,
    RunResult,
    RunStatus,
)
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql, any_of, delete_some

T = TypeVar("T")

# Changes something of destinations, in the transaction in which their results are
# written. Called with the results of those that are still in the queue, it returns
# them, or other ones, if it has found something else.
Effect = Callable[[LoggingTransaction, Sequence[RunResult]], Sequence[RunResult]]

_RUNS_TO_DO = "SELECT run_id FROM federation_admin_runs WHERE ended_ts IS NULL"


class RunStore:
    """Reads and writes runs. Every method raises what the database raises."""

    def __init__(self, homeserver: Homeserver, tables: Tables, audit: Audit) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._audit = audit
        self._for_update = "FOR UPDATE" if homeserver.is_postgres else ""

    async def create(self, order: RunOrder) -> tuple[Run, bool]:
        """Make a run, unless one of the same action has not ended.

        Returns:
            The run, and True; or the one that has not ended, and False.
        """
        now_ts = self._homeserver.now_ms()
        run_id = secrets.token_hex(8)
        entry = self._audit.entry(
            whole_action(order.action),
            order.actor,
            reason=order.reason,
            run_id=run_id,
            details={"criteria": order.criteria, **order.options},
        )

        def create_txn(txn: LoggingTransaction) -> tuple[Run, bool]:
            txn.execute(
                "INSERT INTO federation_admin_runs ("
                "run_id, action, status, entry_id, user_id, puppeted_by, reason, "
                "criteria, options, names, created_ts, updated_ts, matched, outcomes, "
                "totals, errors) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '{}', '{}', '{}') "
                "ON CONFLICT (action) WHERE ended_ts IS NULL DO NOTHING",
                (
                    *(run_id, order.action, RunStatus.SCHEDULED.value, entry.entry_id),
                    *(order.actor.user_id, order.actor.puppeted_by, order.reason),
                    *(json.dumps(order.criteria), json.dumps(order.options)),
                    *(json.dumps(order.names), now_ts, now_ts),
                ),
            )
            created = bool(txn.rowcount)
            if created:
                self._audit.insert_txn(txn, [entry])
            (found,) = _select(txn, "action = ? AND ended_ts IS NULL", order.action)
            return found, created

        return await self._run("create", create_txn)

    async def get(self, run_id: str) -> Run | None:
        """Return a run; None if there is none of this ID."""
        if "\0" in run_id:
            return None
        found = await self._run("get", lambda txn: _select(txn, "run_id = ?", run_id))
        return found[0] if found else None

    async def unended(self) -> list[Run]:
        """Return the runs that have not ended: one of each action at most."""
        return await self._run(
            "get", lambda txn: _select(txn, "ended_ts IS NULL", limit=1000)
        )

    async def read(self, before: tuple[int, str] | None, limit: int) -> list[Run]:
        """Return the newest runs, or those made before one: its time and its ID."""
        which = "(created_ts, run_id) < (?, ?)" if before else "1 = 1"
        return await self._run(
            "list", lambda txn: _select(txn, which, *(before or ()), limit=limit)
        )

    async def names(self, run_id: str) -> list[str]:
        """Return the names of a run that is for a list of destinations."""

        def names_txn(txn: LoggingTransaction) -> str:
            txn.execute(
                "SELECT names FROM federation_admin_runs WHERE run_id = ?", (run_id,)
            )
            ((names,),) = txn.fetchall()
            return str(names)

        names: list[str] = json.loads(await self._run("names", names_txn))
        return names

    async def take(self, run_id: str, runner: str) -> Run | None:
        """Take a run, from whoever has it; None if it has ended, or is none."""
        now_ts = self._homeserver.now_ms()

        def take_txn(txn: LoggingTransaction) -> Run | None:
            txn.execute(
                "UPDATE federation_admin_runs SET runner = ?, updated_ts = ?, "
                "started_ts = COALESCE(started_ts, ?), "
                "status = CASE WHEN status = ? THEN ? ELSE status END "
                "WHERE run_id = ? AND ended_ts IS NULL",
                (
                    *(runner, now_ts, now_ts),
                    *(RunStatus.SCHEDULED.value, RunStatus.PREPARING.value, run_id),
                ),
            )
            if not txn.rowcount:
                return None
            (found,) = _select(txn, "run_id = ?", run_id)
            return found

        return await self._run("take", take_txn)

    async def add(self, run_id: str, runner: str, rows: Sql, prepared_to: str) -> bool:
        """Put destinations into a run's queue.

        Args:
            run_id: The run.
            runner: The mark of who has it.
            rows: Selects the columns priority, destination and was_failing (0 or 1).
            prepared_to: Up to where the destinations have been found with these.

        Returns:
            Whether the run is still to be worked on by this runner.
        """

        def add_txn(txn: LoggingTransaction) -> bool:
            if self._lock_txn(txn, run_id, runner) is None:
                return False
            txn.execute(
                "INSERT INTO federation_admin_run_queue "  # noqa: S608
                "(run_id, priority, destination, was_failing) "
                "SELECT ?, found.priority, found.destination, found.was_failing "
                f"FROM ({rows.text}) AS found WHERE 1 = 1 "
                "ON CONFLICT (run_id, destination) DO NOTHING",
                (run_id, *rows.args),
            )
            txn.execute(
                "UPDATE federation_admin_runs SET matched = matched + ?, "
                "prepared_to = ?, updated_ts = ? WHERE run_id = ?",
                (txn.rowcount, prepared_to, self._homeserver.now_ms(), run_id),
            )
            return True

        return await self._run("add", add_txn)

    async def prepared(self, run_id: str, runner: str) -> bool:
        """Write that all destinations of a run have been queued.

        Returns:
            Whether the run is still to be worked on by this runner.
        """

        def prepared_txn(txn: LoggingTransaction) -> bool:
            if self._lock_txn(txn, run_id, runner) is None:
                return False
            txn.execute(
                "UPDATE federation_admin_runs SET status = ?, updated_ts = ? "
                "WHERE run_id = ?",
                (RunStatus.RUNNING.value, self._homeserver.now_ms(), run_id),
            )
            return True

        return await self._run("prepared", prepared_txn)

    async def next(
        self, run_id: str, after: tuple[int, str] | None, limit: int
    ) -> list[Queued]:
        """Return what comes next in a run's queue."""
        beyond = "AND (priority, destination) > (?, ?)" if after else ""

        def next_txn(txn: LoggingTransaction) -> list[Queued]:
            txn.execute(
                "SELECT destination, priority, was_failing "  # noqa: S608
                f"FROM federation_admin_run_queue WHERE run_id = ? {beyond} "
                "ORDER BY priority, destination LIMIT ?",
                (run_id, *(after or ()), limit),
            )
            return [
                Queued(name, priority, bool(was_failing))
                for name, priority, was_failing in txn.fetchall()
            ]

        return await self._run("next", next_txn)

    async def record(
        self,
        run: Run,
        runner: str,
        results: Sequence[RunResult],
        effect: Effect,
        rate: float | None = None,
    ) -> bool:
        """Write the results for some destinations, all of it or nothing.

        What has been written of a destination already, by a call that seemed to have
        failed, is not written again.

        Args:
            run: The run.
            runner: The mark of who has it.
            results: The results, one for each destination.
            effect: Changes what is to be changed of the destinations.
            rate: How many are done per second.

        Returns:
            Whether the run is still to be worked on by this runner. If not, nothing has
            been written.
        """

        def record_txn(txn: LoggingTransaction) -> bool:
            found = self._lock_txn(txn, run.run_id, runner)
            if found is None:
                return False
            left = self._take_from_queue_txn(txn, run.run_id, results)
            new = effect(txn, [r for r in results if r.destination in left])
            self._audit.insert_txn(txn, [self._entry(run, result) for result in new])
            outcomes, totals = Counter(found.outcomes), Counter(found.totals)
            for result in new:
                outcomes[result.outcome] += 1
                totals.update(result.totals)
            txn.execute(
                "UPDATE federation_admin_runs SET outcomes = ?, totals = ?, "
                "errors = ?, rate = ?, updated_ts = ? WHERE run_id = ?",
                (
                    *(json.dumps(outcomes), json.dumps(totals)),
                    errors_to_json(with_errors(found.errors, new)),
                    *(rate, self._homeserver.now_ms(), run.run_id),
                ),
            )
            return True

        # So that the effect sees what has been committed while it waited for a lock.
        return await self._tables.run(
            "federation_admin_run_record", record_txn, read_committed=True
        )

    async def is_alive(self, run_id: str, runner: str) -> bool:
        """Tell whether a run is still to be worked on by this runner."""
        return await self._run(
            "get", lambda txn: bool(self._lock_txn(txn, run_id, runner, lock=""))
        )

    async def complete(self, run_id: str, runner: str) -> bool:
        """End a run, if there is nothing left in its queue.

        Returns:
            Whether there is nothing left, or the run is not this runner's any more.
        """

        def complete_txn(txn: LoggingTransaction) -> bool:
            run = self._lock_txn(txn, run_id, runner)
            if run is None:
                return True
            txn.execute(
                "SELECT 1 FROM federation_admin_run_queue WHERE run_id = ? LIMIT 1",
                (run_id,),
            )
            if txn.fetchone() is not None:
                return False
            self._end_txn(txn, run, RunStatus.COMPLETE)
            return True

        return await self._run("complete", complete_txn)

    async def fail(self, run_id: str, runner: str, error: str) -> None:
        """End a run that cannot go on.

        Args:
            run_id: The run.
            runner: The mark of who has it; if another has, nothing is written.
            error: Why, for a person.
        """

        def fail_txn(txn: LoggingTransaction) -> None:
            run = self._lock_txn(txn, run_id, runner)
            if run is not None:
                self._end_txn(txn, run, RunStatus.FAILED, error)

        await self._run("fail", fail_txn)

    async def cancel(self, run_id: str, actor: Actor) -> Run | None:
        """End a run, if it has not ended; from here on nothing is written.

        Returns:
            The run as it is then; None if there is none of this ID.
        """
        if "\0" in run_id:
            return None
        entry = self._audit.entry(
            AuditAction.CANCEL,
            actor,
            run_id=run_id,
            outcome=RunStatus.CANCELLED.value,
        )

        def cancel_txn(txn: LoggingTransaction) -> Run | None:
            found = _select(txn, "run_id = ?", run_id, lock=self._for_update)
            if not found or found[0].ended_ts is not None:
                return found[0] if found else None
            self._audit.insert_txn(txn, [entry])
            return self._end_txn(txn, found[0], RunStatus.CANCELLED)

        return await self._run("cancel", cancel_txn)

    @staticmethod
    def prune_txn(txn: LoggingTransaction, before_ts: int, limit: int) -> int:
        """Delete runs that ended before a time, and what ended runs have not done.

        Args:
            txn: The transaction.
            before_ts: The time, in ms since the epoch.
            limit: The most rows to delete.

        Returns:
            How many rows have been deleted: fewer than `limit` if none are left.
        """
        deleted = delete_some(
            txn,
            "federation_admin_run_queue",
            "run_id, destination",
            Sql(f"run_id NOT IN ({_RUNS_TO_DO})"),
            limit,
        )
        if deleted < limit:
            old = Sql("ended_ts IS NOT NULL AND ended_ts < ?", (before_ts,))
            deleted += delete_some(
                txn, "federation_admin_runs", "run_id", old, limit - deleted
            )
        return deleted

    async def _run(self, what: str, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._tables.run(f"federation_admin_run_{what}", func)

    def _lock_txn(
        self,
        txn: LoggingTransaction,
        run_id: str,
        runner: str,
        lock: str | None = None,
    ) -> Run | None:
        """Return a run and keep others from changing it; None if it is not ours."""
        found = _select(
            txn,
            "run_id = ? AND runner = ? AND ended_ts IS NULL",
            run_id,
            runner,
            lock=self._for_update if lock is None else lock,
        )
        return found[0] if found else None

    def _take_from_queue_txn(
        self, txn: LoggingTransaction, run_id: str, results: Sequence[RunResult]
    ) -> set[str]:
        """Delete destinations from the queue; return those that were in it."""
        names = [result.destination for result in results]
        these = any_of("destination", names, self._homeserver.is_postgres)
        which = f"federation_admin_run_queue WHERE run_id = ? AND {these.text}"
        txn.execute(f"SELECT destination FROM {which}", (run_id, *these.args))  # noqa: S608
        left = {name for (name,) in txn.fetchall()}
        txn.execute(f"DELETE FROM {which}", (run_id, *these.args))  # noqa: S608
        return left

    def _end_txn(
        self,
        txn: LoggingTransaction,
        run: Run,
        status: RunStatus,
        error: str | None = None,
    ) -> Run:
        now_ts = self._homeserver.now_ms()
        txn.execute(
            "UPDATE federation_admin_runs SET status = ?, ended_ts = ?, "
            "updated_ts = ?, rate = NULL, error = ? WHERE run_id = ?",
            (status.value, now_ts, now_ts, error, run.run_id),
        )
        ended = attr.evolve(
            run,
            status=status.value,
            ended_ts=now_ts,
            updated_ts=now_ts,
            rate=None,
            error=error,
        )
        entry = whole_entry(ended, self._homeserver.instance_name)
        self._audit.end_txn(txn, [entry])
        return ended

    def _entry(self, run: Run, result: RunResult) -> AuditEntry:
        entry = self._audit.entry(
            run.action,
            run.actor,
            destination=result.destination,
            reason=run.reason,
            run_id=run.run_id,
            outcome=result.outcome,
            details=result.details,
        )
        return attr.evolve(entry, ts=result.ts, ended_ts=result.ended_ts)


def _select(
    txn: LoggingTransaction,
    which: str,
    *args: str | int,
    limit: int = 1,
    lock: str = "",
) -> list[Run]:
    txn.execute(
        f"SELECT {COLUMNS} FROM federation_admin_runs WHERE {which} "  # noqa: S608
        f"ORDER BY created_ts DESC, run_id DESC LIMIT ? {lock}",
        (*args, limit),
    )
    return [to_run(row) for row in txn.fetchall()]
