# SPDX-License-Identifier: Apache-2.0
"""Keeps bulk runs: what they are, what they have still to do, and what came of it.

A run has a row in `federation_admin_runs`, and while it has not come to its end a row
in `federation_admin_run_queue` for each destination that it has still to see to. What
comes of a destination is written in one transaction: its retry timings are cleared, if
it has answered; its row in the queue goes; it is counted; and it gets its entry in the
audit. So whenever the process is killed, what is counted, what is in the audit and what
was changed agree, and what is still in the queue has had none of it.

Each process that takes a run writes its mark into it, and writes nothing any more once
another's mark is there. A run that is cancelled takes no results from then on.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import DESTINATION_COLUMNS, FAILING
from synapse_federation_admin.destinations.values import MAX_NAME, Destination
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.contact import shown_contact
from synapse_federation_admin.repair.criteria import (
    criteria_from_json,
    criteria_to_json,
    shown_criteria,
)
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import Actor, AuditAction, AuditEntry
from synapse_federation_admin.storage.run_values import (
    Queued,
    Run,
    RunError,
    RunErrors,
    RunOrder,
    RunOutcome,
    RunResult,
    RunStatus,
)

T = TypeVar("T")

_COLUMNS = (
    "run_id, status, entry_id, user_id, puppeted_by, reason, criteria, per_second, "
    "timeout_ms, created_ts, updated_ts, started_ts, ended_ts, prepared_to, matched, "
    "connected, still_failing, no_longer_failing, skipped, errors, rate"
)

# Of each kind of error, how many are kept.
_RECENT_ERRORS = 5

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


class RunStore:
    """Reads and writes bulk runs. Every method raises what the database raises."""

    def __init__(self, homeserver: Homeserver, audit: Audit) -> None:
        self._homeserver = homeserver
        self._audit = audit
        self._for_update = "FOR UPDATE" if homeserver.is_postgres else ""

    async def create(self, order: RunOrder) -> tuple[Run, bool]:
        """Make a run, if there is none that has not ended.

        Returns:
            The run, and True; or the run that there is, and False.
        """
        await self._audit.ready()
        now_ts = self._homeserver.now_ms()
        run_id = secrets.token_hex(8)
        entry = self._audit.entry(
            AuditAction.BULK_RECONNECT,
            order.actor,
            reason=order.reason,
            run_id=run_id,
            details={
                "criteria": shown_criteria(order.criteria),
                "per_second": order.per_second,
            },
        )

        def create_txn(txn: LoggingTransaction) -> tuple[Run, bool]:
            txn.execute(
                "INSERT INTO federation_admin_runs ("
                "run_id, active, status, entry_id, user_id, puppeted_by, reason, "
                "criteria, names, per_second, timeout_ms, created_ts, updated_ts, "
                "matched, connected, still_failing, no_longer_failing, skipped, "
                "errors) "
                "VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, '{}') "
                "ON CONFLICT (active) DO NOTHING",
                (
                    *(run_id, RunStatus.SCHEDULED.value, entry.entry_id),
                    *(order.actor.user_id, order.actor.puppeted_by, order.reason),
                    *(criteria_to_json(order.criteria), json.dumps(order.names)),
                    *(float(order.per_second), order.timeout_ms, now_ts, now_ts),
                ),
            )
            created = bool(txn.rowcount)
            if created:
                self._audit.insert_txn(txn, [entry])
            (found,) = _select(txn, "active = 1")
            return found, created

        return await self._run("create", create_txn)

    async def get(self, run_id: str) -> Run | None:
        """Return a run; None if there is none of this ID."""
        if "\0" in run_id:
            return None
        await self._audit.ready()
        found = await self._run("get", lambda txn: _select(txn, "run_id = ?", run_id))
        return found[0] if found else None

    async def active(self) -> Run | None:
        """Return the run that has not ended; None if there is none."""
        await self._audit.ready()
        found = await self._run("get", lambda txn: _select(txn, "active = 1"))
        return found[0] if found else None

    async def read(self, before: tuple[int, str] | None, limit: int) -> list[Run]:
        """Return the newest runs, or those made before one: its time and its ID."""
        await self._audit.ready()
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
        await self._audit.ready()
        now_ts = self._homeserver.now_ms()

        def take_txn(txn: LoggingTransaction) -> Run | None:
            txn.execute(
                "UPDATE federation_admin_runs SET runner = ?, updated_ts = ?, "
                "started_ts = COALESCE(started_ts, ?), "
                "status = CASE WHEN status = ? THEN ? ELSE status END "
                "WHERE run_id = ? AND active = 1",
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

    async def add(
        self, run_id: str, runner: str, names: Sequence[str], prepared_to: str
    ) -> bool:
        """Put destinations into a run's queue.

        Args:
            run_id: The run.
            runner: The mark of who has it.
            names: The destinations; those without a row, or with a name that no server
                can have, are left out.
            prepared_to: Up to where the destinations have been found with these.

        Returns:
            Whether the run is still to be worked on by this runner.
        """
        # Longer ones are no server's, and do not fit into the index.
        names = [name for name in names if len(name) <= MAX_NAME]

        def add_txn(txn: LoggingTransaction) -> bool:
            if self._lock_txn(txn, run_id, runner) is None:
                return False
            txn.execute(
                "INSERT INTO federation_admin_run_queue "  # noqa: S608
                "(run_id, priority, destination, was_failing) "
                f"SELECT ?, {_PRIORITY}, d.destination, "
                f"CASE WHEN {FAILING} THEN 1 ELSE 0 END FROM destinations d "
                f"WHERE d.destination IN ({_marks(names) or 'NULL'}) "
                "ON CONFLICT (run_id, destination) DO NOTHING",
                (run_id, *names),
            )
            txn.execute(
                "UPDATE federation_admin_runs SET matched = matched + ?, "
                "prepared_to = ?, updated_ts = ? WHERE run_id = ?",
                (txn.rowcount, prepared_to, self._homeserver.now_ms(), run_id),
            )
            return True

        return await self._run("add", add_txn)

    async def prepared(self, run_id: str, runner: str) -> bool:
        """Take note that all destinations of a run have been found.

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
        """Return what comes next in a run's queue, with the rows as they are now."""
        beyond = "AND (q.priority, q.destination) > (?, ?)" if after else ""

        def next_txn(txn: LoggingTransaction) -> list[Queued]:
            txn.execute(
                "SELECT q.destination, q.priority, q.was_failing, "  # noqa: S608
                "d.destination, d.retry_last_ts, d.retry_interval, d.failure_ts, "
                "d.last_successful_stream_ordering "
                "FROM federation_admin_run_queue q "
                "LEFT JOIN destinations d ON d.destination = q.destination "
                f"WHERE q.run_id = ? {beyond} "
                "ORDER BY q.priority, q.destination LIMIT ?",
                (run_id, *(after or ()), limit),
            )
            return [
                Queued(
                    name,
                    priority,
                    bool(was_failing),
                    Destination(*row) if row[0] is not None else None,
                )
                for name, priority, was_failing, *row in txn.fetchall()
            ]

        return await self._run("next", next_txn)

    async def record(
        self, run: Run, runner: str, results: Sequence[RunResult], rate: float | None
    ) -> bool:
        """Write what came of some destinations, all of it or nothing.

        What has been written of a destination already, by a call that seemed to have
        failed, is not written again.

        Args:
            run: The run.
            runner: The mark of who has it.
            results: What came of them, each once.
            rate: How many are done per second.

        Returns:
            Whether the run is still to be worked on by this runner. If not, nothing has
            been written.
        """
        run_id = run.run_id

        def record_txn(txn: LoggingTransaction) -> bool:
            found = self._lock_txn(txn, run_id, runner)
            if found is None:
                return False
            left = self._take_from_queue_txn(txn, run_id, results)
            new = [result for result in results if result.destination in left]
            self._clear_txn(
                txn,
                [r.destination for r in new if r.outcome is RunOutcome.CONNECTED],
            )
            self._audit.insert_txn(txn, [self._entry(run, result) for result in new])
            counts = [
                sum(result.outcome is outcome for result in new)
                for outcome in RunOutcome
            ]
            txn.execute(
                "UPDATE federation_admin_runs SET "
                "connected = connected + ?, still_failing = still_failing + ?, "
                "no_longer_failing = no_longer_failing + ?, skipped = skipped + ?, "
                "errors = ?, rate = ?, updated_ts = ? WHERE run_id = ?",
                (
                    *counts,
                    _errors_to_json(_with_errors(found.errors, new)),
                    *(rate, self._homeserver.now_ms(), run_id),
                ),
            )
            return True

        return await self._run("record", record_txn)

    async def is_alive(self, run_id: str, runner: str) -> bool:
        """Tell whether a run is still to be worked on by this runner."""

        def is_alive_txn(txn: LoggingTransaction) -> bool:
            txn.execute(
                "SELECT 1 FROM federation_admin_runs "
                "WHERE run_id = ? AND runner = ? AND active = 1",
                (run_id, runner),
            )
            return txn.fetchone() is not None

        return await self._run("get", is_alive_txn)

    async def complete(self, run_id: str, runner: str) -> bool:
        """Make an end of a run, if there is nothing left in its queue.

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

    async def cancel(self, run_id: str, actor: Actor) -> Run | None:
        """Make an end of a run, if it has not ended; from here on nothing is written.

        Returns:
            The run as it is then; None if there is none of this ID.
        """
        if "\0" in run_id:
            return None
        await self._audit.ready()
        entry = self._audit.entry(
            AuditAction.CANCEL,
            actor,
            run_id=run_id,
            outcome=RunStatus.CANCELLED.value,
        )

        def cancel_txn(txn: LoggingTransaction) -> Run | None:
            found = _select(txn, "run_id = ?", run_id, lock=self._for_update)
            if not found or found[0].has_ended:
                return found[0] if found else None
            self._audit.insert_txn(txn, [entry])
            return self._end_txn(txn, found[0], RunStatus.CANCELLED)

        return await self._run("cancel", cancel_txn)

    async def _run(self, what: str, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._homeserver.run_db_interaction(
            f"federation_admin_run_{what}", func
        )

    def _lock_txn(
        self, txn: LoggingTransaction, run_id: str, runner: str
    ) -> Run | None:
        """Return a run and keep others from changing it; None if it is not ours."""
        found = _select(
            txn,
            "run_id = ? AND runner = ? AND active = 1",
            run_id,
            runner,
            lock=self._for_update,
        )
        return found[0] if found else None

    def _take_from_queue_txn(
        self, txn: LoggingTransaction, run_id: str, results: Sequence[RunResult]
    ) -> set[str]:
        """Delete destinations from the queue; return those that were in it."""
        names = [result.destination for result in results]
        which = f"run_id = ? AND destination IN ({_marks(names)})"
        txn.execute(
            f"SELECT destination FROM federation_admin_run_queue WHERE {which}",  # noqa: S608
            (run_id, *names),
        )
        left = {name for (name,) in txn.fetchall()}
        txn.execute(
            f"DELETE FROM federation_admin_run_queue WHERE {which}",  # noqa: S608
            (run_id, *names),
        )
        return left

    def _clear_txn(self, txn: LoggingTransaction, names: Sequence[str]) -> None:
        """Clear the retry timings of destinations that have answered."""
        if not names:
            return
        txn.execute(
            f"SELECT {DESTINATION_COLUMNS} FROM destinations "  # noqa: S608
            f"WHERE destination IN ({_marks(names)}) AND {FAILING} "
            "ORDER BY destination",
            tuple(names),
        )
        for name, *_ in txn.fetchall():
            self._homeserver.retry_timings.clear_txn(txn, name)

    def _end_txn(self, txn: LoggingTransaction, run: Run, status: RunStatus) -> Run:
        now_ts = self._homeserver.now_ms()
        txn.execute(
            "UPDATE federation_admin_runs SET active = NULL, status = ?, "
            "ended_ts = ?, updated_ts = ?, rate = NULL WHERE run_id = ?",
            (status.value, now_ts, now_ts, run.run_id),
        )
        entry = AuditEntry(
            entry_id=run.entry_id,
            ts=run.created_ts,
            action=AuditAction.BULK_RECONNECT.value,
            actor=run.actor,
            instance=self._homeserver.instance_name,
            outcome=status.value,
            reason=run.reason,
            run_id=run.run_id,
            ended_ts=now_ts,
            details={
                "criteria": shown_criteria(run.criteria),
                "per_second": run.per_second,
                "matched": run.matched,
                "done": run.done,
                **{outcome.value: count for outcome, count in run.counts.items()},
            },
        )
        self._audit.end_txn(txn, [entry])
        return attr.evolve(
            run, status=status, ended_ts=now_ts, updated_ts=now_ts, rate=None
        )

    def _entry(self, run: Run, result: RunResult) -> AuditEntry:
        details: dict[str, object] = {}
        if result.contact is not None:
            details["contact"] = shown_contact(result.contact)
        if result.note:
            details["note"] = result.note
        entry = self._audit.entry(
            AuditAction.RECONNECT,
            run.actor,
            destination=result.destination,
            reason=run.reason,
            run_id=run.run_id,
            outcome=result.outcome.value,
            details=details,
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
        f"SELECT {_COLUMNS} FROM federation_admin_runs WHERE {which} "  # noqa: S608
        f"ORDER BY created_ts DESC, run_id DESC LIMIT ? {lock}",
        (*args, limit),
    )
    return [_to_run(row) for row in txn.fetchall()]


def _to_run(row: Sequence[Any]) -> Run:
    found = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Run(
        status=RunStatus(found.pop("status")),
        actor=Actor(found.pop("user_id"), found.pop("puppeted_by")),
        criteria=criteria_from_json(found.pop("criteria")),
        counts={outcome: int(found.pop(outcome.value)) for outcome in RunOutcome},
        errors=_errors_from_json(found.pop("errors")),
        **found,
    )


def _with_errors(
    errors: Mapping[str, RunErrors], results: Iterable[RunResult]
) -> dict[str, RunErrors]:
    """Return errors with those of more results."""
    found = dict(errors)
    for result in results:
        failure = result.contact.failure if result.contact else None
        if failure is not None:
            before = found.get(failure.kind.value, RunErrors())
            error = RunError(result.destination, message_of(failure), result.ended_ts)
            found[failure.kind.value] = RunErrors(
                before.count + 1, (error, *before.recent)[:_RECENT_ERRORS]
            )
    return found


def _errors_to_json(errors: Mapping[str, RunErrors]) -> str:
    return json.dumps({kind: attr.asdict(found) for kind, found in errors.items()})


def _errors_from_json(text: str) -> dict[str, RunErrors]:
    return {
        kind: RunErrors(
            found["count"], tuple(RunError(**error) for error in found["recent"])
        )
        for kind, found in json.loads(text).items()
    }


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
