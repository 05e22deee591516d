# SPDX-License-Identifier: Apache-2.0
"""Keeps runs: what they are, and how far they have come.

What a run has still to do, and how that is done, is in
`synapse_federation_admin.storage.run_queue`. Nothing is written to a run that has
ended.
"""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Expired, Sql, can_be_stored, marks
from synapse_federation_admin.storage.values import (
    AUDIT_PENDING,
    WHOLE,
    Actor,
    AuditAction,
    Run,
    RunError,
    RunErrors,
    RunStatus,
)

T = TypeVar("T")

# The columns of a row that a run is made of, and those of them that are JSON objects.
_COLUMNS = tuple(
    name for kind in (Run, Actor) for name in attr.fields_dict(kind) if name != "actor"
)
_JSON = ("criteria", "options", "outcomes", "totals", "errors")

# The IDs of the runs that have not ended, for statements of others.
UNENDED = "(SELECT run_id FROM federation_admin_runs WHERE ended_ts IS NULL)"

# Runs that are old by when they ended.
OLD = Expired("federation_admin_runs", "run_id", "ended_ts < ?")


def whole_action(action: str) -> str:
    """Return the action by which a run as a whole is in the audit."""
    return f"{WHOLE}{action}"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunStore:
    """Reads and writes runs. Every method raises what the database raises.

    A method whose name ends in `_txn` is to be called in a transaction of `run`.

    Attributes:
        homeserver: Reaches Synapse.
        audit: Keeps what is done.
    """

    homeserver: Homeserver
    _tables: Tables
    audit: Audit

    async def create(
        self,
        action: str,
        criteria: Mapping[str, object],
        options: Mapping[str, object],
        names: Sequence[str],
        actor: Actor,
        reason: str | None,
    ) -> tuple[Run, bool]:
        """Make a run, unless one of the same action has not ended.

        Args:
            action: What is done to each destination: the name of an action.
            criteria: Which destinations, as the API shows it.
            options: How, as the API shows it.
            names: The destinations, where the criteria are a list; else empty.
            actor: Who asks for it.
            reason: Why, as they say.

        Returns:
            The run, and True; or the one that has not ended, and False.
        """
        now_ts = self.homeserver.now_ms()
        run_id = secrets.token_hex(8)
        entry = self.audit.entry(
            whole_action(action),
            actor,
            reason=reason,
            run_id=run_id,
            details={"criteria": criteria, **options},
        )
        run = Run(
            run_id,
            action,
            RunStatus.SCHEDULED.value,
            entry.entry_id,
            actor,
            reason,
            criteria,
            options,
            created_ts=now_ts,
            updated_ts=now_ts,
        )
        row = attr.asdict(run, recurse=False) | {"names": names}
        row |= attr.asdict(row.pop("actor"))
        for column in (*_JSON, "names"):
            row[column] = json.dumps(row[column])

        def create_txn(txn: LoggingTransaction) -> tuple[Run, bool]:
            txn.execute(
                f"INSERT INTO federation_admin_runs ({', '.join(row)}) "  # noqa: S608
                f"VALUES ({marks(row)}) "
                "ON CONFLICT (action) WHERE ended_ts IS NULL DO NOTHING",
                tuple(row.values()),
            )
            created = bool(txn.rowcount)
            if created:
                self.audit.insert_txn(txn, [entry])
            (found,) = _select(txn, "action = ? AND ended_ts IS NULL", action)
            return found, created

        return await self.run("create", create_txn)

    async def get(self, run_id: str) -> Run | None:
        """Return a run; None if there is none of this ID."""
        if not can_be_stored(run_id):
            return None
        found = await self.run("get", lambda txn: _select(txn, "run_id = ?", run_id))
        return found[0] if found else None

    async def unended(self) -> list[Run]:
        """Return the runs that have not ended: one of each action at most."""
        return await self.run(
            "get", lambda txn: _select(txn, "ended_ts IS NULL", limit=1000)
        )

    async def read(self, before: tuple[int, str] | None, limit: int) -> list[Run]:
        """Return the newest runs, or those made before one: its time and its ID."""
        which = "(created_ts, run_id) < (?, ?)" if before else "1 = 1"
        return await self.run(
            "list", lambda txn: _select(txn, which, *(before or ()), limit=limit)
        )

    async def names(self, run_id: str) -> list[str]:
        """Return the names of a run that is for a list; none if it is not there."""
        statement = "SELECT names FROM federation_admin_runs WHERE run_id = ?"
        rows = await self.run("names", Sql(statement, (run_id,)).select_txn)
        names: list[str] = json.loads(rows[0][0]) if rows else []
        return names

    async def fail(self, run_id: str, error: str, mark: str | None) -> None:
        """End a run that cannot go on, or be taken.

        Args:
            run_id: The run.
            error: Why, for a person.
            mark: The mark of who must have it; None: whoever has it.
        """

        def fail_txn(txn: LoggingTransaction) -> None:
            if self.lock_txn(txn, run_id, mark):
                self.end_txn(txn, run_id, RunStatus.FAILED, error)

        await self.run("fail", fail_txn)

    async def cancel(self, run_id: str, actor: Actor) -> Run | None:
        """End a run, if it has not ended; from here on nothing is written.

        Returns:
            The run as it is then; None if there is none of this ID.
        """
        cancelled = RunStatus.CANCELLED
        entry = self.audit.entry(
            AuditAction.CANCEL, actor, run_id=run_id, outcome=cancelled.value
        )

        def cancel_txn(txn: LoggingTransaction) -> None:
            if self.lock_txn(txn, run_id):
                self.audit.insert_txn(txn, [entry])
                self.end_txn(txn, run_id, cancelled)

        if can_be_stored(run_id):
            await self.run("cancel", cancel_txn)
        return await self.get(run_id)

    async def run(
        self,
        what: str,
        func: Callable[[LoggingTransaction], T],
        *,
        read_committed: bool = False,
    ) -> T:
        """Run a function in a transaction; see `Tables.run`."""
        return await self._tables.run(
            f"federation_admin_run_{what}", func, read_committed=read_committed
        )

    def lock_txn(
        self, txn: LoggingTransaction, run_id: str, mark: str | None = None
    ) -> Run | None:
        """Return a run that has not ended, and keep others from changing it.

        Args:
            txn: The transaction.
            run_id: The run.
            mark: The mark of who must have it; None: whoever has it.
        """
        which = "run_id = ? AND ended_ts IS NULL"
        args = [run_id]
        if mark is not None:
            which, args = f"{which} AND runner = ?", [run_id, mark]
        lock = "FOR UPDATE" if self.homeserver.is_postgres else ""
        found = _select(txn, which, *args, lock=lock)
        return found[0] if found else None

    def update_txn(
        self,
        txn: LoggingTransaction,
        run_id: str,
        changes: str,
        *args: str | float | None,
    ) -> Run:
        """Change a run; return it as it is then."""
        txn.execute(
            f"UPDATE federation_admin_runs SET {changes}, updated_ts = ? "  # noqa: S608
            "WHERE run_id = ?",
            (*args, self.homeserver.now_ms(), run_id),
        )
        (run,) = _select(txn, "run_id = ?", run_id)
        return run

    def recount_txn(
        self, txn: LoggingTransaction, run_id: str, after: Sequence[str]
    ) -> None:
        """Count what was pending under its outcome, also of a run that has ended.

        Args:
            txn: The transaction.
            run_id: The run; nothing is changed if there is none.
            after: The outcomes that each of them has in truth.
        """
        lock = "FOR UPDATE" if self.homeserver.is_postgres else ""
        for run in _select(txn, "run_id = ?", run_id, lock=lock):
            outcomes = Counter(run.outcomes)
            outcomes.subtract({AUDIT_PENDING: len(after)})
            outcomes.update(after)
            left = json.dumps({key: n for key, n in outcomes.items() if n})
            self.update_txn(txn, run_id, "outcomes = ?", left)

    def end_txn(
        self,
        txn: LoggingTransaction,
        run_id: str,
        status: RunStatus,
        error: str | None = None,
    ) -> None:
        """End a run, and its entry in the audit."""
        run = self.update_txn(
            txn,
            run_id,
            "status = ?, ended_ts = ?, rate = NULL, error = ?",
            status.value,
            self.homeserver.now_ms(),
            error,
        )
        entry = self.audit.entry(
            whole_action(run.action),
            run.actor,
            reason=run.reason,
            run_id=run_id,
            outcome=status.value,
            details={
                "criteria": run.criteria,
                **run.options,
                "matched": run.matched,
                "done": run.done,
                "outcomes": run.outcomes,
                "totals": run.totals,
                **({"error": error} if error else {}),
            },
        )
        entry = attr.evolve(entry, entry_id=run.entry_id, ts=run.created_ts)
        self.audit.end_txn(txn, entry)


def _select(
    txn: LoggingTransaction,
    which: str,
    *args: str | int,
    limit: int = 1,
    lock: str = "",
) -> list[Run]:
    txn.execute(
        f"SELECT {', '.join(_COLUMNS)} FROM federation_admin_runs WHERE {which} "  # noqa: S608
        f"ORDER BY created_ts DESC, run_id DESC LIMIT ? {lock}",
        (*args, limit),
    )
    return [_to_run(row) for row in txn.fetchall()]


def _to_run(row: Sequence[Any]) -> Run:
    found = dict(zip(_COLUMNS, row, strict=True))
    for column in _JSON:
        found[column] = json.loads(found[column])
    errors = {
        kind: RunErrors(
            errors["count"],
            tuple(
                RunError(error["destination"], error["message"], error["ts"])
                for error in errors["recent"]
            ),
        )
        for kind, errors in found.pop("errors").items()
    }
    actor = Actor(found.pop("user_id"), found.pop("puppeted_by"))
    return Run(actor=actor, errors=errors, **found)
